"""Whether the arrays of one sample are what the model takes."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from onnxcomp.errors import SamplesError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnxcomp.signature import Shape, TensorSpec

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Feed: TypeAlias = dict[str, Array]

LABEL_PREFIX = "label_"


def is_label(key: str, inputs: Sequence[TensorSpec]) -> bool:
    """Returns whether a key names data for the metric and not for the model."""
    return key.startswith(LABEL_PREFIX) and all(spec.name != key for spec in inputs)


def check_names(names: Iterable[str], inputs: Sequence[TensorSpec], place: str) -> None:
    """Raises when an input is missing or a name is not an input of the model."""
    given = [name for name in names if not is_label(name, inputs)]
    known = [spec.name for spec in inputs]
    takes = f"the model takes {_listed(known)}"
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {quoted(close[0])}?" if close else takes
            raise SamplesError(f"{place}: {quoted(name)} is not an input of the model", hint=hint)
    for spec in inputs:
        if not spec.optional and spec.name not in given:
            has = f"it has {_listed(given)}" if given else "it is empty"
            raise SamplesError(f"{place}: no data for input {quoted(spec.name)}", hint=has)


def conform(feed: Mapping[str, object], inputs: Sequence[TensorSpec], place: str) -> Feed:
    """Returns the arrays of one sample as the model takes them.

    Raises:
        SamplesError: For a wrong name, shape, dtype, or a value that is not a finite number.
    """
    check_names(feed, inputs, place)
    return {
        spec.name: _tensor(feed[spec.name], spec, f"{place}, input {quoted(spec.name)}")
        for spec in inputs
        if spec.name in feed
    }


def joined(feeds: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    """Returns samples as one, joined along the first axis.

    Raises:
        SamplesError: If an input has no such axis, or other axes of different sizes.
    """
    if len(feeds) == 1:
        return feeds[0]
    try:
        return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    except ValueError as error:
        raise SamplesError(
            f"samples cannot be joined into a batch of {len(feeds)}: {error}",
            hint="leave out the size of the batch",
        ) from error


def fitted(shape: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...] | None:
    """Returns the shape under which a sample goes into the model, or None when it does not fit.

    Only axes of size 1 are added or taken away: the batch axis of one sample, and the axes of a
    single number for a scalar input.
    """
    if spec.shape is None or _matches(shape, spec.shape):
        return shape
    if spec.shape == ():
        return () if set(shape) == {1} else None
    with_batch = (1, *shape)
    return with_batch if _matches(with_batch, spec.shape) else None


def check_shape(shape: tuple[int, ...], spec: TensorSpec, place: str) -> tuple[int, ...]:
    """Returns the shape under which a sample goes into the model, or raises."""
    result = fitted(shape, spec)
    if result is None:
        raise SamplesError(
            f"{place}: the shape is {shape_text(shape)}, the model takes {shape_text(spec.shape)}"
        )
    return result


def check_dtype(found: np.dtype[Any], spec: TensorSpec, place: str) -> str:
    """Raises when a dtype cannot go into an input without changing values.

    Returns:
        A note when the values have to be converted, else an empty text.
    """
    wanted = spec.dtype
    if wanted is None:
        raise SamplesError(
            f"{place}: the model takes a sequence, map or optional value here, not an array"
        )
    if found.kind == "O" and not is_text(wanted):
        hint = "save plain numeric arrays; pickled objects are never loaded"
        raise SamplesError(f"{place}: the array holds Python objects", hint=hint)
    if is_text(wanted) and (is_text(found) or found.kind == "S"):
        return ""
    if found.newbyteorder("=") == wanted or _is_stored_extension(found, wanted):
        return ""
    if not _convertible(found, wanted):
        hint = f"convert it with .astype({wanted.name!r}) if that is meant"
        raise SamplesError(
            f"{place}: the dtype is {found.name}, the model takes {wanted.name}", hint=hint
        )
    return f"{quoted(spec.name)} converted from {found.name} to {wanted.name}"


def shape_text(shape: Shape | None) -> str:
    """Returns a shape as `[batch,3,224,224]`."""
    return "[?]" if shape is None else f"[{','.join(map(_dim_text, shape))}]"


def is_text(dtype: np.dtype[Any]) -> bool:
    """Returns whether a dtype stands for tensors of strings."""
    return dtype.kind in "OUT"


def _tensor(value: object, spec: TensorSpec, place: str) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SamplesError(f"{place}: not an array: {str(error).splitlines()[0]}") from error
    check_dtype(array.dtype, spec, place)
    shape = check_shape(array.shape, spec, place)
    if spec.shape and len(shape) != array.ndim:
        takes = f"the shape is {shape_text(array.shape)}, the model takes {shape_text(spec.shape)}"
        raise SamplesError(f"{place}: {takes}", hint="add the batch axis, e.g. array[None]")
    return _converted(array.reshape(shape), spec, place)


def _converted(array: Array, spec: TensorSpec, place: str) -> Array:
    wanted = spec.dtype
    assert wanted is not None
    if is_text(wanted):
        return _text(array, place)
    if _is_stored_extension(array.dtype, wanted):
        array = array.view(wanted)
    _check_finite(array, place)
    if array.dtype == wanted:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(wanted)
    lost = ~np.isfinite(result) if wanted.kind == "f" else result.astype(array.dtype) != array
    if wanted.kind in "iu" and not np.can_cast(array.dtype, wanted):
        # A wrapped value can convert back to itself (-1 as uint64), so look at the sign as well.
        lost = lost | ((result < 0) != (array < 0))
    if lost.any():
        value = array[lost].flat[0]
        raise SamplesError(f"{place}: the value {value} does not fit into {wanted.name}")
    return result


def _text(array: Array, place: str) -> Array:
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    result = array.astype(object)
    if not all(isinstance(item, str) for item in result.flat):
        raise SamplesError(f"{place}: the model takes text here")
    return result


def _check_finite(array: Array, place: str) -> None:
    # Integers and booleans are always finite; extension types (bfloat16, float8) have kind "V".
    if array.dtype.kind not in "fcV" or array.dtype.name.startswith(("int", "uint")):
        return
    bad = ~np.isfinite(array)
    if bad.any():
        count = int(np.count_nonzero(bad))
        what = "NaN" if np.isnan(array).any() else "infinite"
        raise SamplesError(
            f"{place}: {count} of {array.size} values are not finite numbers ({what})"
        )


def _convertible(found: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    if found.kind in "iu" and wanted.kind in "iu":
        return True  # every value is checked when it is read
    if found.kind == "f" and wanted.kind == "f":
        return np.can_cast(found, wanted) or (found.itemsize, wanted.itemsize) == (8, 4)
    return False


def _is_stored_extension(found: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    # numpy writes bfloat16, float8 and int4 as opaque bytes of the same size.
    opaque = found.kind == "V" and found.names is None and found.subdtype is None
    return (
        opaque
        and found.name.startswith("void")
        and found.itemsize == wanted.itemsize
        and wanted.kind == "V"
    )


def _matches(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        _free(dim) or dim == size for size, dim in zip(shape, wanted, strict=True)
    )


def _free(dim: int | str | None) -> bool:
    # Exporters write -1 and 0 where they mean "unknown".
    return not isinstance(dim, int) or dim <= 0


def fixed_size(dim: int | str | None) -> int | None:
    """Returns the size of a dimension that the model fixes, else None."""
    return dim if isinstance(dim, int) and dim > 0 else None


def _dim_text(dim: int | str | None) -> str:
    if isinstance(dim, str):
        return quoted(dim, 30)[1:-1]
    return "?" if dim is None or dim < 0 else str(dim)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(quoted(name, 40) for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "no inputs"
