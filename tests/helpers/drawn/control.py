"""Operators that carry graphs, and functions: bodies are drawn like the graph around them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from tests.helpers.drawn.core import (
    Drawing,
    RefusedError,
    Source,
    Value,
    element_type,
    used_domains,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DEEPEST = 2


def fill(body: Drawing, steps: int) -> None:
    """Draws nodes into a body."""
    from tests.helpers.drawn import step

    for _ in range(steps):
        step(body)


def _enter(d: Drawing, *, in_function: bool = False) -> Drawing:
    if d.depth >= DEEPEST:
        raise RefusedError("deep")
    return d.scope(in_function=in_function)


def _parameter(body: Drawing, worlds: tuple[np.ndarray, ...], base: str) -> Value:
    value = Value(body.name(base), worlds)
    body.pool.append(value)
    return value


def _info(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, element_type(value.dtype), [None] * value.rank)


def _graph(
    body: Drawing, inputs: list[onnx.ValueInfoProto], outputs: list[Value]
) -> onnx.GraphProto:
    infos = [_info(value) for value in outputs]
    return helper.make_graph(body.nodes, body.name("g"), inputs, infos, list(body.tensors.values()))


def _ends(body: Drawing, fits: Callable[[Value], bool]) -> Value:
    """A value that the body itself makes; an output of a body must not be one of its parameters."""
    made = {name for node in body.nodes for name in node.output}
    found = [
        v for v in body.pool
        if v.name in made and isinstance(v.worlds[0], np.ndarray) and fits(v)
    ]  # fmt: skip
    if not found:
        raise RefusedError("nothing fits")
    return found[body.integer(max(0, len(found) - 3), len(found))]


def branch(d: Drawing, op_type: str) -> Value:
    kind = d.integer(0, 3)
    condition = d.weight(np.array(d.chance(0.5))).name
    if kind == 0:
        source = d.tensor(["float32"], least=1)
        total = d.one("ReduceMax", [source.name], keepdims=0)
        condition = d.one("Greater", [total.name, d.scalar(0.5)]).name
    elif kind == 1:
        condition = d.root().add_input("bool", ()).name
    first = _enter(d)
    fill(first, d.integer(1, 4))
    one = _ends(first, lambda v: True)
    second = _enter(d)
    if d.chance(0.15):
        second.nodes, second.tensors = first.nodes, first.tensors
        second.pool = first.pool
        return d.one("If", [condition], then_branch=_graph(first, [], [one]),
                     else_branch=_renamed(_graph(first, [], [one]), d))  # fmt: skip
    fill(second, d.integer(1, 4))
    with suppress(RefusedError):
        like = second.find(lambda v: v.dtype == one.dtype and v.shape == one.shape)
        second.one("Identity", [like.name])
    # Before opset 11 both branches had to give the same shape.
    free = d.opset >= 11
    two = _ends(second, lambda v: _same_type(v, one) or (free and _alike(v, one)))
    return d.one("If", [condition], then_branch=_graph(first, [], [one]),
                 else_branch=_graph(second, [], [two]))  # fmt: skip


def _renamed(graph: onnx.GraphProto, d: Drawing) -> onnx.GraphProto:
    """A copy whose own values have other names, as far as the copy is flat."""
    copy = onnx.GraphProto()
    copy.CopyFrom(graph)
    names = {name: d.name() for node in copy.node for name in node.output if name}
    names |= {tensor.name: d.name("w") for tensor in copy.initializer}
    for node in copy.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise RefusedError("nested")
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in copy.initializer:
        tensor.name = names[tensor.name]
    copy.output[0].name = names[copy.output[0].name]
    return copy


def loop(d: Drawing, op_type: str) -> list[Value]:
    state = d.tensor(["float32", "float32", "int64"], range(4))
    body = _enter(d)
    zero = np.array(0, np.int64)
    index = _parameter(body, (zero,) * len(state.worlds), "i")
    go = _parameter(body, (np.array(True),) * len(state.worlds), "c")
    carried = _parameter(body, state.worlds, "s")
    fill(body, d.integer(1, 4))
    again = body.one("Identity", [go.name])
    with suppress(RefusedError):
        found = body.find(lambda v: _same_type(v, state) and v.name != carried.name)
        body.one("Add", [found.name, carried.name])
    if d.chance(0.3):
        body.one("Identity", [carried.name])
    after = _ends(body, lambda v: _same_type(v, state))
    outputs = [again, after]
    trips, starts = d.choice([0, 1, 2, 3]), d.chance(0.9)
    # What a loop collects that never runs has sizes of 0 where the runtime knows none.
    if d.chance(0.6) and trips and starts:
        outputs.append(_ends(body, lambda v: v.kind != "O"))
    if len({value.name for value in outputs}) < len(outputs):
        raise RefusedError("one value twice")
    infos = [_info(index), _info(go), _info(carried)]
    graph = _graph(body, infos, outputs)
    trip = d.scalar(trips, "int64")
    start = d.weight(np.array(starts)).name if not starts or d.chance(0.6) else ""
    return d.node("Loop", [trip, start, state.name], len(outputs) - 1, body=graph)


def _alike(one: Value, two: Value) -> bool:
    return one.dtype == two.dtype and one.rank == two.rank


def _same_type(one: Value, two: Value) -> bool:
    return one.dtype == two.dtype and all(
        a.shape == b.shape for a, b in zip(one.worlds, two.worlds, strict=True)
    )


def scan(d: Drawing, op_type: str) -> list[Value]:
    old = d.opset < 9
    rank = 3 if old else 2
    sequence = d.tensor(["float32"], range(rank, 4), least=1)
    body = _enter(d)
    shapes = [array.shape[2:] if old else array.shape[1:] for array in sequence.worlds]
    start = (
        d.one("ReduceSum", [sequence.name], keepdims=0, **({"axes": [1]} if old else {"axes": [0]}))
        if d.opset < 13
        else (d.one("ReduceSum", [sequence.name, d.ints(0)], keepdims=0))
    )
    state = _parameter(body, tuple(np.ones(shape, np.float32) for shape in shapes), "s")
    item = _parameter(body, tuple(np.ones(shape, np.float32) for shape in shapes), "e")
    fill(body, d.integer(1, 4))
    body.one("Add", [state.name, item.name])
    after = _ends(body, lambda v: _same_type(v, state))
    row = _ends(body, lambda v: v.name != after.name and v.kind != "O")
    graph = _graph(body, [_info(state), _info(item)], [after, row])
    if old:
        return d.node("Scan", ["", start.name, sequence.name], 2, body=graph, num_scan_inputs=1)
    directions = [d.integer(0, 2)]
    return d.node("Scan", [start.name, sequence.name], 2, body=graph, num_scan_inputs=1,
                  scan_input_directions=directions)  # fmt: skip


def sequence_map(d: Drawing, op_type: str) -> list[Value]:
    value = d.tensor(["float32"], range(1, 3), least=1)
    found = d.one("SequenceConstruct", [value.name, value.name])
    body = _enter(d)
    item = _parameter(body, value.worlds, "e")
    body.one("Neg", [item.name])
    fill(body, 2)
    graph = _graph(body, [_info(item)], [_ends(body, lambda v: v.kind == "f")])
    made = d.make("SequenceMap", [found.name], body=graph)
    end = d.make("SequenceAt", [made.output[0], d.scalar(0, "int64")])
    return d.group([made, end])


def function(d: Drawing, op_type: str) -> list[Value]:
    """A function of its own, called once or twice, sometimes with an attribute."""
    if d.in_function or d.depth:
        raise RefusedError("functions are made outside")
    value = d.tensor(["float32"], range(4))
    body = _enter(d, in_function=True)
    body.opset = d.opset
    given = _parameter(body, value.worlds, "p")
    fill(body, d.integer(1, 5))
    attributes: list[str] = []
    nodes = body.nodes
    if d.chance(0.4):
        slope = body.make("LeakyRelu", [given.name])
        reference = onnx.AttributeProto(
            name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"
        )
        slope.attribute.append(reference)
        nodes, attributes = [*nodes, slope], ["slope"]
        ends = [slope.output[0]]
    else:
        ends = [_ends(body, lambda v: True).name]
    name = d.name("F")
    imports = [helper.make_opsetid("", d.opset)]
    imports += [helper.make_opsetid(x, 1) for x in sorted(used_domains(nodes))]
    made = helper.make_function("local", name, [given.name], ends, nodes, imports, attributes)
    d.functions.append(made)
    try:
        found = d.node(name, [value.name], domain="local", **_slope(attributes, 0.25))
    except RefusedError:
        d.functions.remove(made)
        raise
    with suppress(RefusedError):
        again = d.find(lambda v: _same_type(v, value) and v.name != value.name)
        d.node(name, [again.name], domain="local", **_slope(attributes, 0.5))
    return found


def _slope(attributes: list[str], number: float) -> dict[str, Any]:
    return {"slope": number} if attributes else {}


MAKERS: dict[str, Callable[[Drawing, str], object]] = {
    "If": branch, "Loop": loop, "Scan": scan, "SequenceMap": sequence_map,
}  # fmt: skip
__all__ = ["MAKERS", "Source", "function"]
