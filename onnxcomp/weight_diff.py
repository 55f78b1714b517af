"""What changed of the weights of a model, by name and contents."""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import ModelError, quoted
from onnxcomp.ir import ir
from onnxcomp.ir.ops import is_op
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Progress, Task

    Array = np.ndarray[Any, Any]

# Contents are compared in pieces of this many elements, so that mapped weights are never held whole.
_PIECE = 1 << 20


@dataclass(frozen=True)
class WeightChange:
    """A weight (initializer, or the output of a Constant) that is not the same as before.

    Attributes:
        change: `added`, `removed`, `renamed`, `retyped` (type or shape), `changed` (contents).
        name: Its name, the old one if it was renamed.
        before: Type and shape before, empty when it was not there.
        after: Type and shape after, empty when it is gone.
        bytes: How many bytes it takes more.
        size: Bytes of the larger one, by which changes are ranked.
        distance: For contents that changed, how far apart they are: the norm of the difference over that
            of the old contents; None where that says nothing.
        now: The new name if it was renamed.
    """

    change: str
    name: str
    before: str
    after: str
    bytes: int
    size: int
    distance: float | None = None
    now: str = ""


def _named(model: Model) -> dict[str, ir.TensorProtocol]:
    """Weights by name; of different scopes that use one name, the first keeps it alone."""
    found: dict[str, ir.TensorProtocol] = {}
    for graph in model.graphs():
        pairs = [(value.name, value.const_value) for value in graph.initializers.values()]
        for node in graph:
            if is_op(node, "Constant") and (attr := node.attributes.get("value")) is not None:
                tensor = None if attr.is_ref() else attr.as_tensor()
                pairs.append((node.outputs[0].name, tensor))
        for name, tensor in pairs:
            if tensor is not None:
                key, number = name or "", 2
                while key in found:
                    key, number = f"{name} ({number})", number + 1
                found[key] = tensor
    return found


def weight_changes(old: Model, new: Model, progress: Progress) -> tuple[WeightChange, ...]:
    """Compares weights by name; those under another name are found by their contents."""
    before, after = _named(old), _named(new)
    common = [name for name in before if name in after]
    total = sum(before[name].nbytes for name in common)
    with stage("comparing weights"), progress(total, "comparing weights") as task:
        found = [
            change
            for name in common
            if (change := _changed(name, before[name], after[name], task)) is not None
        ]
        gone = {name: tensor for name, tensor in before.items() if name not in after}
        come = {name: tensor for name, tensor in after.items() if name not in before}
        found += _renamed(gone, come)
    found += [_one_sided("removed", name, tensor) for name, tensor in gone.items()]
    found += [_one_sided("added", name, tensor) for name, tensor in come.items()]
    return tuple(sorted(found, key=lambda row: (-row.size, row.change, row.name)))


def _one_sided(change: str, name: str, tensor: ir.TensorProtocol) -> WeightChange:
    kind, size = kind_of(tensor), tensor.nbytes
    if change == "removed":
        return WeightChange(change, name, kind, "", -size, size)
    return WeightChange(change, name, "", kind, size, size)


def kind_of(tensor: ir.TensorProtocol) -> str:
    """Returns type and shape: `float[4,3]`."""
    return f"{tensor.dtype.name.lower()}[{','.join(map(str, tensor.shape.numpy()))}]"


def _changed(
    name: str, before: ir.TensorProtocol, after: ir.TensorProtocol, task: Task
) -> WeightChange | None:
    kinds = kind_of(before), kind_of(after)
    more, size = after.nbytes - before.nbytes, max(before.nbytes, after.nbytes)
    if kinds[0] != kinds[1]:
        task.advance(before.nbytes)
        return WeightChange("retyped", name, *kinds, more, size)
    if _same_place(before, after):
        task.advance(before.nbytes)
        return None
    same, distance = _compared(before, after, task)
    return None if same else WeightChange("changed", name, *kinds, more, size, distance)


def _same_place(before: ir.TensorProtocol, after: ir.TensorProtocol) -> bool:
    """Whether both are the same bytes of the same file."""
    if not (isinstance(before, ir.ExternalTensor) and isinstance(after, ir.ExternalTensor)):
        return before is after
    return (before.path, before.offset or 0) == (after.path, after.offset or 0)


def _compared(
    before: ir.TensorProtocol, after: ir.TensorProtocol, task: Task
) -> tuple[bool, float | None]:
    """Returns whether contents are equal to the bit, and how far they are apart if not."""
    if before.dtype == ir.DataType.STRING:
        return _texts(before) == _texts(after), None
    same, apart, norm = True, 0.0, 0.0
    for one, other in zip(_pieces(before), _pieces(after), strict=True):
        task.advance(one.nbytes)
        if one.tobytes() != other.tobytes():
            same = False
        if one.dtype.kind in "fiu" or before.dtype.is_floating_point():
            first, second = one.astype(np.float64), other.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                apart += float(np.square(first - second).sum())
                norm += float(np.square(first).sum())
    if same or not norm or not math.isfinite(apart + norm):
        return same, None
    return False, math.sqrt(apart / norm)


def _pieces(tensor: ir.TensorProtocol) -> Iterator[Array]:
    """Yields the elements in order; what lies in a file is read and not mapped, to be gone at once."""
    whole_bytes = tensor.dtype.bitwidth % 8 == 0 and sys.byteorder == "little"
    if isinstance(tensor, ir.ExternalTensor) and whole_bytes:
        yield from _read(tensor)
        return
    flat = tensor.numpy().reshape(-1)
    yield from (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))


def _read(tensor: ir.ExternalTensor) -> Iterator[Array]:
    dtype = np.dtype(tensor.dtype.numpy())
    with Path(tensor.path).open("rb", buffering=0) as file:
        file.seek(tensor.offset or 0)
        for start in range(0, tensor.size, _PIECE):
            count = min(_PIECE, tensor.size - start)
            data = file.read(count * dtype.itemsize)
            if len(data) != count * dtype.itemsize:
                raise ModelError(f"{quoted(tensor.path, 200)} became shorter while it was read")
            yield np.frombuffer(data, dtype)


def _texts(tensor: ir.TensorProtocol) -> list[Any]:
    return list(tensor.string_data()) if isinstance(tensor, ir.StringTensor) else [tensor.tobytes()]


def _renamed(
    gone: dict[str, ir.TensorProtocol], come: dict[str, ir.TensorProtocol]
) -> list[WeightChange]:
    """Takes weights out of both that have the same contents under another name."""
    kinds = {kind_of(tensor) for tensor in gone.values()} & {kind_of(t) for t in come.values()}
    waiting: dict[tuple[str, bytes], list[str]] = {}
    for name, tensor in come.items():
        if kind_of(tensor) in kinds:
            waiting.setdefault((kind_of(tensor), digest_of(tensor)), []).append(name)
    found = []
    for name, tensor in list(gone.items()):
        kind = kind_of(tensor)
        names = waiting.get((kind, digest_of(tensor))) if kind in kinds else None
        if names:
            now = names.pop(0)
            found.append(WeightChange("renamed", name, kind, kind, 0, tensor.nbytes, now=now))
            del gone[name], come[now]
    return found


def digest_of(tensor: ir.TensorProtocol) -> bytes:
    """Returns a hash of the contents."""
    made = hashlib.blake2b(digest_size=16)
    if tensor.dtype == ir.DataType.STRING:
        for text in _texts(tensor):
            made.update(len(text).to_bytes(8, "little") + text)
        return made.digest()
    for piece in _pieces(tensor):
        made.update(piece.tobytes())
    return made.digest()
