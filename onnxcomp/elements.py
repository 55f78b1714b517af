"""Element types as onnxruntime names them, and arrays of the types that numpy does not have."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Types that onnxruntime takes from and gives to numpy by itself.
_NATIVE = frozenset(
    ["float", "double", "float16", "bool", "string"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


def element_name(type_text: str) -> str | None:
    """Returns `float` for `tensor(float)`, None for sequences, maps, optionals and sparse tensors."""
    if type_text.startswith("tensor(") and type_text.endswith(")"):
        return type_text[len("tensor(") : -1]
    return None


def element_code(type_text: str) -> int | None:
    """Returns the `TensorProto.DataType` of a type such as `tensor(bfloat16)`."""
    name = element_name(type_text)
    if name is None or name.upper() not in TensorProto.DataType.keys():  # noqa: SIM118 - enum wrapper
        return None
    return int(TensorProto.DataType.Value(name.upper()))


def element_dtype(type_text: str) -> np.dtype[Any] | None:
    """Returns the numpy (or ml_dtypes) type of a type such as `tensor(bfloat16)`."""
    code = element_code(type_text)
    return None if code is None else np.dtype(helper.tensor_dtype_to_np_dtype(code))


def is_native(type_text: str) -> bool:
    """Whether the runtime exchanges values of this type with numpy without help."""
    name = element_name(type_text)
    return name is None or name in _NATIVE


def runtime_buffer(array: np.ndarray, code: int) -> np.ndarray:
    """Returns an array that the runtime can read as it is, of the same shape.

    Types below one byte are packed by the runtime but not by numpy: their packed bytes come first in
    an array of the full shape, because the runtime takes the shape from the array.
    """
    if code not in _PACKED:
        return np.asarray(array, order="C")  # ascontiguousarray would make a scalar a vector
    packed = np.frombuffer(numpy_helper.from_array(array).raw_data, np.uint8)
    return padded(packed, array.shape)


def padded(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array of bytes of a shape that starts with the given packed bytes."""
    buffer = np.zeros(shape, np.uint8)
    buffer.reshape(-1)[: packed.size] = packed
    return buffer


def array_from_bytes(data: bytes, shape: tuple[int, ...], code: int) -> np.ndarray:
    """Returns the array that raw bytes of an ONNX tensor stand for."""
    tensor = onnx.TensorProto(dims=shape, data_type=code, raw_data=data)
    return numpy_helper.to_array(tensor)


def is_packed(code: int) -> bool:
    """Whether several elements of this `TensorProto.DataType` share a byte."""
    return code in _PACKED


_PACKED = frozenset(
    int(TensorProto.DataType.Value(name))
    for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
    if name in TensorProto.DataType.keys()  # noqa: SIM118 - enum wrapper; INT2 came with onnx 1.20
)


def named_dtype(name: str) -> np.dtype[Any]:
    """Returns the numpy or ml_dtypes type of a name such as `float32` or `bfloat16`."""
    kind = getattr(ml_dtypes, name, None)
    return np.dtype(name if kind is None else kind)
