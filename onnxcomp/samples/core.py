"""Samples: feeds that can be read again and again, one at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from onnxcomp.diagnostics import CODES, Diagnostic, Location, Severity
from onnxcomp.errors import SamplesError
from onnxcomp.samples.feeds import Array, Feed, conform

if TYPE_CHECKING:
    from onnxcomp.signature import TensorSpec

_EMPTY: dict[str, Array] = {}


class Source(ABC):
    """Where feeds come from. What can be checked without reading the values is checked on creation.

    Attributes:
        description: What was read and how, for the report.
        notes: What was converted or left out.
        synthetic: True when the data are made up.
    """

    description: str
    notes: tuple[str, ...] = ()
    synthetic: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Mapping[str, object]]]:
        """Yields position and feed of the given samples (ascending), holding one at a time."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Returns how a sample is called in messages."""

    def labels(self) -> Mapping[str, Array]:
        """Returns arrays for the metric, read when they are asked for."""
        return _EMPTY

    def digest(self) -> str | None:
        """Returns a hash of the content when there is a cheaper way than reading all feeds."""
        return None


class Samples:
    """Feeds for a model: re-iterable, in a fixed order, with one sample in memory at a time.

    Each iteration reads the data again and yields a new `dict` of arrays per sample, checked
    against the inputs of the model.

    Attributes:
        inputs: The inputs of the model that the feeds are for.
        indices: Positions of these samples in the source, ascending.
        description: What was read and how it was divided, for the report.
    """

    def __init__(
        self,
        source: Source,
        inputs: Sequence[TensorSpec],
        *,
        indices: Sequence[int] | None = None,
        description: str = "",
    ) -> None:
        self._source = source
        self.inputs = tuple(inputs)
        self.indices: Sequence[int] = range(len(source)) if indices is None else indices
        self.description = description or source.description
        self._digest: str | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Feed]:
        # A generator would keep the last sample alive while it reads the next one; `map` does not.
        return map(self._conform, self._source.read(self.indices))

    @override
    def __repr__(self) -> str:
        return f"Samples({len(self)}: {self.description})"

    @property
    def synthetic(self) -> bool:
        """True when the values are random and say nothing about real data."""
        return self._source.synthetic

    @property
    def notes(self) -> tuple[str, ...]:
        """What was converted or left out while reading."""
        return self._source.notes

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Warnings that the caller should show."""
        if not self.synthetic:
            return ()
        hint = "give real samples with --data"
        return (Diagnostic("GEN101", Severity.WARNING, CODES["GEN101"], Location("samples"), hint),)

    @property
    def labels(self) -> Mapping[str, Array]:
        """Arrays that are not for the model but for a metric, read when they are asked for.

        An array with one entry per sample of the source is cut down to these samples; any other
        array is handed out as it is.
        """
        return _Labels(self._source.labels(), len(self._source), self.indices)

    def first(self) -> Feed:
        """Returns the first sample."""
        return next(iter(self))

    def take(self, count: int) -> Samples:
        """Returns the first samples, all of them if there are fewer."""
        if count < 1:
            raise SamplesError(f"cannot take {count} samples", hint="at least 1")
        return self if count >= len(self) else self._some(self.indices[:count], f"first {count}")

    def split(
        self, held_out: float = 0.5, *, validation: Samples | None = None
    ) -> tuple[Samples, Samples]:
        """Divides into samples for calibration and samples that are held out for validation.

        The held-out samples are spread evenly, so that both parts see all of sorted data. Samples
        that resemble their neighbours (frames of a video) are better given as two sources.

        Args:
            held_out: Share of the samples for validation, at least one sample.
            validation: A source of its own for validation; nothing is held out then.

        Returns:
            Calibration and validation samples; which is which depends on nothing but the number.

        Raises:
            SamplesError: If there are not at least two samples to divide.
        """
        if validation is not None:
            ours = self._some(self.indices, "all for calibration")
            return ours, validation._some(validation.indices, "all for validation")
        if not 0 < held_out < 1:
            raise SamplesError(f"cannot hold out a share of {held_out}", hint="between 0 and 1")
        if len(self) < 2:
            hint = "give more samples, or separate validation samples"
            raise SamplesError(
                f"{self._source.description}: 1 sample cannot be divided into calibration and validation",
                hint=hint,
            )
        count = min(max(round(len(self) * held_out), 1), len(self) - 1)
        chosen = set(spread(count, len(self)))
        held = [index for i, index in enumerate(self.indices) if i in chosen]
        rest = [index for i, index in enumerate(self.indices) if i not in chosen]
        how = f"{count} of {len(self)}, spread evenly, held out for validation"
        return self._some(rest, f"the other {len(rest)}: {how}"), self._some(held, how)

    def require(self, count: int, purpose: str) -> None:
        """Raises when there are fewer samples than a purpose needs."""
        if len(self) < count:
            raise SamplesError(
                f"{purpose} needs at least {count} samples, there are {len(self)}: {self.description}"
            )

    def check(self) -> None:
        """Reads every sample once.

        Raises:
            SamplesError: For the first sample that cannot be read or does not fit the model.
        """
        deque(self, maxlen=0)  # unlike a loop it keeps no sample while it reads the next one

    def digest(self) -> str:
        """Returns a hash of what these samples contain; paths and times do not matter."""
        if self._digest is None:
            base = self._source.digest()
            state = hashlib.blake2b(digest_size=16)
            if base is None:
                for feed in self:
                    update(state, feed)
            else:
                state.update(f"{base} {','.join(map(str, self.indices))}".encode())
            self._digest = state.hexdigest()
        return self._digest

    def _conform(self, item: tuple[int, Mapping[str, object]]) -> Feed:
        return conform(item[1], self.inputs, self._source.place(item[0]))

    def _some(self, indices: Sequence[int], how: str) -> Samples:
        description = f"{self.description}; {how}"
        return Samples(self._source, self.inputs, indices=indices, description=description)


def spread(count: int, total: int) -> list[int]:
    """Returns `count` different positions spread evenly over `total`."""
    return [((2 * i + 1) * total) // (2 * count) for i in range(count)]


def update(state: hashlib.blake2b, feed: Feed) -> None:
    """Adds the names, types, shapes and values of a feed to a hash."""
    for name in sorted(feed):
        array = feed[name]
        state.update(f"{name!r} {array.dtype.name} {array.shape}".encode())
        if array.dtype.kind == "O":
            state.update(repr(array.tolist()).encode())
        else:
            state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


class _Labels(Mapping[str, Array]):
    def __init__(self, arrays: Mapping[str, Array], total: int, indices: Sequence[int]) -> None:
        self._arrays = arrays
        self._total = total
        self._indices = indices

    @override
    def __getitem__(self, key: str) -> Array:
        array = self._arrays[key]
        per_sample = array.ndim > 0 and len(array) == self._total
        return array[list(self._indices)] if per_sample else array

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    @override
    def __len__(self) -> int:
        return len(self._arrays)
