"""Gives pieces of a model another floating point type, with as few conversions as there can be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import attribute, constant, is_op, is_read
from onnxcomp.quant.half.sites import slots_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.ir import Edit, Model
    from onnxcomp.quant.half.ranges import Format
    from onnxcomp.quant.half.sites import Owner, Site, Sites

_FLOAT = ir.DataType.FLOAT


@dataclass
class Rewriting:
    """One model while it is rewritten.

    Attributes:
        model: The model.
        edit: The way to change it.
        sites: Its pieces.
        chosen: Those that get 16 bits.
        target: The 16-bit type.
        dtype: Element types before.
    """

    model: Model
    edit: Edit
    sites: Sites
    chosen: set[Site]
    target: Format
    dtype: Callable[[ir.Value], Any]
    _left: list[ir.Node] = field(default_factory=list)
    _made: set[ir.Node] = field(default_factory=set)

    def run(self) -> None:
        """Rewrites the model."""
        narrowing = [node for node in self.model.nodes() if self._narrows(node)]
        for value in list(self.sites.maker):
            self._settle(value)
        for value in self.constants():
            self._settle_constant(value)
        for site in self.chosen:
            self._retype(site)
        for node in narrowing:
            self._drop_narrowing(node)
        for node in self._left:
            if node.graph is not None and not any(map(is_read, node.outputs)):
                self.edit.remove(node)
        self.edit.count("nodes in 16 bits", len({s.node for s in self.chosen if s.node}))

    def _narrows(self, node: ir.Node) -> bool:
        """Whether a node of the model was a conversion to the 16-bit type already."""
        made = node.outputs[0] if node.outputs else None
        return is_op(node, "Cast") and made is not None and self.dtype(made) == self.target.dtype

    def is_half(self, slot: tuple[Owner, int]) -> bool:
        """Whether a place wants 16 bits."""
        return self.sites.reader.get(slot) in self.chosen

    def _settle(self, value: ir.Value) -> None:
        """Lets each reader of a value read the type that it wants."""
        is_half = self.sites.maker[value] in self.chosen
        source = self._half_source(value)
        slots = [slot for slot in slots_of(value) if slot not in self.sites.indifferent]
        if source is not None:
            others = [slot for slot in slots if self.is_half(slot)]
        else:
            others = [slot for slot in slots if self.is_half(slot) != is_half]
        if others:
            other = self._other(value, source, is_half=is_half)
            self._redirect(value, other, others)
        maker = value.producer()
        if is_op(maker, "Cast") and maker is not None and maker not in self._left:
            self._left.append(maker)

    def _half_source(self, value: ir.Value) -> ir.Value | None:
        """The 16-bit value that a value was made of by a Cast alone."""
        maker = value.producer()
        if maker is None or not is_op(maker, "Cast"):
            return None
        source = maker.inputs[0]
        found = source is not None and self.dtype(source) == self.target.dtype
        return source if found else None

    def _other(self, value: ir.Value, source: ir.Value | None, *, is_half: bool) -> ir.Value:
        """Returns a value in the type that its maker does not give."""
        if source is not None:
            return source
        maker = value.producer()
        dtype = _FLOAT if is_half else self.target.dtype
        if maker is not None and is_op(maker, "Cast"):
            given = maker.inputs[0]
            if given is not None and self.dtype(given) != _FLOAT:
                return self.cast(given, dtype, value)
        return self.cast(value, dtype, value)

    def cast(self, value: ir.Value, dtype: ir.DataType, like: ir.Value) -> ir.Value:
        """Converts a value, right behind what makes `like`."""
        maker, graph = like.producer(), like.graph
        first = None if graph is None else next(iter(graph), None)
        node = self.edit.insert(
            "Cast",
            [value],
            after=maker,
            before=first if maker is None else None,
            graph=graph if maker is None else None,
            outputs=[f"{like.name}_{dtype.name.lower()}"],
            attributes={"to": ir.AttrInt64("to", int(dtype))},
            like=like,
        )
        self._made.add(node)
        self.edit.set_type(node.outputs[0], dtype)
        return node.outputs[0]

    def _redirect(self, value: ir.Value, other: ir.Value, slots: list[tuple[Owner, int]]) -> None:
        for owner, index in slots:
            if isinstance(owner, ir.Node):
                self.edit.set_input(owner, index, other)
        if any(isinstance(owner, ir.Graph) for owner, _ in slots):
            readers = [(use.node, use.idx) for use in value.uses()]
            dtype = other.dtype
            self.edit.replace(value, other)
            for node, index in readers:
                self.edit.set_input(node, index, value)
            if dtype is not None:
                self.edit.set_type(other, dtype)

    def constants(self) -> list[ir.Value]:
        """Returns the constants that chosen sites read."""
        found: dict[ir.Value, None] = {}
        for site in self.chosen:
            for value in site.reads():
                tensor = constant(value)
                if tensor is not None and tensor.dtype == _FLOAT and value not in self.sites.maker:
                    found[value] = None
        return list(found)

    def _settle_constant(self, value: ir.Value) -> None:
        tensor, graph = constant(value), value.graph
        if tensor is None or graph is None:
            return
        slots = slots_of(value)
        wanted = [slot for slot in slots if self.is_half(slot)]
        half = narrowed(tensor, self.target)
        everyone = all(s in self.sites.indifferent or self.is_half(s) for s in slots)
        if value.is_initializer() and everyone and not value.is_graph_output():
            self.edit.set_tensor(value, half)
            return
        made = self.edit.initializer(half, name=f"{value.name}_half", graph=graph)
        maker = value.producer()
        if maker is not None:
            self._left.append(maker)
        self._redirect(value, made, wanted)

    def _retype(self, site: Site) -> None:
        node = site.node
        for value in site.makes:
            self.edit.set_type(value, self.target.dtype)
        for slot in site.slots:
            owner, index = slot
            if isinstance(owner, ir.Graph) and site.node is None:
                self.edit.set_type(owner.outputs[index], self.target.dtype)
        if node is None or not site.makes:
            return
        if is_op(node, "Cast") and self._half_source(site.makes[0]) is None:
            to = ir.AttrInt64("to", int(self.target.dtype))
            self.edit.set_attribute(node, "to", to)
        elif is_op(node, "Cast"):
            self.edit.set_type(site.makes[0], _FLOAT)
        elif is_op(node, "ConstantOfShape"):
            given = attribute(node, "value")
            number = np.zeros(1, np.float32) if given is None else given.numpy()
            tensor = ir.Tensor(number.astype(self.target.array), dtype=self.target.dtype)
            self.edit.set_attribute(node, "value", ir.AttrTensor("value", tensor))

    def _drop_narrowing(self, node: ir.Node) -> None:
        """Removes a conversion of what is 16 bits wide by now."""
        source = node.inputs[0]
        if node.graph is None or source is None or source.dtype != self.target.dtype:
            return
        self.edit.replace(node.outputs[0], source)
        self.edit.remove(node)


def emulate(rewriting: Rewriting) -> None:
    """Rounds where `Rewriting.run` would change types, but computes in float32.

    onnxruntime's CPU provider removes the conversions that it puts around nodes without a 16-bit kernel, so
    that values between them are never rounded: what it computes says little about other providers.
    """
    edit, sites, target = rewriting.edit, rewriting.sites, rewriting.target
    for value, maker in list(sites.maker.items()):
        slots = [slot for slot in slots_of(value) if slot not in sites.indifferent]
        if maker not in rewriting.chosen:
            slots = [slot for slot in slots if rewriting.is_half(slot)]
        readers = [(owner, index) for owner, index in slots if isinstance(owner, ir.Node)]
        if readers:
            rounded = rewriting.cast(value, target.dtype, value)
            back = edit.insert(
                "Cast",
                [rounded],
                after=rounded.producer(),
                attributes={"to": ir.AttrInt64("to", int(_FLOAT))},
                like=value,
            )
            for node, index in readers:
                edit.set_input(node, index, back.outputs[0])
    for value in rewriting.constants():
        tensor, graph = constant(value), value.graph
        if tensor is None or graph is None:
            continue
        rounded = edit.initializer(
            _rounded(tensor, target), name=f"{value.name}_rounded", graph=graph
        )
        for owner, index in slots_of(value):
            if isinstance(owner, ir.Node) and rewriting.is_half((owner, index)):
                edit.set_input(owner, index, rounded)


def _rounded(tensor: ir.TensorProtocol, target: Format) -> ir.TensorProtocol:
    def convert() -> ir.TensorProtocol:
        with np.errstate(all="ignore"):
            return ir.Tensor(tensor.numpy().astype(target.array).astype(np.float32))

    return ir.LazyTensor(convert, dtype=_FLOAT, shape=ir.Shape(tensor.shape.numpy()))


def narrowed(tensor: ir.TensorProtocol, target: Format) -> ir.TensorProtocol:
    """Returns a tensor in 16 bits, converted only when somebody reads it."""

    def convert() -> ir.TensorProtocol:
        with np.errstate(all="ignore"):
            return ir.Tensor(tensor.numpy().astype(target.array), dtype=target.dtype)

    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(convert, dtype=target.dtype, shape=shape, name=tensor.name)
