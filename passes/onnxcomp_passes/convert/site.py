"""A node on its way to another opset: what changes ask about it, and what they do to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from onnxcomp.ir.ops import UNKNOWN, array, attribute, input_at
from onnxcomp_passes.convert.ranks import rank_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Protocol

    from onnxcomp.ir import Edit, ir

    class Knowledge(Protocol):
        """What is known of values; a `ShapeMap` is one."""

        def dtype(self, value: ir.Value | None) -> ir.DataType | None:
            """Returns the element type of a value, None when it is unknown."""
            ...

        def rank(self, value: ir.Value | None) -> int | None:
            """Returns the number of dimensions."""
            ...

        def shape(self, value: ir.Value | None) -> Sequence[int | str | None] | None:
            """Returns the dimensions of a value."""
            ...


# Contents of larger tensors are no axes, pads or sizes.
_LIMIT = 4096


class Obstacle(Exception):  # noqa: N818 - it says why, nobody sees it raised
    """Why a node cannot be brought to the other opset; raised by changes, reported by the converter."""


@dataclass
class Site:
    """One node, with the means to ask and to change.

    Attributes:
        node: The node.
        edit: How to change it.
        known: Types and shapes of the model before any change.
        target: The opset that the model gets.
        made: Constants that changes made, to be shared: by scope, type, shape and contents.
        original: The operator it was when the conversion began.
    """

    node: ir.Node
    edit: Edit
    known: Knowledge
    target: int
    made: dict[Any, ir.Value] = field(default_factory=dict)
    original: str = ""

    def __post_init__(self) -> None:
        self.original = self.node.op_type

    def refuse(self, reason: str) -> NoReturn:
        """Ends the conversion of this node."""
        raise Obstacle(reason)

    # -- asking

    def attribute(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - any kind
        """Returns an attribute as a plain value; one that a caller of the function sets is an obstacle."""
        found = attribute(self.node, name, default)
        if found is UNKNOWN:
            self.refuse(f"its attribute {name} is set by the caller of the function")
        return found

    def input(self, index: int) -> ir.Value | None:
        """Returns an input, None when it is left out."""
        return input_at(self.node, index)

    def array(self, index: int) -> np.ndarray | None:
        """Returns the contents of a small constant input."""
        return array(self.input(index), limit=_LIMIT)

    def dtype(self) -> np.dtype[Any]:
        """Returns the element type of the first input; not to know it is an obstacle."""
        found = self.known.dtype(self.input(0))
        if found is None:
            self.refuse("the element type of its input is not known")
        return found.numpy()

    def rank(self, index: int) -> int | None:
        """Returns the number of dimensions of an input, None when it is not known."""
        return rank_of(self.input(index), self.known)

    def dims(self, index: int = 0) -> Sequence[int | str | None] | None:
        """Returns the dimensions of an input, symbols and unknown ones among them."""
        return self.known.shape(self.input(index))

    def has_output(self, index: int) -> bool:
        """Whether an output is there and somebody wants it."""
        if index >= len(self.node.outputs):
            return False
        value = self.node.outputs[index]
        return bool(value.name) and (bool(value.uses()) or value.is_graph_output())

    # -- changing

    def drop(self, *names: str) -> None:
        """Removes attributes."""
        for name in names:
            self.edit.set_attribute(self.node, name, None)

    def put(self, **values: object) -> None:
        """Sets attributes."""
        for name, value in values.items():
            self.edit.set_attribute(self.node, name, value)

    def feed(self, index: int, contents: np.ndarray, wish: str) -> None:
        """Makes an input a constant; equal constants of a scope are one."""
        self.edit.set_input(self.node, index, self.constant(contents, wish))

    def constant(self, contents: np.ndarray, wish: str) -> ir.Value:
        """Returns a constant of the node's scope."""
        graph = self.node.graph
        if graph is None:
            self.refuse("it is in no graph")
        key = (graph, contents.dtype, contents.shape, contents.tobytes())
        if key not in self.made:
            name = f"{self.node.outputs[0].name}_{wish}"
            self.made[key] = self.edit.initializer(contents, name=name, graph=graph)
        return self.made[key]

    def move(self, attributes: Mapping[str, int], dtype: type[np.generic] = np.int64) -> None:
        """Turns attributes into constant inputs, by the index of the input."""
        for name, index in attributes.items():
            found = self.attribute(name)
            if found is not None:
                self.feed(index, np.asarray(found, dtype), name)
                self.drop(name)
