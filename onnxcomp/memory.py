"""Peak memory of loading and running a model, measured in a process of its own.

A process that already ran a model has grown for good, and a forked one would inherit that and the
runtime's locks, so a fresh interpreter is started: `python -m onnxcomp.memory`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import onnxcomp
from onnxcomp import errors
from onnxcomp.errors import RuntimeUnavailableError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.handover import Source

_MODEL, _FEEDS, _REQUEST = "model.onnx", "feeds.npz", "request.json"


@dataclass(frozen=True)
class PeakMemory:
    """Peak resident memory of a process that loads a model and runs it.

    Attributes:
        nbytes: Growth above the interpreter with the runtime loaded. Pages of memory-mapped weights
            count as far as they were touched.
        baseline: What the process took before the model came.
    """

    nbytes: int
    baseline: int


def peak_memory(
    model: Source,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    provider: str = "cpu",
    threads: int = 1,
    timeout: float = 300,
) -> PeakMemory | None:
    """Measures the peak memory of loading a model and running samples.

    Args:
        model: The model, as for `Session.open`. One that is not a file is written to a temporary one.
        feeds: Samples to run, one after another.
        provider: The execution provider.
        threads: Threads of one operator.
        timeout: Seconds after which the measurement is given up.

    Returns:
        The peak, None where the system does not tell.

    Raises:
        UserError: If the model does not load or run, or the process dies or hangs.
    """
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as name:
        folder = Path(name)
        request = {
            "model": str(_as_file(model, folder)),
            "provider": provider,
            "threads": threads,
            "dtypes": [
                {key: str(array.dtype) for key, array in sample.items()} for sample in feeds
            ],
        }
        (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        np.savez(folder / _FEEDS, allow_pickle=False, **_plain(feeds))
        answer = _ask(folder, timeout)
    return PeakMemory(**answer) if answer["nbytes"] is not None else None


def _as_file(model: Source, folder: Path) -> Path:
    if isinstance(model, (str, Path)):
        return Path(model).resolve()
    path = folder / _MODEL
    if isinstance(model, bytes):
        path.write_bytes(model)
        return path
    from onnxcomp.ir import Model

    Model.load(model).save(path)
    return path


def _plain(feeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns arrays that an npz file holds without pickling: foreign types as bytes, text as text."""
    plain = {}
    for index, sample in enumerate(feeds):
        for key, array in sample.items():
            if array.dtype.kind == "V":
                array = np.ascontiguousarray(array).view(np.uint8)
            plain[f"{index}/{key}"] = array.astype(str) if array.dtype.kind == "O" else array
    return plain


def _ask(folder: Path, timeout: float) -> dict[str, Any]:
    source = str(Path(onnxcomp.__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH", "")) if part)
    try:
        # -P: a file named like a module in the current folder must not be imported.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "onnxcomp.memory", str(folder)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailableError(
            f"the model did not finish within {timeout:g} s while its memory was measured"
        ) from error
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        how = (
            f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        )
        raise RuntimeUnavailableError(
            f"the runtime died while the model's memory was measured ({how})"
        ) from error
    if "error" in answer:
        raise getattr(errors, answer["kind"])(answer["error"], hint=answer["hint"])
    return dict(answer)


def _measure(folder: Path) -> dict[str, int | None]:
    """Loads and runs the model in this process, and returns how much memory that took."""
    from onnxcomp.elements import named_dtype
    from onnxcomp.runtime import Session

    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    with np.load(folder / _FEEDS, allow_pickle=False) as stored:
        feeds = []
        for index, dtypes in enumerate(request["dtypes"]):
            sample = {key: stored[f"{index}/{key}"] for key in dtypes}
            feeds.append({k: _restored(a, named_dtype(dtypes[k])) for k, a in sample.items()})
    baseline = _start()
    with Session.open(
        Path(request["model"]), provider=request["provider"], threads=request["threads"]
    ) as session:
        for sample in feeds:
            session.run(sample)
    peak = _high_water()
    if baseline is None or peak is None:
        return {"nbytes": None, "baseline": 0}
    return {"nbytes": max(peak - baseline, 0), "baseline": baseline}


def _restored(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "V":
        return array.view(dtype)
    return array.astype(dtype) if array.dtype != dtype else array


def _start() -> int | None:
    """Forgets the peak so far, where the system can, and returns the memory in use."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _high_water()
    return _status("VmRSS") or _high_water()


def _high_water() -> int | None:
    """Returns the peak of resident memory of this process in bytes."""
    # Not ru_maxrss on Linux: a child inherits the peak of its parent there.
    found = _status("VmHWM")
    if found is not None or sys.platform in ("linux", "win32"):
        return found
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(field: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _main() -> None:
    try:
        answer: dict[str, Any] = dict(_measure(Path(sys.argv[1])))
    except UserError as error:
        answer = {"kind": type(error).__name__, "error": error.message, "hint": error.hint}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _main()
