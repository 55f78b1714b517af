"""Whether a tensor in a file has the bytes that its shape and type ask for."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from onnxcomp.errors import ModelError, quoted

if TYPE_CHECKING:
    from onnx import SparseTensorProto

    from onnxcomp.ir.budget import Limits

_T = TensorProto
# By name, because older versions of onnx do not have all of them.
_BITS_BY_NAME: dict[int, str] = {
    128: "COMPLEX128",
    64: "DOUBLE INT64 UINT64 COMPLEX64",
    32: "FLOAT INT32 UINT32",
    16: "FLOAT16 BFLOAT16 INT16 UINT16",
    8: "INT8 UINT8 BOOL FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0",
    6: "FLOAT6E2M3 FLOAT6E3M2",
    4: "INT4 UINT4 FLOAT4E2M1",
    2: "INT2 UINT2",
}
BITS: dict[int, int] = {
    number: bits
    for bits, names in _BITS_BY_NAME.items()
    for name, number in _T.DataType.items()
    if name in names.split()
}
"""Bits per element of every fixed-size element type; below a byte they are packed without gaps."""
_INT32 = "int32_data"
# The field that holds the values of a type that is not stored as raw bytes.
_FIELDS: dict[int, str] = {
    **dict.fromkeys(BITS, _INT32),
    **dict.fromkeys((_T.FLOAT, _T.COMPLEX64), "float_data"),
    **dict.fromkeys((_T.DOUBLE, _T.COMPLEX128), "double_data"),
    **dict.fromkeys((_T.UINT32, _T.UINT64), "uint64_data"),
    _T.INT64: "int64_data",
    _T.STRING: "string_data",
}
_ALL_FIELDS = tuple(sorted(set(_FIELDS.values())))
_COMPLEX = {_T.COMPLEX64, _T.COMPLEX128}


def element_count(tensor: TensorProto) -> int:
    """Returns the number of elements a shape stands for."""
    return prod(tensor.dims)


def byte_count(tensor: TensorProto) -> int:
    """Returns the number of bytes that a tensor of fixed-size elements takes."""
    return (element_count(tensor) * BITS[tensor.data_type] + 7) // 8


def check_tensor(tensor: TensorProto, place: str, limits: Limits) -> None:
    """Raises `ModelError` when a tensor has no type, no shape, or other data than these ask for.

    For external data, whether the stated length is the right one; not whether the file has it.
    """
    kind = tensor.data_type
    if kind not in _FIELDS:
        name = _T.DataType.Name(kind) if kind in _T.DataType.values() else str(kind)
        raise ModelError(f"{place} has element type {name}, which is not known")
    dims = tensor.dims
    limits.hold("rank", len(dims), f"dimensions in {place}")
    if dims and min(dims) < 0:
        raise ModelError(f"{place} has a negative dimension: {list(dims)}")
    if tensor.HasField("segment"):
        raise ModelError(f"{place} is a segment of a tensor, which is not supported")
    if tensor.data_location == _T.EXTERNAL:
        _check_no_inline(tensor, place)
    elif tensor.HasField("raw_data"):
        _check_raw(tensor, place)
    else:
        _check_typed(tensor, place)


def _check_no_inline(tensor: TensorProto, place: str) -> None:
    if tensor.data_type == _T.STRING:
        raise ModelError(f"{place} holds strings, which cannot be external data")
    if tensor.raw_data or any(getattr(tensor, field) for field in _ALL_FIELDS):
        raise ModelError(f"{place} has data both in the model and in an external file")


def _check_raw(tensor: TensorProto, place: str) -> None:
    if tensor.data_type == _T.STRING:
        raise ModelError(f"{place} holds strings as raw bytes")
    needed = byte_count(tensor)
    # The bytes are copied to be measured; typed fields are looked at only when they are few.
    given = len(tensor.raw_data)
    if given != needed:
        raise ModelError(
            f"{place} has {given:,} bytes of data, its shape {_shape(tensor)} needs {needed:,}"
        )
    for field in _ALL_FIELDS:
        if getattr(tensor, field):
            raise ModelError(f"{place} has data in two fields, raw_data and {field}")


def _check_typed(tensor: TensorProto, place: str) -> None:
    kind = tensor.data_type
    needed = element_count(tensor)
    if kind in _COMPLEX:
        needed *= 2
    elif BITS.get(kind, 8) < 6:  # several to a number
        needed = byte_count(tensor)
    given = len(getattr(tensor, _FIELDS[kind]))
    if given != needed:
        raise ModelError(
            f"{place} has {given:,} values, its shape {_shape(tensor)} needs {needed:,}"
        )
    for field in _ALL_FIELDS:
        if field != _FIELDS[kind] and getattr(tensor, field):
            raise ModelError(f"{place} has data in {field}, which is not the field of its type")


def _shape(tensor: TensorProto) -> str:
    return str(list(tensor.dims[:8]))[:-1] + (", …]" if len(tensor.dims) > 8 else "]")


def check_sparse(sparse: SparseTensorProto, place: str, limits: Limits) -> None:
    """Raises `ModelError` when a sparse tensor has indices outside of its shape."""
    values, indices = sparse.values, sparse.indices
    check_tensor(values, f"values of sparse {place}", limits)
    check_tensor(indices, f"indices of sparse {place}", limits)
    dims = list(sparse.dims)
    if min(dims, default=1) < 1:
        raise ModelError(f"sparse {place} has a dimension below 1: {dims[:8]}")
    if len(values.dims) != 1:
        raise ModelError(f"sparse {place} has values of rank {len(values.dims)}, not 1")
    count = values.dims[0]
    shape = list(indices.dims)
    if count and (indices.data_type != _T.INT64 or shape not in ([count], [count, len(dims)])):
        raise ModelError(f"sparse {place} has indices that do not match its values")
    if not count or indices.data_location == _T.EXTERNAL:
        return
    raw = np.frombuffer(indices.raw_data, "<i8") if indices.HasField("raw_data") else None
    where = np.asarray(indices.int64_data, np.int64) if raw is None else raw
    ceiling = [min(prod(dims), 2**63 - 1)] if len(shape) == 1 else dims
    table = where.reshape(count, -1)
    if (table < 0).any() or (table >= np.asarray(ceiling)).any():
        raise ModelError(f"sparse {place} has indices outside of its shape {quoted(dims)[1:-1]}")
