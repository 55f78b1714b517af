"""LSTM, GRU and RNN: hidden units are channels, gates are copies of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.channels.site import UNKNOWN_RANK

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Site
    from onnxcomp.ir import ir

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PEEPHOLES = 3


def recurrent(site: Site) -> None:
    """LSTM, GRU, RNN: weights are [directions, gates * hidden, input or hidden]."""
    _recurrent(site, _GATES[site.node.op_type], made=1, read=2)


def dynamic_quantize_lstm(site: Site) -> None:
    """DynamicQuantizeLSTM of onnxruntime: weights are [directions, input or hidden, gates * hidden].

    Their scales and zero points, if not one for a direction, are one per column.
    """
    _recurrent(site, _GATES["LSTM"], made=2, read=1)
    for index, operand in ((8, 1), (9, 1), (10, 2), (11, 2)):
        axes, weight = site.axes(site.input(index)), site.axes(site.input(operand))
        if axes and weight is not None:
            site.keep(axes[0], "directions are not channels")
            site.tie_all(axes[1:], weight[2:][: len(axes) - 1])
    source, recurrence = site.axes(site.input(0)), site.axes(site.input(2))
    if source is not None and recurrence is not None:
        # What is rounded by a scale of its own while it runs: the input, and the state.
        site.scale(source[2])
        site.scale(recurrence[1])


def _recurrent(site: Site, gates: int, *, made: int, read: int) -> None:
    """Ties input features, hidden units of each direction, and their states.

    All directions have as many hidden units, so unit i of one goes with unit i of the other.
    """
    source, weight, recurrence = (site.axes(site.input(index)) for index in range(3))
    if source is None or weight is None or recurrence is None or None in (*weight, *recurrence):
        site.freeze(UNKNOWN_RANK)
        return
    units = recurrence[read]
    if site.size(weight[made]) != gates * (site.size(units) or 0):
        site.freeze("its gates do not divide the hidden units")
        return
    site.keep(weight[0], "directions are not channels")
    site.tie(weight[0], recurrence[0])
    site.tie(source[2], weight[read])
    # Batch and time, whichever comes first, are nobody's channels.
    for axis in source[:2]:
        site.keep(axis, "it is batch or time")
    for axis in (weight[made], recurrence[made]):
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
    _roles(site, made, read)


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


def _roles(site: Site, made: int, read: int) -> None:
    site.makes(site.input(1), made)
    site.makes(site.input(2), made)
    site.makes(site.input(3), 1)
    site.contracts(site.input(0), 2, site.input(1), read)
    for output in [output for output in site.node.outputs if output.name][:1]:
        # What the recurrence reads is what the layer puts out: all steps, the last one, or its cell.
        site.contracts(output, len(site.axes(output) or ()) - 1, site.input(2), read)
