"""Random models that compute with sizes, and expressions of sizes put into numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.analysis.symbolic.dims import Atom, Dim, lone_atom

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.analysis.symbolic.dims import Item


class UndefinedError(Exception):
    """The expression has no value here: the model would have failed, or nobody said it yet."""


def evaluate(item: Item, sizes: dict[str, int]) -> int:
    """Returns the number that an expression stands for.

    Raises:
        UndefinedError: If it has none.
    """
    if item is None:
        raise UndefinedError
    if isinstance(item, int):
        return item
    return sum(factor * prod(_atom(atom, sizes) for atom in atoms) for atoms, factor in item.terms)


def _atom(atom: Atom, sizes: dict[str, int]) -> int:
    if not atom.operator:
        if atom.text not in sizes:
            raise UndefinedError
        return sizes[atom.text]
    parts = [evaluate(part, sizes) for part in atom.operands]
    return _OPERATIONS[atom.operator](parts)


def divided(parts: list[int]) -> int:
    if parts[1] == 0:
        raise UndefinedError
    found = abs(parts[0]) // abs(parts[1])
    return found if (parts[0] < 0) == (parts[1] < 0) else -found


def broadcast(parts: list[int]) -> int:
    others = {part for part in parts if part != 1}
    if len(others) > 1:
        raise UndefinedError
    return others.pop() if others else 1


_OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "div": divided,
    "max": max,
    "min": min,
    "join": broadcast,
    "copy": lambda parts: parts[0] or parts[1],
}


def check(item: Item, actual: int, sizes: dict[str, int]) -> bool:
    """Whether a size that was seen fits; sizes that nobody knows get their number when first seen."""
    atom = lone_atom(item)
    if atom is not None and not atom.operator:
        return sizes.setdefault(atom.text, actual) == actual
    try:
        return evaluate(item, sizes) == actual
    except UndefinedError:
        return isinstance(item, Dim)


def drawn_feeds(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Feeds for a drawn model; two inputs share N, and the runtime does not mind when they differ."""
    n, m, k, p, q = rng.integers(0, 5, 5)
    return {
        "x": np.ones((n, m, 4), np.float32),
        "y": np.ones((rng.choice([n, 1, 2]), k), np.float32),
        "z": np.ones((q, rng.choice([m, 1]), 3, p), np.float32),
    }


def breaks_the_standard(source: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> bool:
    """Whether onnxruntime let something pass, or did something, that the standard does not allow.

    Of a tensor without elements it reduces no axis at all, and a Concat takes one whatever its other
    dimensions are.
    """
    empty = any(not array.size for array in arrays.values())
    if empty and any(node.op_type == "ReduceSum" for node in source.graph.node):
        return True
    return any(_is_mismatch(node, arrays) for node in source.graph.node)


def _is_mismatch(node: onnx.NodeProto, arrays: dict[str, np.ndarray]) -> bool:
    if node.op_type != "Concat":
        return False
    shapes = [list(arrays[name].shape) for name in node.input if name in arrays]
    for shape in shapes:
        shape[node.attribute[0].i] = 0
    return any(shape != shapes[0] for shape in shapes)


@dataclass
class Sizing:
    """A model while it is drawn: `values` are tensors of a rank, `numbers` are scalars and lists."""

    seed: int
    rng: np.random.Generator = field(init=False)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    values: list[tuple[str, int]] = field(default_factory=list)
    scalars: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def constant(self, array: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(array, dtype), name))
        return name

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def add(self, rank: int, operator: str, inputs: list[str], **attributes: Any) -> None:
        self.values.append((self.node(operator, inputs, **attributes), rank))

    def pick(self, least: int = 0, most: int = 4) -> tuple[str, int]:
        fit = [value for value in self.values if least <= value[1] <= most]
        return fit[int(self.rng.integers(len(fit)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def size(self) -> str:
        """A scalar that depends on sizes."""
        if self.scalars and self.chance(0.4):
            return self.scalars[int(self.rng.integers(len(self.scalars)))]
        name, rank = self.pick(1)
        shape = self.node("Shape", [name])
        place = int(self.rng.integers(-rank, rank))
        found = self.node("Gather", [shape, self.constant(place)], axis=0)
        if self.chance(0.5):
            operator = str(self.rng.choice(["Add", "Sub", "Mul", "Div", "Max", "Min", "Mod"]))
            other = self.constant(int(self.rng.integers(1, 4)))
            if self.chance(0.4) and self.scalars and operator not in {"Div", "Mod"}:
                other = self.scalars[int(self.rng.integers(len(self.scalars)))]
            found = self.node(operator, [found, other])
        self.scalars.append(found)
        return found

    def list_of(self, count: int, *extra: int) -> str:
        """A list of sizes and numbers."""
        parts = []
        for _ in range(count):
            if self.chance(0.6):
                parts.append(self.node("Unsqueeze", [self.size(), self.constant([0])]))
            else:
                parts.append(self.constant([int(self.rng.choice([1, 2, 3, *extra]))]))
        return self.node("Concat", parts, axis=0)

    def model(self, steps: int, accepts: Callable[[onnx.ModelProto], bool]) -> onnx.ModelProto:
        """Draws steps; one after which the model is not accepted is taken back."""
        self.values += [(name, len(shape)) for name, shape in INPUTS.items()]
        for _ in range(steps):
            lists: list[list[Any]] = [self.nodes, self.weights, self.values, self.scalars]
            before = [len(found) for found in lists]
            STEPS[int(self.rng.integers(len(STEPS)))](self)
            if not accepts(self.proto()):
                for found, length in zip(lists, before, strict=True):
                    del found[length:]
        return self.proto()

    def proto(self) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in INPUTS.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(node.output[0]) for node in self.nodes]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


INPUTS: dict[str, list[int | str | None]] = {
    "x": ["N", "M", 4],
    "y": ["N", "K"],
    "z": [None, "M", 3, "P"],
}


def _broadcast_step(d: Sizing) -> None:
    (a, one), (b, other) = d.pick(), d.pick()
    d.add(max(one, other), str(d.rng.choice(["Add", "Mul", "Max"])), [a, b])


def _unary(d: Sizing) -> None:
    name, rank = d.pick()
    d.add(rank, "Neg", [name])


def _transpose(d: Sizing) -> None:
    name, rank = d.pick(2)
    d.add(rank, "Transpose", [name], perm=[int(axis) for axis in d.rng.permutation(rank)])


def _reshape(d: Sizing) -> None:
    name, _ = d.pick()
    rank = int(d.rng.integers(1, 4))
    zero = int(d.rng.integers(2)) if d.chance(0.2) else 0
    d.add(rank, "Reshape", [name, d.list_of(rank, -1, 0)], allowzero=zero)


def _reshape_back(d: Sizing) -> None:
    """To the shape of something else, with a -1 in it perhaps."""
    (name, _), (like, rank) = d.pick(1), d.pick(1)
    shape = d.node("Shape", [like])
    if d.chance(0.5):
        place = int(d.rng.integers(rank))
        mask = d.constant([at == place for at in range(rank)], bool)
        shape = d.node("Where", [mask, d.constant([-1]), shape])
    d.add(rank, "Reshape", [name, shape])


def _flatten(d: Sizing) -> None:
    name, rank = d.pick(1)
    d.add(2, "Flatten", [name], axis=int(d.rng.integers(0, rank + 1)))


def _concat(d: Sizing) -> None:
    name, rank = d.pick(1)
    same = [other for other, found in d.values if found == rank and d.chance(0.3)][:2]
    d.add(rank, "Concat", [name, *same, name], axis=int(d.rng.integers(-rank, rank)))


def _slice(d: Sizing) -> None:
    name, rank = d.pick(1)
    start = d.constant([int(d.rng.integers(-3, 3))])
    end = d.constant([int(d.rng.choice([-1, 1, 2, 5, 2**63 - 1, 2**31 - 1]))])
    if d.chance(0.4):
        end = d.node("Unsqueeze", [d.size(), d.constant([0])])
    step = d.constant([int(d.rng.choice([1, 1, 1, 2]))])
    axis = d.constant([int(d.rng.integers(-rank, rank))])
    d.add(rank, "Slice", [name, start, end, axis, step])


def _expand(d: Sizing) -> None:
    name, rank = d.pick()
    wide = int(d.rng.integers(1, 4))
    d.add(max(rank, wide), "Expand", [name, d.list_of(wide)])


def _tile(d: Sizing) -> None:
    name, rank = d.pick(1)
    d.add(rank, "Tile", [name, d.list_of(rank)])


def _pad(d: Sizing) -> None:
    name, rank = d.pick(1)
    pads = [int(pad) for pad in d.rng.integers(-1, 3, 2 * rank)]
    d.add(rank, "Pad", [name, d.constant(pads)])


def _fill(d: Sizing) -> None:
    rank = int(d.rng.integers(1, 3))
    value = numpy_helper.from_array(np.ones(1, np.float32))
    d.add(rank, "ConstantOfShape", [d.list_of(rank)], value=value)


def _range(d: Sizing) -> None:
    start = d.size() if d.chance(0.3) else d.constant(0)
    counted = d.node("Range", [start, d.size(), d.constant(1)])
    d.add(1, "Cast", [counted], to=1)


def _reduce(d: Sizing) -> None:
    name, rank = d.pick(1)
    axis, keep = int(d.rng.integers(-rank, rank)), int(d.rng.integers(2))
    d.add(rank - 1 + keep, "ReduceSum", [name, d.constant([axis])], keepdims=keep)


def _gather(d: Sizing) -> None:
    name, rank = d.pick(1)
    places = d.constant(np.zeros((2, 1)[: int(d.rng.integers(3))], int))
    more = len(d.weights[-1].dims)
    if rank - 1 + more <= 4:
        d.add(rank - 1 + more, "Gather", [name, places], axis=int(d.rng.integers(-rank, rank)))


def _ones(d: Sizing) -> None:
    name, rank = d.pick(0, 3)
    axis = int(d.rng.integers(-rank - 1, rank + 1))
    d.add(rank + 1, "Unsqueeze", [name, d.constant([axis])])
    if d.chance(0.5):
        d.add(rank, "Squeeze", [d.values[-1][0], d.constant([axis])])


def _matmul(d: Sizing) -> None:
    name, rank = d.pick(2)
    order = [*range(rank - 2), rank - 1, rank - 2]
    turned = d.node("Transpose", [name], perm=order)
    d.add(rank, "MatMul", [name, turned])


def _conv(d: Sizing) -> None:
    name, rank = d.pick(3, 4)
    kernel = [int(k) for k in d.rng.integers(1, 4, rank - 2)]
    channels = 3 if rank == 4 else 4
    pads = [int(pad) for pad in d.rng.integers(0, 2, 2 * (rank - 2))]
    strides = [int(stride) for stride in d.rng.integers(1, 3, rank - 2)]
    if d.chance(0.5):
        d.add(rank, "MaxPool", [name], kernel_shape=kernel, strides=strides)
        return
    if d.chance(0.5):
        name = d.node("Transpose", [name], perm=[0, *range(2, rank), 1])
    weight = d.constant(np.ones((2, channels, *kernel)), np.float32)
    d.add(rank, "Conv", [name, weight], pads=pads, strides=strides)


def _resize(d: Sizing) -> None:
    name, rank = d.pick(2)
    if d.chance(0.5):
        scales = d.constant([1.0] * (rank - 1) + [float(d.rng.choice([1, 2, 1.5]))], np.float32)
        d.add(rank, "Resize", [name, "", scales], mode="nearest")
    else:
        d.add(rank, "Resize", [name, "", "", d.list_of(rank)], mode="nearest")


STEPS: tuple[Callable[[Sizing], None], ...] = (
    _broadcast_step, _unary, _transpose, _reshape, _reshape, _reshape_back, _reshape_back, _flatten,
    _concat, _slice, _slice, _expand, _tile, _pad, _fill, _range, _reduce, _gather, _ones, _ones, _matmul,
    _conv, _resize,
)  # fmt: skip
