"""LSTM, GRU and RNN: hidden units are channels, gates are copies of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Site
    from onnxcomp.ir import ir

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PEEPHOLES = 3


def recurrent(site: Site) -> None:
    """Ties input features, hidden units of each direction, and their states.

    Weights are [directions, gates * hidden, input], [directions, gates * hidden, hidden] and
    [directions, 2 * gates * hidden]. All directions have as many hidden units, so unit i of one goes
    with unit i of the other.
    """
    gates = _GATES[site.node.op_type]
    source, weight, recurrence = (site.axes(site.input(index)) for index in range(3))
    if source is None or weight is None or recurrence is None or None in (*weight, *recurrence):
        site.freeze("the rank of an operand is not known")
        return
    units = recurrence[2]
    size = site.size(units) or 0
    if site.size(weight[1]) != gates * size:
        site.freeze("its gates do not divide the hidden units")
        return
    site.keep(weight[0], "directions are not channels")
    site.tie(weight[0], recurrence[0])
    site.tie(source[2], weight[2])
    # Batch and time, whichever comes first, are nobody's channels.
    for axis in source[:2]:
        site.keep(axis, "it is batch or time")
    for axis in (weight[1], recurrence[1]):
        _gates(site, axis, gates, units)
    bias = site.axes(site.input(3))
    if bias is not None:
        site.keep(bias[0], "directions are not channels")
        _gates(site, bias[1], 2 * gates, units)
    for index in (5, 6):
        _states(site, site.input(index), units)
    peepholes = site.axes(site.input(7))
    if peepholes is not None:
        site.keep(peepholes[0], "directions are not channels")
        _gates(site, peepholes[1], _PEEPHOLES, units)
    for output in site.node.outputs:
        _states(site, output if output.name else None, units)
    _roles(site)


def _gates(site: Site, axis: int | None, gates: int, units: int | None) -> None:
    if axis is None or units is None or site.size(axis) != gates * (site.size(units) or 0):
        site.keep(axis, "its gates do not divide the hidden units")
        return
    copies = site.space.virtual(gates)
    site.keep(copies, "gates are not channels")
    site.space.product(axis, [copies, units])


def _states(site: Site, value: ir.Value | None, units: int | None) -> None:
    axes = site.axes(value)
    if value is None:
        return
    if axes is None:
        site.keep(units, "the rank of a state is not known")
        return
    site.tie(axes[-1], units)
    for axis in axes[:-1]:
        site.keep(axis, "it is batch, time or direction")


def _roles(site: Site) -> None:
    site.makes(site.input(1), 1)
    site.makes(site.input(2), 1)
    site.makes(site.input(3), 1)
    site.contracts(site.input(0), 2, site.input(1), 2)
    for output in [output for output in site.node.outputs[:2] if output.name][:1]:
        # What the recurrence reads is what the layer puts out: all steps, or the last one at least.
        site.contracts(output, len(site.axes(output) or ()) - 1, site.input(2), 2)
