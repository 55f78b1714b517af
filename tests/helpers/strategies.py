"""Hypothesis strategies that draw ONNX text: a failing example can be pasted into a test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

_UNARY = ("Relu", "Neg", "Abs", "Tanh", "Sigmoid", "Identity", "Floor", "Sign")
_BINARY = ("Add", "Sub", "Mul", "Max", "Min")


class _Drawing:
    """A graph that grows: values by kind, and the lines that make them."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.weights: dict[str, str] = {}
        # Float tensors of shape [N, 4] or [1, 4]; integer vectors of length 2 that are valid targets
        # of Reshape for them; integer scalars.
        self.matrices = ["x"]
        self.constants: list[str] = []
        self.targets: list[str] = []
        self.scalars: list[str] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def add(self, line: str) -> str:
        name = self.name()
        self.lines.append(f"{name} = {line}")
        return name

    def weight(self, kind: str, contents: str = "") -> str:
        name = self.name()
        self.weights[name] = f"{kind} {name}{contents}"
        return name

    def pick(self, values: list[str]) -> str:
        picked: str = self.draw(st.sampled_from(values))
        return picked


def _unary(graph: _Drawing) -> None:
    source = graph.pick(graph.matrices + graph.constants)
    made = graph.add(f"{graph.draw(st.sampled_from(_UNARY))} ({source})")
    (graph.constants if source in graph.constants else graph.matrices).append(made)


def _binary(graph: _Drawing) -> None:
    operands = [graph.pick(graph.matrices + graph.constants) for _ in range(2)]
    made = graph.add(f"{graph.draw(st.sampled_from(_BINARY))} ({operands[0]}, {operands[1]})")
    constant = all(operand in graph.constants for operand in operands)
    (graph.constants if constant else graph.matrices).append(made)


def _weight(graph: _Drawing) -> None:
    graph.constants.append(graph.weight("float[1, 4]"))


def _repeated_weight(graph: _Drawing) -> None:
    graph.constants.append(graph.weight("float[1, 4]", " = {1, 0, -2.5, 4}"))


def _constant_node(graph: _Drawing) -> None:
    graph.constants.append(graph.add("Constant <value = float[1, 4] {0, -0.0, 1, 2}> ()"))


def _size(graph: _Drawing) -> None:
    """Reads one dimension of a matrix, in one of the ways exporters do."""
    source = graph.pick(graph.matrices)
    axis = graph.draw(st.integers(0, 1))
    shape = graph.add(f"Shape ({source})")
    place = graph.weight("int64", f" = {{{axis}}}")
    graph.scalars.append(graph.add(f"Gather <axis = 0> ({shape}, {place})"))


def _target(graph: _Drawing) -> None:
    """A target that keeps the rows of the input: `[N, 4]`, `[N, -1]` or `[-1, 4]`."""
    shape = graph.add("Shape (x)")
    rows = graph.add(f"Gather <axis = 0> ({shape}, {graph.weight('int64', ' = {0}')})")
    axes = graph.weight("int64[1]", " = {0}")
    first = graph.add(f"Unsqueeze ({rows}, {axes})")
    rest = graph.weight("int64[1]", f" = {{{graph.draw(st.sampled_from([4, -1]))}}}")
    graph.targets.append(graph.add(f"Concat <axis = 0> ({first}, {rest})"))


def _reshape(graph: _Drawing) -> None:
    if graph.targets:
        source = graph.add(f"Add ({graph.pick(graph.matrices)}, x)")
        graph.matrices.append(graph.add(f"Reshape ({source}, {graph.pick(graph.targets)})"))


def _scalar_arithmetic(graph: _Drawing) -> None:
    if graph.scalars:
        first, second = graph.pick(graph.scalars), graph.pick(graph.scalars)
        operator = graph.draw(st.sampled_from(("Add", "Sub", "Mul", "Div")))
        if operator == "Div":
            second = graph.weight("int64", f" = {{{graph.draw(st.sampled_from([1, 2, -3]))}}}")
        graph.scalars.append(graph.add(f"{operator} ({first}, {second})"))


def _scaled(graph: _Drawing) -> None:
    if graph.scalars:
        factor = graph.add(f"Cast <to = 1> ({graph.pick(graph.scalars)})")
        graph.matrices.append(graph.add(f"Mul ({graph.pick(graph.matrices)}, {factor})"))


def _transposes(graph: _Drawing) -> None:
    flipped = graph.add(f"Transpose <perm = [1, 0]> ({graph.pick(graph.matrices)})")
    graph.matrices.append(graph.add(f"Transpose <perm = [1, 0]> ({flipped})"))


def _matmul(graph: _Drawing) -> None:
    weight = graph.weight("float[4, 4]")
    if graph.draw(st.booleans()):
        weight = graph.add(f"Transpose <perm = [1, 0]> ({weight})")
    graph.matrices.append(graph.add(f"MatMul ({graph.pick(graph.matrices)}, {weight})"))


def _parts(graph: _Drawing) -> None:
    source = graph.pick(graph.matrices)
    starts, middle, ends = (graph.weight("int64[1]", f" = {{{n}}}") for n in (0, 2, 4))
    axes = graph.weight("int64[1]", " = {1}")
    first = graph.add(f"Slice ({source}, {starts}, {middle}, {axes})")
    second = graph.add(f"Slice ({source}, {middle}, {ends}, {axes})")
    order = (first, second) if graph.draw(st.booleans()) else (second, first)
    graph.matrices.append(graph.add(f"Concat <axis = 1> ({order[0]}, {order[1]})"))


def _branches(graph: _Drawing) -> None:
    outer = graph.pick(graph.matrices)
    constant = graph.draw(st.sampled_from(["flag", "yes", "no"]))
    unary = [graph.draw(st.sampled_from(_UNARY)) for _ in range(2)]
    a, b, c = graph.name(), graph.name(), graph.name()
    made = graph.add(
        f"If ({constant}) <then_branch = t{a} () => (float[?, 4] {a}) {{ {a} = {unary[0]} ({outer}) }}, "
        f"else_branch = e{a} () => (float[?, 4] {b}) <float[1, 4] w{c}> "
        f"{{ {c} = {unary[1]} (w{c}) {b} = Add ({outer}, {c}) }}>"
    )
    graph.matrices.append(made)


def _random(graph: _Drawing) -> None:
    """Something random that must not be merged or folded; it does not reach an output."""
    made = graph.add(f"RandomUniformLike ({graph.pick(graph.matrices)})")
    graph.add(f"Floor ({made})")


_STEPS = (
    _unary,
    _unary,
    _binary,
    _binary,
    _weight,
    _repeated_weight,
    _constant_node,
    _size,
    _target,
    _reshape,
    _scalar_arithmetic,
    _scaled,
    _transposes,
    _matmul,
    _parts,
    _branches,
    _random,
)


@st.composite
def graphs(draw: st.DrawFn, max_steps: int = 12) -> str:
    """Draws the text of a model with a matrix `x: float[N, 4]`, a flag, and one to three outputs."""
    graph = _Drawing(draw)
    for step in draw(st.lists(st.sampled_from(_STEPS), min_size=1, max_size=max_steps)):
        step(graph)
    pool = [*graph.matrices[1:], *graph.constants, *graph.scalars]
    pool = [value for value in pool if value not in graph.weights]
    outputs = []
    if pool:
        for value in draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3, unique=True)):
            outputs.append(f"{'int64' if value in graph.scalars else 'float[?, 4]'} {value}")
    else:
        graph.lines.append("y = Exp (x)")
        outputs.append("float[N, 4] y")
    weights = ", ".join(["bool yes = {1}", "bool no = {0}", *graph.weights.values()])
    body = "\n  ".join(graph.lines)
    version = draw(st.sampled_from([13, 17, 21]))
    return (
        f'<ir_version: 8, opset_import: ["" : {version}]>\n'
        f"g (float[N, 4] x, bool flag) => ({', '.join(outputs)})\n<{weights}> {{\n  {body}\n}}"
    )
