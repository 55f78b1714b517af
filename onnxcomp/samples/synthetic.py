"""Random feeds that fit the declared inputs of a model, for trying things out."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.samples.core import Source
from onnxcomp.samples.feeds import Array, fixed_size, is_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from onnxcomp.signature import TensorSpec

_COUNT = 32
_BATCH = 1
_LENGTH = 16  # of a symbolic axis
_SIDE = 64  # of a symbolic axis of an image or volume: smaller ones vanish in strided layers
_IDS = 32  # models of characters have small vocabularies
_SMALL = 8


class RandomSource(Source):
    """Random values: normal floats, small integers, masks of ones.

    Every sample is drawn from the seed and its position, so that all passes see the same values.
    """

    synthetic = True

    def __init__(
        self, text: str, inputs: Sequence[TensorSpec], *, limit: int | None = None
    ) -> None:
        options = _options(text)
        self._inputs = [spec for spec in inputs if not spec.optional]
        self._count = (
            options.pop("", _COUNT) if limit is None else min(limit, options.pop("", _COUNT))
        )
        self._seed = options.pop("seed", 0)
        self._shapes = _shapes(self._inputs, options, text)
        self.description = f"{self._count} random samples (seed {self._seed})"

    @override
    def __len__(self) -> int:
        return self._count

    @override
    def place(self, index: int) -> str:
        return f"random sample {index}"

    @override
    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Mapping[str, object]]]:
        for index in indices:
            yield index, self._feed(index)

    def _feed(self, index: int) -> dict[str, Array]:
        generator = np.random.default_rng([self._seed, index])
        return {
            spec.name: _values(spec, self._shapes[spec.name], generator) for spec in self._inputs
        }


def _options(text: str) -> dict[str, int]:
    """Parses `random:32,seed=0,seq=128`; the number of samples has an empty name."""
    options: dict[str, int] = {}
    for item in filter(None, text.removeprefix("random").removeprefix(":").split(",")):
        name, equals, value = item.rpartition("=")
        if not re.fullmatch(r"[0-9]{1,9}", value.strip()) or (equals and not name.strip()):
            hint = "for example random:32 or random:32,seed=0,batch=1,seq=128"
            raise SamplesError(f"{quoted(text)}: {quoted(item)} is not understood", hint=hint)
        options[name.strip()] = int(value)
    zero = [name for name, value in options.items() if not value and name != "seed"]
    if zero:
        raise SamplesError(
            f"{quoted(text)}: {zero[0] or 'the number of samples'} must be at least 1"
        )
    return options


def _shapes(
    inputs: Sequence[TensorSpec], options: Mapping[str, int], text: str
) -> dict[str, tuple[int, ...]]:
    symbols = {dim for spec in inputs for dim in spec.shape or () if isinstance(dim, str)}
    axes = {f"{spec.name}.{axis}" for spec in inputs for axis in range(len(spec.shape or ()))}
    for name in options:
        if name not in {"batch", "seq"} | symbols | axes:
            known = ["seed", "batch", "seq", *sorted(symbols)]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"options are {', '.join(known)}"
            raise SamplesError(f"{quoted(text)}: no option or dimension {quoted(name)}", hint=hint)
    # The same symbol has the same size everywhere; where it is once a batch axis, it always is.
    batches = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    return {
        spec.name: tuple(
            _size(spec, axis, options, batches) for axis in range(len(spec.shape or ()))
        )
        for spec in inputs
    }


def _size(spec: TensorSpec, axis: int, options: Mapping[str, int], batches: set[Any]) -> int:
    shape = spec.shape or ()
    dim = shape[axis]
    if (size := fixed_size(dim)) is not None:
        return size
    if (size := options.get(f"{spec.name}.{axis}")) is not None:
        return size
    if isinstance(dim, str) and dim in options:
        return options[dim]
    if axis == 0 or dim in batches:
        return options.get("batch", _BATCH)
    return options.get("seq", _SIDE if len(shape) > 3 else _LENGTH)


def _values(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    dtype = spec.dtype
    assert dtype is not None
    name = spec.name.lower()
    if is_text(dtype):
        return np.full(shape, "sample", dtype=object)
    if "mask" in name:
        return np.ones(shape, dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind not in "iu" and not dtype.name.startswith(("int", "uint")):
        return generator.standard_normal(shape).astype(dtype)
    if dtype == np.uint8 and len(shape) > 2:
        return generator.integers(0, 256, shape).astype(dtype)  # an image
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
    if "token_type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    return generator.integers(0, _IDS if "id" in name else _SMALL, shape).astype(dtype)
