"""Hypothesis strategy: graphs of operators that work in any order of dimensions, full of Transposes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

    Shape = tuple[int | str, ...]

UNARY = ("Relu", "Neg", "Tanh", "Sigmoid", "Abs", "Softplus", "Clip", "Cast <to = 1>", "Dropout")
BINARY = ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Less", "PRelu", "Where", "Pow")
REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ArgMax")


class Drawing:
    """A graph that grows: float values with their shapes, and the lines that make them."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.weights: list[str] = []
        self.values: dict[str, Shape] = {"x": ("N", 2, 3, 4)}
        self.count = 0

    def any(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def pick(self, least: int = 1) -> tuple[str, Shape]:
        found = [name for name, shape in self.values.items() if len(shape) >= least]
        # The newest ones more often: chains are what matters.
        name = self.any(*(found + found[-3:] * 2))
        return name, self.values[name]

    def add(self, line: str, shape: Shape, before: str = "") -> str:
        name = self.name()
        self.lines.append(f"{before}{name} = {line}")
        self.values[name] = shape
        return name

    def ints(self, numbers: list[int]) -> str:
        name = self.name()
        self.weights.append(f"int64[{len(numbers)}] {name} = {{{', '.join(map(str, numbers))}}}")
        return name

    def floats(self, shape: Shape) -> str:
        name = self.name()
        self.weights.append(
            f"float[{', '.join(map(str, shape))}] {name}" if shape else f"float {name} = {{0.5}}"
        )
        return name

    def axis(self, shape: Shape, *, fixed: bool = False) -> int:
        """An axis; one of known size where asked for, -1 when there is none."""
        found = [at for at, dim in enumerate(shape) if not fixed or isinstance(dim, int)]
        return self.any(*found) if found else -1


def transpose(graph: Drawing) -> None:
    name, shape = graph.pick(2)
    order = list(range(len(shape)))
    usual = {4: ([0, 2, 3, 1], [0, 3, 1, 2]), 3: ([0, 2, 1], [1, 0, 2]), 2: ([1, 0], [1, 0])}
    drawn = graph.draw(st.permutations(order)) if graph.any(0, 0, 1) else None
    order = drawn or graph.any(*usual.get(len(shape), (order,)))
    graph.add(f"Transpose <perm = {order}> ({name})", tuple(shape[axis] for axis in order))


def unary(graph: Drawing) -> None:
    name, shape = graph.pick()
    graph.add(f"{graph.any(*UNARY)} ({name})", shape)


def binary(graph: Drawing) -> None:
    name, shape = graph.pick()
    operator = graph.any(*BINARY)
    others = [other for other, found in graph.values.items() if found == shape]
    if graph.any(0, 1):
        other = graph.any(*others)
    else:
        kept = shape[graph.draw(st.integers(0, len(shape))) :]
        other = graph.floats(
            tuple(dim if isinstance(dim, int) and graph.any(0, 1) else 1 for dim in kept)
        )
    pair = (name, other) if operator == "PRelu" or graph.any(0, 1) else (other, name)
    if operator == "Less":
        flags = graph.name()
        graph.lines.append(f"{flags} = Less ({pair[0]}, {pair[1]})")
        graph.add(f"Cast <to = 1> ({flags})", shape)
    elif operator == "Where":
        flags = graph.name()
        graph.lines.append(f"{flags} = Less ({name}, {name})")
        graph.add(f"Where ({flags}, {pair[0]}, {pair[1]})", shape)
    elif operator == "Pow":
        graph.add(f"Pow ({name}, {graph.floats(())})", shape)
    else:
        graph.add(f"{operator} ({pair[0]}, {pair[1]})", shape)


def concat(graph: Drawing) -> None:
    name, shape = graph.pick()
    axis = graph.axis(shape, fixed=True)
    if axis < 0:
        return
    size = shape[axis]
    assert isinstance(size, int)
    others = [other for other, found in graph.values.items() if found == shape]
    grown = (*shape[:axis], 2 * size, *shape[axis + 1 :])
    shown = graph.any(axis, axis - len(shape))
    graph.add(f"Concat <axis = {shown}> ({name}, {graph.any(*others)})", grown)


def split(graph: Drawing) -> None:
    name, shape = graph.pick()
    axis = graph.axis(shape, fixed=True)
    size = shape[axis] if axis >= 0 else 0
    if not isinstance(size, int) or size < 2:
        return
    sizes = graph.ints([1, size - 1])
    first, second = graph.name(), graph.name()
    graph.lines.append(f"{first}, {second} = Split <axis = {axis}> ({name}, {sizes})")
    for part, length in ((first, 1), (second, size - 1)):
        graph.values[part] = (*shape[:axis], length, *shape[axis + 1 :])


def slices(graph: Drawing) -> None:
    name, shape = graph.pick()
    axis = graph.axis(shape, fixed=True)
    size = shape[axis] if axis >= 0 else 0
    if not isinstance(size, int) or size < 2:
        return
    arguments = [graph.ints([number]) for number in (1, size, graph.any(axis, axis - len(shape)))]
    cut = (*shape[:axis], size - 1, *shape[axis + 1 :])
    graph.add(f"Slice ({name}, {', '.join(arguments)})", cut)


def pad(graph: Drawing) -> None:
    name, shape = graph.pick()
    pads = [graph.any(0, 0, 1) if isinstance(dim, int) else 0 for dim in shape * 2]
    rank = len(shape)
    grown = tuple(
        dim + pads[at] + pads[rank + at] if isinstance(dim, int) else dim
        for at, dim in enumerate(shape)
    )
    graph.add(f"Pad ({name}, {graph.ints(pads)})", grown)


def reduction(graph: Drawing) -> None:
    name, shape = graph.pick(2)
    operator, axis, keeps = graph.any(*REDUCTIONS), graph.axis(shape, fixed=True), graph.any(0, 1)
    if axis < 0:
        return
    made = (*shape[:axis], *((1,) if keeps else ()), *shape[axis + 1 :])
    if operator == "ArgMax":
        found = graph.name()
        graph.lines.append(f"{found} = ArgMax <axis = {axis}, keepdims = {keeps}> ({name})")
        graph.add(f"Cast <to = 1> ({found})", made)
    elif operator == "ReduceSum":
        graph.add(f"ReduceSum <keepdims = {keeps}> ({name}, {graph.ints([axis])})", made)
    else:
        shown = graph.any(axis, axis - len(shape))
        graph.add(f"{operator} <axes = [{shown}], keepdims = {keeps}> ({name})", made)


def softmax(graph: Drawing) -> None:
    name, shape = graph.pick()
    axis = graph.axis(shape)
    graph.add(f"{graph.any('Softmax', 'LogSoftmax')} <axis = {axis}> ({name})", shape)


def squeezes(graph: Drawing) -> None:
    name, shape = graph.pick()
    ones = [at for at, dim in enumerate(shape) if dim == 1]
    if ones and len(shape) > 1:
        axis = graph.any(*ones)
        graph.add(f"Squeeze ({name}, {graph.ints([axis])})", (*shape[:axis], *shape[axis + 1 :]))
    elif len(shape) < 5:
        axis = graph.draw(st.integers(0, len(shape)))
        grown = (*shape[:axis], 1, *shape[axis:])
        graph.add(f"Unsqueeze ({name}, {graph.ints([axis])})", grown)


def reshape(graph: Drawing) -> None:
    """Merges two neighbours, or splits a dimension."""
    name, shape = graph.pick(2)
    axis = graph.draw(st.integers(0, len(shape) - 2))
    pair = shape[axis : axis + 2]
    if "N" in pair:
        return
    first, second = (int(dim) for dim in pair)
    made = (*shape[:axis], first * second, *shape[axis + 2 :])
    if graph.any(0, 1):
        made = (*shape[:axis], second, first, *shape[axis + 2 :])
    target = [dim if isinstance(dim, int) else -1 for dim in made]
    graph.add(f"Reshape ({name}, {graph.ints(target)})", made)


def gather(graph: Drawing) -> None:
    name, shape = graph.pick(2)
    axis = graph.axis(shape, fixed=True)
    size = shape[axis] if axis >= 0 else 0
    if not isinstance(size, int) or size < 1:
        return
    if graph.any(0, 1):
        index = graph.ints([size - 1, 0, -1])
        made = (*shape[:axis], 3, *shape[axis + 1 :])
    else:
        index = graph.name()
        graph.weights.append(f"int64 {index} = {{{size - 1}}}")
        made = (*shape[:axis], *shape[axis + 1 :])
    graph.add(f"Gather <axis = {axis}> ({name}, {index})", made)


def resize(graph: Drawing) -> None:
    name, shape = graph.pick(4)
    if len(shape) != 4:
        return
    axes = [axis for axis in (1, 2, 3) if isinstance(shape[axis], int)]
    factors = [2 if axis in axes and graph.any(0, 1) else 1 for axis in range(4)]
    scales = graph.name()
    graph.weights.append(f"float[4] {scales} = {{{', '.join(map(str, factors))}}}")
    made = tuple(
        dim * factor if isinstance(dim, int) else dim
        for dim, factor in zip(shape, factors, strict=True)
    )
    graph.add(f'Resize <mode = "nearest", nearest_mode = "floor"> ({name}, , {scales})', made)


def quantized(graph: Drawing) -> None:
    name, shape = graph.pick(2)
    axis = graph.axis(shape, fixed=True)
    if axis < 0:
        return
    scale, zero, low = graph.name(), graph.name(), graph.name()
    size = shape[axis]
    assert isinstance(size, int)
    numbers = ", ".join(f"0.{1 + n % 9}" for n in range(size))
    graph.weights.append(f"float[{size}] {scale} = {{{numbers}}}")
    graph.weights.append(f"int8[{size}] {zero} = {{{', '.join(['3'] * size)}}}")
    graph.lines.append(f"{low} = QuantizeLinear <axis = {axis}> ({name}, {scale}, {zero})")
    graph.add(f"DequantizeLinear <axis = {axis}> ({low}, {scale}, {zero})", shape)


def repeated(graph: Drawing) -> None:
    name, shape = graph.pick()
    if graph.any(0, 1):
        repeats = [graph.any(1, 1, 2) if isinstance(dim, int) else 1 for dim in shape]
        made = tuple(
            dim * times if isinstance(dim, int) else dim
            for dim, times in zip(shape, repeats, strict=True)
        )
        graph.add(f"Tile ({name}, {graph.ints(repeats)})", made)
    else:
        wanted = [graph.any(dim, 3) if dim == 1 else 1 for dim in shape]
        made = tuple(want if dim == 1 else dim for dim, want in zip(shape, wanted, strict=True))
        graph.add(f"Expand ({name}, {graph.ints([int(dim) for dim in wanted])})", made)


def running(graph: Drawing) -> None:
    name, shape = graph.pick()
    axis = graph.name()
    graph.weights.append(f"int64 {axis} = {{{graph.axis(shape)}}}")
    graph.add(f"CumSum ({name}, {axis})", shape)


def normalized(graph: Drawing) -> None:
    name, shape = graph.pick(2)
    if isinstance(shape[-1], int):
        scale, bias = graph.floats(shape[-1:]), graph.floats(shape[-1:])
        graph.add(f"LayerNormalization <axis = -1> ({name}, {scale}, {bias})", shape)


def sizes(graph: Drawing) -> None:
    name, shape = graph.pick()
    found, numbers = graph.name(), graph.name()
    graph.lines.append(f"{found} = Shape ({name})")
    graph.lines.append(f"{numbers} = Cast <to = 1> ({found})")
    graph.values[numbers] = (len(shape),)


def product(graph: Drawing) -> None:
    name, shape = graph.pick(2)
    total = 1
    for dim in shape[1:]:
        total *= int(dim) if dim != "N" else 0
    if shape[0] != "N" or not total:
        return
    target = graph.any(f"Reshape ({name}, {graph.ints([-1, total])})", f"Flatten ({name})")
    flat = graph.name()
    graph.lines.append(f"{flat} = {target}")
    operator = graph.any("MatMul", "Gemm", "Gemm <transB = 1>")
    weight = graph.floats((3, total) if "trans" in operator else (total, 3))
    graph.add(f"{operator} ({flat}, {weight})", ("N", 3))


STEPS = (
    *(transpose,) * 9,
    *(unary,) * 2,
    *(binary,) * 3,
    *(concat, split, slices, pad, reduction, softmax, squeezes, reshape, gather, resize),
    *(quantized, repeated, running, normalized, sizes, product),
)


@st.composite
def layout_graphs(draw: st.DrawFn, max_steps: int = 14) -> str:
    """Draws the text of a model with an input `x: float[N, 2, 3, 4]` and one to three outputs."""
    graph = Drawing(draw)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=3, max_size=max_steps)):
        step(graph)
    made = [name for name in graph.values if name != "x"]
    if not made:
        graph.add("Relu (x)", graph.values["x"])
        made = [*graph.values][1:]
    kept = draw(st.lists(st.sampled_from(made[:-1] or made), max_size=2, unique=True))
    outputs = ", ".join(
        f"float[{', '.join(map(str, graph.values[name]))}] {name}"
        for name in dict.fromkeys([made[-1], *kept])
    )
    body = "\n  ".join(graph.lines)
    return (
        f'<ir_version: 8, opset_import: ["" : 17]>\n'
        f"g (float[N, 2, 3, 4] x) => ({outputs})\n<{', '.join(graph.weights)}> {{\n  {body}\n}}"
    )
