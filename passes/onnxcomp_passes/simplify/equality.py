"""When two nodes, two attributes or two tensors are equal, to the bit."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.envelope import ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

# Tensors above this many bytes are told apart by a few pages before all of their bytes are read.
_SAMPLED_ABOVE = 64 * 1024
_PAGE = 4096
_CHUNK = 1 << 22


def node_key(node: ir.Node) -> Hashable | None:
    """Returns a key that equal calls share, None when a node cannot be compared."""
    if ATTRIBUTES in node.meta:
        return None
    attributes = []
    for name, attr in sorted(node.attributes.items()):
        key = attribute_key(attr)
        if key is None:
            return None
        attributes.append((name, key))
    return (
        node.op_identifier(),
        tuple(id(value) if value is not None else None for value in node.inputs),
        len(node.outputs),
        tuple(attributes),
    )


def attribute_key(attr: ir.Attr) -> Hashable | None:
    """Returns a key that equal attributes share, None for one that cannot be compared."""
    if attr.is_ref():
        return ("reference", attr.ref_attr_name)
    kind = attr.type
    if kind in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return None
    if kind == ir.AttributeType.TENSOR:
        return (kind, tensor_key(attr.as_tensor()))
    if kind in {ir.AttributeType.FLOAT, ir.AttributeType.FLOATS}:
        # By bits: 0.0 equals -0.0 but does not do the same, NaN equals nothing but does.
        return (kind, np.asarray(attr.value, np.float64).tobytes())
    if kind in {ir.AttributeType.INT, ir.AttributeType.STRING}:
        return (kind, attr.value)
    if kind in {ir.AttributeType.INTS, ir.AttributeType.STRINGS}:
        return (kind, tuple(attr.value))
    return None


def tensor_key(tensor: ir.TensorProtocol) -> Hashable:
    """Returns a key that tensors of equal type, shape and bytes share."""
    return (tensor.dtype, tuple(tensor.shape.numpy()), _digest(tensor))


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    """The bytes of a tensor, without a copy where the elements lie in memory or in a mapped file."""
    if tensor.dtype == ir.DataType.STRING:
        items = np.asarray(tensor.numpy(), object).reshape(-1).tolist()
        return memoryview(repr(items).encode())
    array = tensor.numpy()
    if array.dtype.itemsize * array.size != tensor.nbytes or not array.flags.c_contiguous:
        return memoryview(tensor.tobytes())
    return array.reshape(-1).view(np.uint8).data


def _digest(tensor: ir.TensorProtocol) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    data = _bytes(tensor)
    for start in range(0, len(data), _CHUNK):
        digest.update(data[start : start + _CHUNK])
    return digest.digest()


def _sample(tensor: ir.TensorProtocol) -> bytes:
    data = _bytes(tensor)
    middle = len(data) // 2
    parts = (data[:_PAGE], data[middle : middle + _PAGE], data[-_PAGE:])
    return hashlib.blake2b(b"".join(parts), digest_size=20).digest()


class EqualTensors:
    """Finds initializers that are equal to one that is visible where they are.

    Tensors are read only where another one has their type and shape; large ones first by three pages.
    """

    def __init__(self) -> None:
        self._groups: dict[Hashable, list[tuple[ir.Value, tuple[ir.Graph, ...]]]] = {}

    def add(self, value: ir.Value, scopes: tuple[ir.Graph, ...]) -> None:
        """Adds an initializer, with the scopes whose values can be read where it is."""
        tensor = value.const_value
        if tensor is not None:
            key = (tensor.dtype, tuple(tensor.shape.numpy()))
            self._groups.setdefault(key, []).append((value, scopes))

    def groups(self) -> Iterator[list[tuple[ir.Value, tuple[ir.Graph, ...]]]]:
        """Yields initializers that are equal, in groups of two and more."""
        for group in self._groups.values():
            if len(group) > 1:
                yield from _split(group)


def _split(
    group: list[tuple[ir.Value, tuple[ir.Graph, ...]]],
) -> list[list[tuple[ir.Value, tuple[ir.Graph, ...]]]]:
    tensor = group[0][0].const_value
    large = tensor is not None and tensor.nbytes > _SAMPLED_ABOVE
    parts = [group]
    for key in (_sample, _digest) if large else (_digest,):
        finer: dict[bytes, list[tuple[ir.Value, tuple[ir.Graph, ...]]]] = {}
        for number, part in enumerate(parts):
            for value, scopes in part:
                if value.const_value is not None:
                    mark = number.to_bytes(4, "big") + _remembered(value, key)
                    finer.setdefault(mark, []).append((value, scopes))
        parts = [part for part in finer.values() if len(part) > 1]
    return parts


def _remembered(value: ir.Value, key: Callable[[ir.TensorProtocol], bytes]) -> bytes:
    """The digest of an initializer's contents, kept with it: pipelines ask again and again."""
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"initializer without contents: {value.name}")
    kept = value.meta.get(f"onnxcomp.{key.__name__}")
    if kept is not None and kept[0] is tensor:
        found: bytes = kept[1]
        return found
    digest = key(tensor)
    value.meta[f"onnxcomp.{key.__name__}"] = (tensor, digest)
    return digest


def visible_pairs(
    equal: list[tuple[ir.Value, tuple[ir.Graph, ...]]],
) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yields each of a group that can go, with the earlier one that stands for it where it is."""
    kept: dict[ir.Graph, ir.Value] = {}
    for value, scopes in equal:
        first = next((kept[scope] for scope in scopes if scope in kept), None)
        if first is None:
            kept[scopes[0]] = value
        else:
            yield value, first
