"""If, Loop and Scan: what a body returns is what the node returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.channels.site import UNKNOWN_RANK
from onnxcomp.ir.ops import subgraphs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels.site import Axes, Site
    from onnxcomp.ir import ir


def branches(site: Site) -> None:
    """If: both branches make the same outputs; captured values keep their own axes."""
    for body in subgraphs(site.node):
        for inner, outer in zip(body.outputs, site.node.outputs, strict=False):
            _equal(site, inner, outer)


def loop(site: Site) -> None:
    """Loop: what is carried from one round to the next has the same axes in each."""
    for body in subgraphs(site.node):
        carried = len(body.inputs) - 2
        for index in range(carried):
            first = site.input(index + 2)
            _equal(site, body.inputs[index + 2], first)
            _equal(site, body.inputs[index + 2], body.outputs[index + 1])
            _equal(site, body.outputs[index + 1], _output(site, index))
        stacked = body.outputs[carried + 1 :]
        _stacked(site, stacked, carried, [0] * len(stacked))
        for value in body.inputs[:2]:
            _keep_all(site, value)


def scan(site: Site) -> None:
    """Scan: states are carried, slices along the scanned axes come and go."""
    for body in subgraphs(site.node):
        scanned = site.attribute("num_scan_inputs", 0)
        states = len(body.inputs) - scanned
        for index in range(states):
            _equal(site, body.inputs[index], site.input(index))
            _equal(site, body.inputs[index], body.outputs[index])
            _equal(site, body.outputs[index], _output(site, index))
        # Before opset 9 there was a batch, and the lengths of its sequences came first.
        if len(site.node.inputs) != len(body.inputs):
            site.freeze("it scans a batch of sequences of different lengths")
            keep_bodies(site)
            return
        axes = _scan_axes(site, "scan_input_axes", scanned)
        for index, axis in zip(range(states, len(body.inputs)), axes, strict=False):
            _slices(site, body.inputs[index], site.axes(site.input(index)), axis)
        made = _scan_axes(site, "scan_output_axes", len(body.outputs) - states)
        _stacked(site, body.outputs[states:], states, made)


def _scan_axes(site: Site, name: str, count: int) -> list[int]:
    """Along which axis slices come or go, the first unless an attribute says otherwise."""
    given = site.integers(name, len(site.node.inputs), [0] * count)
    if given is None or len(given) != count:
        raise IndexError(name)
    return given


def keep_bodies(site: Site) -> None:
    """What goes into and out of the bodies of a node stays as it is."""
    for body in subgraphs(site.node):
        for value in (*body.inputs, *body.outputs):
            _keep_all(site, value)


def _output(site: Site, index: int) -> ir.Value | None:
    outputs = site.node.outputs
    return outputs[index] if index < len(outputs) and outputs[index].name else None


def _stacked(site: Site, inner: Sequence[ir.Value], first: int, along: Sequence[int]) -> None:
    """Outputs of all rounds are stacked along a new axis."""
    for index, (value, axis) in enumerate(zip(inner, along, strict=True), first):
        output = _output(site, index)
        if output is not None:
            _slices(site, value, site.axes(output), axis)


def _slices(site: Site, value: ir.Value, whole: Axes | None, along: int) -> None:
    axes = site.axes(value)
    if axes is None or whole is None or len(whole) != len(axes) + 1:
        _keep_all(site, value)
        for axis in whole or ():
            site.keep(axis, UNKNOWN_RANK)
        return
    place = along % len(whole)
    site.keep(whole[place], "it counts rounds")
    site.tie_all(axes, [axis for other, axis in enumerate(whole) if other != place])


def _equal(site: Site, one: ir.Value | None, other: ir.Value | None) -> None:
    if one is None or other is None:
        return
    left, right = site.axes(one), site.axes(other)
    if left is None or right is None or len(left) != len(right):
        _keep_all(site, one)
        _keep_all(site, other)
        return
    site.tie_all(left, right)


def _keep_all(site: Site, value: ir.Value) -> None:
    for axis in site.axes(value) or ():
        site.keep(axis, "it passes into or out of a body")
