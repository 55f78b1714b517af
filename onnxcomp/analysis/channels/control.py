"""If, Loop and Scan: what a body returns is what the node returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import subgraphs

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        _stacked(site, body.outputs[carried + 1 :], carried, 0)
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
        moved = any(
            name in site.node.attributes for name in ("scan_input_axes", "scan_output_axes")
        )
        # Before opset 9 there was a batch, and the lengths of its sequences came first.
        if moved or len(site.node.inputs) != len(body.inputs):
            site.freeze("it scans along other axes than the first")
            keep_bodies(site)
            return
        for index in range(states, len(body.inputs)):
            _slices(site, body.inputs[index], site.axes(site.input(index)))
        _stacked(site, body.outputs[states:], states, 0)


def keep_bodies(site: Site) -> None:
    """What goes into and out of the bodies of a node stays as it is."""
    for body in subgraphs(site.node):
        for value in (*body.inputs, *body.outputs):
            _keep_all(site, value)


def _output(site: Site, index: int) -> ir.Value | None:
    outputs = site.node.outputs
    return outputs[index] if index < len(outputs) and outputs[index].name else None


def _stacked(site: Site, inner: Iterable[ir.Value], first: int, axis: int) -> None:
    """Outputs of all rounds are stacked along a new axis."""
    del axis
    for index, value in enumerate(inner, first):
        output = _output(site, index)
        if output is not None:
            _slices(site, value, site.axes(output))
        elif site.axes(value) is None:
            continue


def _slices(site: Site, value: ir.Value, whole: Axes | None) -> None:
    axes = site.axes(value)
    if axes is None or whole is None or len(whole) != len(axes) + 1:
        _keep_all(site, value)
        for axis in whole or ():
            site.keep(axis, "the rank of an operand is not known")
        return
    site.keep(whole[0], "it counts rounds")
    site.tie_all(axes, whole[1:])


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
