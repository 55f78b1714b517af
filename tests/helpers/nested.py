"""Random models of branches, loops and functions in one another, each from a seed.

Every float is a vector of two, so that anything goes with anything; what is drawn is who reads what from
which scope, what loops carry, and what conditions are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
DEEPEST = 3
_SHAPES: dict[int, list[int]] = {FLOAT: [2], INT: [], BOOL: []}


@dataclass
class Scope:
    """A graph while it is drawn; names of siblings are often the same."""

    rng: np.random.Generator
    opset: int
    depth: int = 0
    count: int = 0
    in_function: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    values: dict[int, list[str]] = field(default_factory=lambda: {FLOAT: [], INT: [], BOOL: []})
    own: set[str] = field(default_factory=set)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    bodies: list[Scope] = field(default_factory=list)

    def inner(self) -> Scope:
        values = {kind: list(names) for kind, names in self.values.items()}
        body = Scope(
            self.rng, self.opset, self.depth + 1, self.count, self.in_function, values=values
        )
        self.bodies.append(body)
        return body

    def leave(self) -> None:
        """Goes on behind the names of the bodies: inference mixes up types where outer ones repeat inner."""
        self.count = max([self.count, *(body.count for body in self.bodies)])

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def pick(self, kind: int) -> str:
        names = self.values[kind]
        # The newest more often, for graphs that are deep.
        share = np.arange(1, len(names) + 1, dtype=float)
        return names[int(self.rng.choice(len(names), p=share / share.sum()))]

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def define(self, kind: int, name: str = "") -> str:
        name = name or self.name()
        self.values[kind].append(name)
        self.own.add(name)
        return name

    def node(self, op_type: str, inputs: Sequence[str], kind: int, **attributes: Any) -> str:
        name = self.name()
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return self.define(kind, name)

    def constant(self, array: np.ndarray, kind: int) -> str:
        name = self.name()
        if (self.in_function and self.depth == 0) or self.chance(0.3):
            tensor = numpy_helper.from_array(array)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            # Initializers are there from the start: names of later ones must not repeat inner ones.
            name = f"w{self.depth}_{self.count}"
            self.weights.append(numpy_helper.from_array(array, name))
        return self.define(kind, name)

    def result(self, kind: int) -> str:
        """Something that the scope itself makes, often what was made last."""
        made = {name for node in self.nodes for name in node.output}
        made |= {tensor.name for tensor in self.weights if self.chance(0.3)}
        found = [name for name in self.values[kind] if name in made and name in self.own]
        if found:
            return found[-1] if self.chance(0.6) else found[self.integer(0, len(found))]
        return self.node("Identity", [self.pick(kind)], kind)

    def fill(self, steps: int) -> None:
        for _ in range(steps):
            STEPS[self.integer(0, len(STEPS))](self)

    def graph(
        self, inputs: Sequence[tuple[str, int]], outputs: Sequence[tuple[str, int]]
    ) -> onnx.GraphProto:
        infos = [[helper.make_tensor_value_info(name, kind, _SHAPES[kind]) for name, kind in each]
                 for each in (inputs, outputs)]  # fmt: skip
        return helper.make_graph(self.nodes, "body", infos[0], infos[1], self.weights)


def _unary(s: Scope) -> None:
    kinds = ("Relu", "Neg", "Abs", "Sin", "Cos", "Identity", "Tanh")
    s.node(kinds[s.integer(0, len(kinds))], [s.pick(FLOAT)], FLOAT)


def _binary(s: Scope) -> None:
    kinds = ("Add", "Sub", "Mul", "Max")
    s.node(kinds[s.integer(0, len(kinds))], [s.pick(FLOAT), s.pick(FLOAT)], FLOAT)


def _weight(s: Scope) -> None:
    arrays = ([1, 0.5], [0, 0], [1, 1], [-2, 3])
    s.constant(np.array(arrays[s.integer(0, 4)], np.float32), FLOAT)


def _whole(s: Scope) -> None:
    if s.chance(0.5):
        s.constant(np.array(s.integer(-1, 3)), INT)
    else:
        s.node("Add", [s.pick(INT), s.pick(INT)], INT)


def _flag(s: Scope) -> None:
    kind = s.integer(0, 6)
    if kind == 0:
        s.constant(np.array(s.chance(0.5)), BOOL)
    elif kind == 1:
        s.node("Less", [s.pick(INT), s.pick(INT)], BOOL)
    elif kind in {2, 3}:
        s.node("Not", [s.pick(BOOL)], BOOL)
    else:
        s.node(("And", "Or")[kind - 4], [s.pick(BOOL), s.pick(BOOL)], BOOL)


def _cast(s: Scope) -> None:
    number = s.node("Cast", [s.pick(INT)], FLOAT, to=FLOAT)
    s.values[FLOAT].remove(number)
    s.node("Add", [s.pick(FLOAT), number], FLOAT)


def _sequence(s: Scope) -> None:
    if s.in_function:
        return
    parts = [s.pick(FLOAT) for _ in range(s.integer(1, 4))]
    name = s.name()
    s.nodes.append(helper.make_node("SequenceConstruct", parts, [name]))
    if s.chance(0.5):
        place = s.constant(np.array(s.integer(-len(parts), len(parts))), INT)
        s.node("SequenceAt", [name, place], FLOAT)
    else:
        joined = s.name()
        s.nodes.append(helper.make_node("ConcatFromSequence", [name], [joined], axis=0, new_axis=1))
        s.node("ReduceMax", [joined], FLOAT, axes=[0], keepdims=0)


def _optional(s: Scope) -> None:
    if s.in_function:
        return
    name = s.name()
    s.nodes.append(helper.make_node("Optional", [s.pick(FLOAT)], [name]))
    if s.chance(0.3):
        s.node("OptionalHasElement", [name], BOOL)
    else:
        s.node("OptionalGetElement", [name], FLOAT)


def _branch(s: Scope) -> None:
    if s.depth >= DEEPEST:
        return
    condition = s.pick(BOOL)
    kinds = [(FLOAT, FLOAT, BOOL)[s.integer(0, 3)] for _ in range(s.integer(1, 4))]
    graphs = []
    state = None
    for turn in range(2):
        body = s.inner()
        if turn == 1 and state is not None and s.chance(0.4):
            # The same again, perhaps with something more.
            body.rng = np.random.default_rng(0)
            body.rng.bit_generator.state = state
        else:
            state = s.rng.bit_generator.state
        body.fill(body.integer(0, 5))
        if turn == 1:
            body.rng = s.rng
            body.fill(body.integer(0, 2) * body.integer(0, 2))
        outputs = _distinct(body, kinds)
        graphs.append(body.graph([], list(zip(outputs, kinds, strict=True))))
    s.leave()
    names = [s.name() for _ in kinds]
    s.nodes.append(
        helper.make_node("If", [condition], names, then_branch=graphs[0], else_branch=graphs[1])
    )
    for name, kind in zip(names, kinds, strict=True):
        s.define(kind, name)


def _distinct(body: Scope, kinds: Sequence[int]) -> list[str]:
    """Results that are no two the same: onnxruntime returns garbage for those."""
    found: list[str] = []
    for kind in kinds:
        name = body.result(kind)
        found.append(body.node("Identity", [name], kind) if name in found else name)
    return found


def _update(body: Scope, kind: int, before: list[str], place: int) -> str:
    """What a carried value becomes: something new, or itself, or another one."""
    own = before[place]
    choice = body.integer(0, 7)
    if choice == 0:
        return body.node("Identity", [own], kind)
    if choice == 1:
        return own
    if choice == 2:
        return before[body.integer(0, len(before))] if kind == FLOAT else own
    if choice == 3 and kind == FLOAT:
        return body.node("Add", [own, body.pick(FLOAT)], kind)
    return body.result(kind)


def _loop(s: Scope) -> None:
    if s.depth >= DEEPEST:
        return
    trip = s.pick(INT) if s.chance(0.4) else s.constant(np.array(s.integer(0, 4)), INT)
    start = ["", s.pick(BOOL), s.constant(np.array(True), BOOL)][s.integer(0, 3)]
    if start or s.chance(0.9):
        trip = s.node("Min", [trip, s.constant(np.array(4), INT)], INT)
    initial = [s.pick(FLOAT) for _ in range(s.integer(0, 4))]
    body = s.inner()
    index, go = body.define(INT), body.define(BOOL)
    before = [body.define(FLOAT) for _ in initial]
    body.fill(body.integer(1, 5))
    after = [_update(body, FLOAT, before, place) for place in range(len(initial))]
    kind = body.integer(0, 5)
    if kind == 0 and start:
        again = body.node("Less", [index, body.constant(np.array(body.integer(0, 3)), INT)], BOOL)
    elif kind == 1 and start:
        again = body.constant(np.array(body.chance(0.7)), BOOL)
        again = body.node("Identity", [again], BOOL)
    elif kind == 2 and start:
        again = body.result(BOOL)
    else:
        again = body.node("Identity", [go], BOOL)
    collected = [body.result(FLOAT) for _ in range(body.integer(0 if initial else 1, 3))]
    outputs = [again]
    for name in [*after, *collected]:
        outputs.append(body.node("Identity", [name], FLOAT) if name in outputs else name)
    graph = body.graph(
        [(index, INT), (go, BOOL), *((name, FLOAT) for name in before)],
        [(again, BOOL), *((name, FLOAT) for name in outputs[1:])],
    )
    s.leave()
    names = [s.name() for _ in outputs[1:]]
    s.nodes.append(helper.make_node("Loop", [trip, start, *initial], names, body=graph))
    for name in names[: len(initial)]:
        s.define(FLOAT, name)
    for name in names[len(initial) :]:
        _flatten(s, name)


def _flatten(s: Scope, name: str) -> None:
    """Makes a vector of rows that may be none."""
    if s.chance(0.2):
        return
    axes = s.constant(np.array([0]), INT)
    s.values[INT].remove(axes)
    s.node("ReduceSum", [name, axes], FLOAT, keepdims=0)


def _scan(s: Scope) -> None:
    if s.depth >= DEEPEST or s.in_function:
        return
    rows = []
    for _ in range(s.integer(1, 3)):
        name = s.constant(s.rng.integers(-2, 3, (3, 2)).astype(np.float32), FLOAT)
        s.values[FLOAT].remove(name)
        rows.append(name)
    initial = [s.pick(FLOAT) for _ in range(s.integer(0, 3))]
    body = s.inner()
    before = [body.define(FLOAT) for _ in initial]
    items = [body.define(FLOAT) for _ in rows]
    body.fill(body.integer(1, 4))
    after = [_update(body, FLOAT, before, place) for place in range(len(initial))]
    # onnxruntime returns garbage for what a Scan carries on without a node.
    after = [body.node("Identity", [name], FLOAT) if name in before else name for name in after]
    collected = [body.result(FLOAT) for _ in range(body.integer(0 if initial else 1, 3))]
    outputs: list[str] = []
    for name in [*after, *collected]:
        outputs.append(body.node("Identity", [name], FLOAT) if name in outputs else name)
    graph = body.graph(
        [(name, FLOAT) for name in (*before, *items)], [(name, FLOAT) for name in outputs]
    )
    s.leave()
    names = [s.name() for _ in outputs]
    more: dict[str, Any] = (
        {"scan_output_directions": [s.integer(0, 2) for _ in collected]} if collected else {}
    )
    node = helper.make_node(
        "Scan", [*initial, *rows], names, body=graph, num_scan_inputs=len(rows),
        scan_input_directions=[s.integer(0, 2) for _ in rows], **more,
    )  # fmt: skip
    s.nodes.append(node)
    for name in names[: len(initial)]:
        s.define(FLOAT, name)
    for name in names[len(initial) :]:
        _flatten(s, name)


def _call(s: Scope) -> None:
    """A call of a function, which is drawn where it is called first."""
    if s.depth or s.in_function:
        return
    if not s.functions or s.chance(0.4):
        _function(s)
    made = s.functions[s.integer(0, len(s.functions))]
    kinds = [BOOL if name.startswith("f") else FLOAT for name in made.input]
    names = [s.name() for _ in made.output]
    inputs = [s.pick(kind) for kind in kinds]
    s.nodes.append(helper.make_node(made.name, inputs, names, domain="local"))
    for name in names:
        s.define(FLOAT, name)


def _function(s: Scope) -> None:
    body = Scope(s.rng, s.opset, count=s.integer(0, 3), in_function=True)
    inputs = [body.define(FLOAT, f"p{place}") for place in range(body.integer(1, 4))]
    inputs.append(body.define(BOOL, "f"))
    body.constant(np.array(body.integer(0, 3)), INT)
    body.fill(body.integer(2, 6))
    outputs = _distinct(body, [FLOAT] * body.integer(1, 4))
    imports = [helper.make_opsetid("", s.opset)]
    # Sometimes twice under two names.
    for _ in range(1 + s.chance(0.3)):
        name = f"F{len(s.functions)}"
        made = helper.make_function("local", name, inputs, outputs, body.nodes, imports)
        s.functions.append(made)


STEPS: tuple[Callable[[Scope], None], ...] = (
    _unary, _unary, _binary, _binary, _weight, _whole, _flag, _flag, _cast,
    _sequence, _optional, _branch, _branch, _branch, _loop, _loop, _scan, _call,
)  # fmt: skip


def draw(seed: int, steps: int = 8) -> onnx.ModelProto:
    """Returns the model of a seed."""
    rng = np.random.default_rng(seed)
    scope = Scope(rng, opset=int(rng.choice([15, 16, 17])))
    inputs = [("x", FLOAT), ("w", FLOAT), ("n", INT), ("c", BOOL), ("d", BOOL)]
    for name, kind in inputs:
        scope.define(kind, name)
    scope.fill(steps)
    made = {name for node in scope.nodes for name in node.output}
    read = {name for node in scope.nodes for name in node.input}
    ends = [
        (name, kind) for kind in (FLOAT, BOOL, INT) for name in scope.values[kind] if name in made
    ]
    ends = [end for end in ends if end[0] not in read or scope.chance(0.1)] or ends[-1:]
    if not ends:
        ends = [(scope.node("Neg", ["x"], FLOAT), FLOAT)]
    graph = scope.graph(inputs, ends)
    imports = [helper.make_opsetid("", scope.opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=scope.functions)


def feeds() -> list[dict[str, np.ndarray]]:
    """Returns what the models take: loops that run never and often, both sides of conditions."""
    x, w = np.array([0.5, -1.25], np.float32), np.array([2, 0.25], np.float32)
    cases = ((0, True, False), (1, False, True), (2, True, True), (3, False, False))
    return [
        {"x": x * (turn + 1), "w": w, "n": np.array(n), "c": np.array(c), "d": np.array(d)}
        for turn, (n, c, d) in enumerate(cases)
    ]
