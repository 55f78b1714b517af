"""What every benchmark shares: child processes, interleaved timing, counts, tables.

Imports nothing but numpy, onnx and (when a session is opened) onnxruntime, so that it also runs
under the interpreter that holds the peers.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

Feeds: TypeAlias = dict[str, np.ndarray[Any, Any]]
Row: TypeAlias = dict[str, Any]

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = (
    "onnxcomp",
    "onnx",
    "onnxruntime",
    "onnx-ir",
    "numpy",
    "onnxsim",
    "onnxslim",
    "onnxscript",
    "nncf",
)


# ---------------------------------------------------------------- command line and results


def parser(description: str, *, models: bool = True) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", type=Path, help="JSON of the results (a .md is written beside)")
    made.add_argument(
        "--python", default=sys.executable, help="interpreter that has onnxcomp (this one)"
    )
    made.add_argument(
        "--peer-python", default=sys.executable, help="interpreter that has the peers (this one)"
    )
    if models:
        made.add_argument("--zoo", type=Path, help="folder of model bundles (see README.md)")
        made.add_argument("--models", nargs="+", default=[], help="only these models")
    return made


def environment() -> Row:
    """Versions and machine, for a table that somebody reads next year."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "packages": versions,
    }


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A table; floats with four significant digits, absent cells empty."""

    def cell(value: object) -> str:
        if value is None:
            return ""
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write_results(
    path: Path,
    title: str,
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    notes: Sequence[str] = (),
) -> None:
    """JSON with everything, and beside it a Markdown table of `columns`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = environment()
    document = {"title": title, "environment": machine, "notes": list(notes), "rows": list(rows)}
    path.write_text(json.dumps(document, indent=1) + "\n")
    packages = ", ".join(f"{name} {v}" for name, v in machine["packages"].items() if v)
    head = f"# {title}\n\n{machine['date']}, {machine['cpu']}, {packages}\n\n"
    tail = "".join(f"\n{note}\n" for note in notes)
    path.with_suffix(".md").write_text(head + markdown(rows, columns) + tail)


def say(text: str) -> None:
    """Progress, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


# ---------------------------------------------------------------- child processes


@dataclass
class Child:
    """How a process went; memory is the sum over its process tree, sampled."""

    returncode: int
    seconds: float
    stdout: str
    stderr: str
    timed_out: bool = False
    peak_anonymous: int = 0
    peak_resident: int = 0
    cpu_seconds: float = 0.0

    @property
    def reason(self) -> str:
        """The last line that the process wrote, or why it ended."""
        if self.timed_out:
            return "timed out"
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        last = lines[-1][:160] if lines else ""
        return last if self.returncode > 0 else f"killed by signal {-self.returncode} {last}"


@dataclass
class _Watcher:
    """Samples the memory of a process tree from /proc until stopped."""

    pid: int
    interval: float
    anonymous: int = 0
    resident: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.wait(self.interval):
            usage = [_memory(pid) for pid in _tree(self.pid)]
            anonymous = sum(u[0] for u in usage)
            # Processes of one tree map the same libraries: the one that maps most stands for all.
            mapped = max(u[1] for u in usage)
            self.anonymous = max(self.anonymous, anonymous)
            self.resident = max(self.resident, anonymous + mapped)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _tree(int(child))
    except OSError:
        return  # the process ended while we looked


def _memory(pid: int) -> tuple[int, int]:
    """Bytes that only swapping could take back, and bytes of files in memory.

    The former count a page that forked processes share in parts, so that a sum over them is right.
    """
    kib: dict[str, int] = {}
    for file in ("status", "smaps_rollup"):
        try:
            lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
        except OSError:
            continue
        kib |= {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    own = kib.get("Pss_Anon", kib.get("RssAnon", 0)) + kib.get("Pss_Shmem", kib.get("RssShmem", 0))
    return own * 1024, kib.get("RssFile", 0) * 1024


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """The environment of a child.

    Without PYTHONDONTWRITEBYTECODE: a checkout would be compiled anew in each run then, and packages
    that pip installed not, which makes a tenth of a second between them.
    """
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **(extra or {})}


def run_child(
    command: Sequence[str | Path],
    *,
    timeout: float = 900,
    watch: float = 0,
    env: Mapping[str, str] | None = None,
) -> Child:
    """Runs `command`; `watch` > 0 samples its memory every so many seconds.

    Times are only comparable between runs with the same `watch`.
    """
    used = _cpu_of_children()
    started = time.perf_counter()
    with subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_environment(env),
    ) as process:
        watcher = _Watcher(process.pid, watch or 1.0)
        thread = threading.Thread(target=watcher.run, daemon=True)
        if watch:
            thread.start()
        timed_out = False
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.kill()
            stdout, stderr = process.communicate()
        seconds = time.perf_counter() - started
        watcher.stop.set()
        if watch:
            thread.join()
    return Child(
        process.returncode,
        seconds,
        stdout,
        stderr,
        timed_out,
        watcher.anonymous,
        watcher.resident,
        _cpu_of_children() - used,
    )


def _cpu_of_children() -> float:
    """Processor seconds of all processes that ended, and those that they waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def interleave(
    commands: Mapping[str, Sequence[str | Path]],
    rounds: int,
    *,
    timeout: float = 900,
    watch: float = 0,
    before: Callable[[], None] | None = None,
) -> dict[str, list[Child]]:
    """Runs all commands in turn, `rounds` times; one that fails is not run again.

    `before` is called before each run, outside of its time.
    """
    done: dict[str, list[Child]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            if not done[name] or done[name][-1].returncode == 0:
                if before:
                    before()
                done[name].append(run_child(command, timeout=timeout, watch=watch))
    return done


def onnxcomp_command(python: str, *arguments: str | Path) -> list[str | Path]:
    """Our command line in the environment of `python`."""
    script = Path(python).parent / "onnxcomp"
    program: list[str | Path] = [script] if script.exists() else [python, "-m", "onnxcomp"]
    return [*program, *arguments]


def median_seconds(runs: Sequence[Child]) -> float | None:
    """Median of the runs that succeeded."""
    good = [run.seconds for run in runs if run.returncode == 0]
    return statistics.median(good) if good else None


# ---------------------------------------------------------------- sessions


def open_session(model: Path | bytes, *, threads: int = 1, optimize: bool = True) -> Any:
    """An onnxruntime CPU session, quiet."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        sess_options=options,
        providers=["CPUExecutionProvider"],
    )


def run_session(session: Any, feeds: Feeds) -> Feeds:
    """Named outputs of one run."""
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def interleaved_latency(
    sessions: Mapping[str, tuple[Any, Feeds]],
    *,
    rounds: int = 21,
    chunk_seconds: float = 0.03,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Seconds per run of each session in each round; all take turns, in an order drawn anew."""
    repeats: dict[str, int] = {}
    for name, (session, feeds) in sessions.items():
        session.run(None, feeds)
        repeats[name] = max(1, int(chunk_seconds / max(_best(session, feeds, 3), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in sessions}
    order = np.random.default_rng(seed)
    for _ in range(rounds):
        for name in order.permutation(list(sessions)).tolist():
            times[name].append(_best(*sessions[name], repeats[name]))
    return times


def _best(session: Any, feeds: Feeds, repeats: int) -> float:
    """Shortest of some runs: what the machine's other work disturbed least."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        session.run(None, feeds)
        best = min(best, time.perf_counter() - started)
    return best


def ratio(times: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Median and interquartile range of the paired ratios `times / reference`."""
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    if len(ratios) < 4:
        return statistics.median(ratios), max(ratios) - min(ratios)
    first, middle, third = statistics.quantiles(ratios, n=4)
    return middle, third - first


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and the ends of its 95 % interval, from order statistics."""
    ordered = sorted(values)
    half = 0.98 * len(ordered) ** 0.5
    low = max(0, int(len(ordered) / 2 - half))
    return statistics.median(ordered), ordered[low], ordered[-1 - low]


def geometric_mean(values: Sequence[float]) -> float | None:
    """Geometric mean, None of nothing."""
    return statistics.geometric_mean(values) if values else None


# ---------------------------------------------------------------- models


def count_nodes(model: Path) -> int:
    """Nodes of every scope (control flow bodies and functions too); Constant nodes do not count."""
    proto = onnx.load(str(model), load_external_data=False)
    scopes: list[Any] = [proto.graph, *proto.functions]
    total = 0
    while scopes:
        for node in scopes.pop().node:
            total += int(node.op_type != "Constant")
            for attribute in node.attribute:
                scopes.extend(attribute.graphs)
                if attribute.type == onnx.AttributeProto.GRAPH:
                    scopes.append(attribute.g)
    return total


def model_bytes(model: Path) -> int:
    """Size of the file and of the data files beside it."""
    proto = onnx.load(str(model), load_external_data=False)
    names: set[str] = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [model, *(model.parent / name for name in names)]
    return sum(file.stat().st_size for file in files)
