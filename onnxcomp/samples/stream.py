"""Samples from Python: functions, iterables, generators and calibration data readers."""

from __future__ import annotations

import itertools
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from typing_extensions import override

from onnxcomp.errors import SamplesError, UserError, quoted
from onnxcomp.samples.core import Source
from onnxcomp.samples.feeds import Feed, check_dtype, conform
from onnxcomp.samples.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from onnxcomp.signature import TensorSpec

_IN_MEMORY = 64 << 20


class StreamSource(Source):
    """Feeds from something that is started again for every pass.

    One pass is made on creation, to count and to check the feeds.
    """

    def __init__(
        self,
        start: Callable[[], Iterable[object]],
        inputs: Sequence[TensorSpec],
        *,
        place: str,
        limit: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._start = start
        self._inputs = inputs
        self._place = place
        feeds = _Feeds(start, inputs, place)
        self._count, self.notes = _survey(feeds, inputs, place, limit, limits)
        self.description = f"{_amount(self._count, limit)} from {place}"

    @override
    def __len__(self) -> int:
        return self._count

    @override
    def place(self, index: int) -> str:
        return f"{self._place}, sample {index}"

    @override
    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Mapping[str, object]]]:
        feeds = _Feeds(self._start, self._inputs, self._place)
        for index in indices:
            yield index, self._at(index, feeds)

    def _at(self, index: int, feeds: _Feeds) -> Mapping[str, object]:
        deque(itertools.islice(feeds, index - feeds.count), maxlen=0)
        feed = next(feeds, None)
        if feed is not None:
            return feed
        raise SamplesError(
            f"{self._place} gave {self._count} samples the first time and {feeds.count} now",
            hint="it must give the same feeds whenever it is started",
        )


class SpoolSource(Source):
    """Feeds from something that can be read only once.

    They are kept in memory up to 64 MiB, and beyond that in a temporary file that disappears with
    this object or with the process.
    """

    def __init__(
        self,
        feeds: Iterator[object],
        inputs: Sequence[TensorSpec],
        *,
        place: str,
        limit: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._place = place
        self._spool = _Spool(place, limits)
        started = _Feeds(lambda: feeds, inputs, place)
        count, self.notes = _survey(started, inputs, place, limit, limits, self._spool.append)
        self.description = f"{_amount(count, limit)} from {place}"

    @override
    def __len__(self) -> int:
        return len(self._spool)

    @override
    def place(self, index: int) -> str:
        return f"{self._place}, sample {index}"

    @override
    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Mapping[str, object]]]:
        for index in indices:
            yield index, self._spool.read(index)


def reader_source(
    reader: Any,  # noqa: ANN401 (an object of onnxruntime or of the user, known by its methods)
    inputs: Sequence[TensorSpec],
    *,
    limit: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Source:
    """Returns the samples of a calibration data reader of onnxruntime, or of an object like it.

    With a `rewind` method it is read again for every pass, without one it is read once.
    """
    place = f"calibration data reader {quoted(type(reader).__name__)}"
    if not callable(getattr(reader, "rewind", None)):
        feeds = iter(reader.get_next, None)
        return SpoolSource(feeds, inputs, place=place, limit=limit, limits=limits)
    return StreamSource(_Rewinding(reader, place), inputs, place=place, limit=limit, limits=limits)


def failed(place: str, error: BaseException, file: str = "") -> SamplesError:
    """Returns one clear line for an error in the code of the user."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    where = "" if line is None else f" in line {line}"
    text = " ".join(str(error).split())[:200]
    return SamplesError(
        f"{place} failed{where}: {type(error).__name__}{': ' if text else ''}{text}"
    )


class _Feeds(Iterator[Mapping[str, object]]):
    """One pass through foreign feeds; what goes wrong there becomes one clear error."""

    def __init__(
        self, start: Callable[[], Iterable[object]], inputs: Sequence[TensorSpec], place: str
    ) -> None:
        self.count = 0
        self._place = place
        self._file = getattr(getattr(start, "__code__", None), "co_filename", "")
        self._single = [spec.name for spec in inputs if not spec.optional]
        self._iterator = self._guarded(lambda: iter(start()))

    @override
    def __next__(self) -> Mapping[str, object]:
        feed = self._feed(self._guarded(lambda: next(self._iterator)))
        self.count += 1
        return feed

    def _guarded(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 (foreign values)
        try:
            return call()
        except (StopIteration, UserError):
            raise
        except (Exception, SystemExit) as error:
            raise failed(self._place, error, self._file) from error

    def _feed(self, item: object) -> Mapping[str, object]:
        if isinstance(item, Mapping):
            return {str(name): value for name, value in item.items()}
        if len(self._single) == 1 and hasattr(item, "__array__"):
            return {self._single[0]: item}
        raise SamplesError(
            f"{self._place}, sample {self.count}: a {type(item).__name__} is not a sample",
            hint="give a dict from input name to array",
        )


class _Rewinding:
    """Starts a calibration data reader again. It has one position, so only one pass can be active."""

    def __init__(self, reader: Any, place: str) -> None:  # noqa: ANN401 (known by its methods)
        self._reader = reader
        self._place = place
        self._latest = 0

    def __call__(self) -> Iterator[object]:
        self._latest += 1
        self._reader.rewind()
        return iter(self._next_of(self._latest), None)

    def _next_of(self, number: int) -> Callable[[], object]:
        def get_next() -> object:
            if number != self._latest:
                raise SamplesError(
                    f"{self._place}: two loops over the samples at the same time are not possible",
                    hint="finish one loop first, or give a list",
                )
            return cast("object", self._reader.get_next())

        return get_next


class _Spool:
    """Feeds in a temporary file."""

    def __init__(self, place: str, limits: Limits) -> None:
        self._place = place
        self._limits = limits
        self._size = 0
        self._index: list[dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]]] = []
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 (closed with this object)
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._index)

    def append(self, feed: Feed) -> None:
        entry = {}
        for name, value in feed.items():
            array = np.ascontiguousarray(value.astype(str) if value.dtype.kind == "O" else value)
            entry[name] = (self._size, array.dtype, value.shape)
            self._size += array.nbytes
            if self._size > self._limits.spool_bytes:
                raise SamplesError(
                    f"{self._place}: the samples take more than {self._limits.spool_bytes} bytes",
                    hint="give a function or a list, which can be read again, or set a limit",
                )
            try:
                self._file.seek(0, 2)
                self._file.write(array.reshape(-1).view(np.uint8).data if array.size else b"")
            except OSError as error:
                raise SamplesError(
                    f"{self._place}: cannot keep the samples: {error.strerror}"
                ) from None
        self._index.append(entry)

    def read(self, index: int) -> dict[str, object]:
        feed: dict[str, object] = {}
        for name, (offset, dtype, shape) in self._index[index].items():
            self._file.seek(offset)
            count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            buffer = np.frombuffer(bytearray(self._file.read(count)), np.uint8)
            feed[name] = buffer.view(dtype).reshape(shape)
        return feed


def _survey(
    feeds: _Feeds,
    inputs: Sequence[TensorSpec],
    place: str,
    limit: int | None,
    limits: Limits,
    store: Callable[[Feed], None] = lambda _: None,
) -> tuple[int, tuple[str, ...]]:
    """Goes through feeds once: checks all, counts them, and collects notes on conversions."""
    notes: dict[str, None] = {}
    count = 0

    def check(feed: Mapping[str, object]) -> list[str]:
        return _checked(feed, inputs, f"{place}, sample {count}", store)

    # `map` lets go of a feed before it asks for the next one.
    for found in map(check, itertools.islice(feeds, limit or limits.samples + 1)):
        notes |= dict.fromkeys(found)
        count += 1
        if limit is None and count > limits.samples:
            hint = "does it ever stop? set a limit"
            raise SamplesError(f"{place} gives more than {limits.samples} samples", hint=hint)
    if not count:
        raise SamplesError(f"{place} gives no samples")
    return count, tuple(notes)


def _amount(count: int, limit: int | None) -> str:
    return f"first {count} samples" if count == limit else f"{count} samples"


def _checked(
    feed: Mapping[str, object],
    inputs: Sequence[TensorSpec],
    place: str,
    store: Callable[[Feed], None],
) -> list[str]:
    store(conform(feed, inputs, place))
    dtypes = {name: getattr(value, "dtype", None) for name, value in feed.items()}
    notes = [
        check_dtype(dtype, spec, place)
        for spec in inputs
        if isinstance(dtype := dtypes.get(spec.name), np.dtype)
    ]
    return [note for note in notes if note]
