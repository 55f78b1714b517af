"""Keeps what calibration found, so that the same work is not done twice, nor again from the start.

An entry is named after everything that it depends on: the model with its weights, the samples, the values
looked at, the versions. It is read as what a stranger may have written: sizes and types are checked
against what is expected, and whatever does not fit is removed and found out again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import UserError
from onnxcomp.ir.atomic import AtomicWriter
from onnxcomp.quant.calibrate import Observed
from onnxcomp.quant.observers import Histogram
from onnxcomp.runtime import runtime_version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.ir import Model
    from onnxcomp.samples import Samples

# To be raised when observers or their states change.
FORMAT = 1
FOLDER_BYTES = 512 << 20
_SUFFIX = ".calibration"
_MAGIC = b"onnxcomp calibration\n"
_MOST_BYTES, _MOST_HEADER_BYTES = 256 << 20, 16 << 20
_TYPES = {name: np.dtype(name) for name in ("float64", "float32", "int64")}
_VARIABLE = "ONNXCOMP_CACHE"


def cache_folder() -> Path | None:
    """Returns where the platform wants caches to be, None where there is no such place.

    `ONNXCOMP_CACHE` names another folder; empty it says that nothing is to be kept.
    """
    if _VARIABLE in os.environ:
        return Path(os.environ[_VARIABLE]) if os.environ[_VARIABLE] else None
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    if named and Path(named).is_absolute():
        return Path(named) / "onnxcomp"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "onnxcomp"


@dataclass
class CalibrationCache:
    """What calibrations of a model on samples found.

    Attributes:
        folder: Where it is kept; made when something is.
        model: The model.
        samples: The samples.
        limit: Bytes that the folder may take; the entries used longest ago go first.
    """

    folder: Path
    model: Model
    samples: Samples
    limit: int = FOLDER_BYTES

    @cached_property
    def key(self) -> str:
        """A hash of model, samples and versions. Weights are read one at a time."""
        state = hashlib.sha256()
        versions = [FORMAT, runtime_version(), np.__version__]
        _update(state, json.dumps([*versions, self.samples.digest()]).encode())
        _update(state, self.model.to_proto(weights=False).SerializeToString(deterministic=True))
        for value in self.model.initializers():
            if value.const_value is not None:
                _update(state, (value.name or "").encode())
                _update(state, value.const_value.tobytes())
        return state.hexdigest()

    def load(self, group: Sequence[str], empty: Observed) -> tuple[int, Observed] | None:
        """Returns after how many samples the calibration of a group stopped, and what is known.

        Args:
            group: The values looked at.
            empty: What is to be filled: nothing seen yet.
        """
        path = self._path(group, empty)
        try:
            return _read(path, group, empty)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            with suppress(OSError):
                path.unlink()
            return None

    def save(self, group: Sequence[str], samples: int, found: Observed) -> None:
        """Keeps what is known of a group after some samples. Where that is not possible, it is not kept."""
        entry = _Entry(samples)
        for index, name in enumerate(group):
            if name in found.histograms:
                entry.arrays[f"{index}"] = found.histograms[name].state()
            if name in found.channels:
                for part, array in found.channels[name].state().items():
                    entry.arrays[f"{index} {part}"] = array
        with suppress(OSError, UserError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with AtomicWriter(self._path(group, found), durable=False) as writer:
                writer.open().write(entry.encoded())
            self._tidy()

    def _path(self, group: Sequence[str], found: Observed) -> Path:
        wanted = {name: [c.axis, c.size, c.wanted] for name, c in found.channels.items()}
        text = json.dumps([self.key, list(group), wanted], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}{_SUFFIX}"

    def _tidy(self) -> None:
        """Removes what was used longest ago when the folder takes too much."""
        entries = [(path.stat(), path) for path in self.folder.glob(f"*{_SUFFIX}")]
        entries.sort(key=lambda entry: entry[0].st_mtime, reverse=True)
        total = 0
        for status, path in entries:
            total += status.st_size
            if total > self.limit:
                path.unlink(missing_ok=True)


@dataclass
class _Entry:
    """The content of a file: a line of JSON that describes arrays, then their bytes."""

    samples: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def encoded(self) -> bytes:
        body = b"".join(np.ascontiguousarray(array).tobytes() for array in self.arrays.values())
        shapes = [[n, a.dtype.name, list(a.shape)] for n, a in self.arrays.items()]
        head = {
            "samples": self.samples,
            "arrays": shapes,
            "digest": hashlib.sha256(body).hexdigest(),
        }
        return _MAGIC + json.dumps(head).encode() + b"\n" + body

    @classmethod
    def decoded(cls, data: bytes) -> _Entry:
        end = data.find(b"\n", len(_MAGIC), _MOST_HEADER_BYTES)
        if not data.startswith(_MAGIC) or end < 0:
            raise ValueError("not a calibration")
        head = json.loads(data[len(_MAGIC) : end])
        body = memoryview(data)[end + 1 :]
        if hashlib.sha256(body).hexdigest() != head["digest"]:
            raise ValueError("a damaged calibration")
        samples, start = head["samples"], 0
        made = cls(samples)
        for name, kind, shape in head["arrays"]:
            if type(name) is not str:
                raise ValueError("not the name of an array")
            count = _count(shape)
            stop = start + count * _TYPES[kind].itemsize
            if stop > len(body):
                raise ValueError("arrays that are not there")
            array = np.frombuffer(body[start:stop], _TYPES[kind]).reshape(shape)
            made.arrays[name] = array.copy()
            start = stop
        if type(samples) is not int or samples < 0:
            raise ValueError("not a number of samples")
        return made


def _count(shape: Any) -> int:  # noqa: ANN401 - whatever JSON gave
    sizes_fit = isinstance(shape, list) and len(shape) <= 2
    if not sizes_fit or not all(type(n) is int and 0 <= n <= _MOST_BYTES for n in shape):
        raise ValueError("not a shape")
    return int(np.prod(shape, dtype=np.int64))


def _read(path: Path, group: Sequence[str], empty: Observed) -> tuple[int, Observed]:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError("too large")
    entry = _Entry.decoded(data)
    found = Observed(channels=empty.channels)
    for index, name in enumerate(group):
        if f"{index}" in entry.arrays:
            found.histograms[name] = Histogram.from_state(entry.arrays[f"{index}"])
    states = {name: _parts(entry.arrays, index) for index, name in enumerate(group)}
    for name, channels in empty.channels.items():
        channels.check(states[name])
    for name, channels in empty.channels.items():
        channels.restore(states[name])
    with suppress(OSError):
        os.utime(path)
    return entry.samples, found


def _parts(arrays: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    start = f"{index} "
    return {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}


def _update(state: Any, data: bytes) -> None:  # noqa: ANN401 - hashlib's type has no public name
    state.update(len(data).to_bytes(8, "little"))
    state.update(data)
