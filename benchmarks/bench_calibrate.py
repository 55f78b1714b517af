"""Time and memory of calibrating and quantizing a model, whole processes, against other quantizers.

    python benchmarks/bench_calibrate.py [--zoo DIR] [--models NAME...] [--peer-python PYTHON]
                                         [--counts 32 128] [--rounds 3] [--tools NAME...]

Every tool quantizes the same model with the same samples (the calibration data, repeated), per channel
where it can, in a process of its own; all take turns. Memory is the most that was seen of the process
tree, without files that are mapped, sampled every 20 ms. onnxruntime's models are not pre-processed first,
which its documentation asks for and which would take more time. Sessions run on one thread as far as a
tool lets us say so.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from _common import RESULTS, Child, Row, onnxcomp_command, parser, run_child, say, write_results
from _models import chosen_bundles, read_feeds
from _peers import NOTE, interpreters, nncf_default, onnxsim_full_qdq, ort_static

Command: TypeAlias = list[str | Path]
COLUMNS = [
    "model",
    "samples",
    "tool",
    "seconds",
    "ratio",
    "cpu_seconds",
    "megabytes",
    "memory_ratio",
    "note",
]
MODELS = ("mobilenetv2", "efficientnet_lite0", "minilm", "ppocr_rec", "ppocr_det", "crepe_tiny")
# What the ratios are to.
BASE = "ort_minmax"
OURS = {
    "onnxcomp_minmax": ("--observer", "min-max", "--placement", "all"),
    "onnxcomp_entropy": ("--observer", "entropy", "--placement", "all"),
    "onnxcomp_auto": ("--placement", "all"),
    "onnxcomp_measured": (),
}
PEERS = {
    "ort_minmax": "onnxruntime",
    "ort_entropy": "onnxruntime",
    "ort_percentile": "onnxruntime",
    "nncf": "nncf",
    "onnxsim_full_qdq": "onnxsim",
}
METHODS = {"ort_minmax": "MinMax", "ort_entropy": "Entropy", "ort_percentile": "Percentile"}
WATCH_SECONDS, TIMEOUT = 0.02, 1800.0


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--counts", type=int, nargs="+", default=[32, 128])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tools", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS])
    given = options.parse_args()
    pythons = interpreters([given.peer_python, given.python])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="calibrate-") as name:
        folder = Path(name)
        names = given.models or (MODELS if given.zoo else [])
        for bundle in chosen_bundles(given.zoo, names, folder):
            for count in given.counts:
                data = folder / f"{bundle.name}-{count}.npz"
                write_samples(bundle.calibration, data, count)
                commands = {
                    tool: command(tool, given.python, pythons, bundle.model, data, folder)
                    for tool in given.tools
                }
                rows += measured(bundle.name, count, commands, given.rounds)
                data.unlink()
    write_results(
        given.output or RESULTS / "calibrate.json",
        "Calibrating and quantizing, whole processes",
        rows,
        COLUMNS,
        notes=[
            "seconds: median over rounds; ratio: onnxruntime's min-max takes so many times as long; "
            "memory_ratio: as much memory as that; megabytes: anonymous, most over the process tree"
        ],
    )


def write_samples(source: Path, target: Path, count: int) -> None:
    """Writes that many samples, the same ones again and again."""
    feeds = read_feeds(source)
    arrays = {
        f"{index}/{name}": array
        for index in range(count)
        for name, array in feeds[index % len(feeds)].items()
    }
    np.savez(target, **arrays)  # type: ignore[arg-type]  # numpy has a keyword of another type there


def command(
    tool: str,
    python: str,
    pythons: dict[str, tuple[str, str]],
    model: Path,
    data: Path,
    folder: Path,
) -> Command:
    """What to run; nothing when the tool is not installed."""
    out = folder / f"{tool}.onnx"
    if tool in OURS:
        fixed = ("--data", data, "--threads", "1", "--quiet", "--no-cache", "-o", out)
        return onnxcomp_command(python, "quantize", "static", model, *fixed, *OURS[tool])
    if PEERS[tool] not in pythons:
        return []
    return [pythons[PEERS[tool]][0], Path(__file__), "child", tool, model, data, out]


def measured(model: str, count: int, commands: dict[str, Command], rounds: int) -> list[Row]:
    """Runs the tools in turns."""
    runs: dict[str, list[Child]] = {tool: [] for tool in commands}
    for number in range(rounds):
        for tool, line in commands.items():
            if line and (not runs[tool] or runs[tool][-1].returncode == 0):
                runs[tool].append(run_child(line, timeout=TIMEOUT, watch=WATCH_SECONDS))
                say(f"{model} {count} {tool} {number}: {runs[tool][-1].seconds:.2f} s")
    base = summary(runs.get(BASE, []))
    return [row(model, count, tool, done, base) for tool, done in runs.items()]


def summary(runs: Sequence[Child]) -> tuple[float, float] | None:
    """Median of seconds and of megabytes of the runs that succeeded."""
    good = [run for run in runs if run.returncode == 0]
    if not good:
        return None
    seconds = statistics.median(run.seconds for run in good)
    return seconds, statistics.median(run.peak_anonymous for run in good) / 2**20


def row(
    model: str, count: int, tool: str, runs: Sequence[Child], base: tuple[float, float] | None
) -> Row:
    """One line of the table."""
    found = summary(runs)
    made: Row = {"model": model, "samples": count, "tool": tool}
    if found is None:
        return {**made, "note": runs[-1].reason if runs else "not installed"}
    made |= {"seconds": found[0], "megabytes": found[1], "rounds": [run.seconds for run in runs]}
    made["cpu_seconds"] = statistics.median(run.cpu_seconds for run in runs if not run.returncode)
    made["note"] = runs[-1].stdout.rpartition(NOTE)[2].strip() if tool in PEERS else ""
    if base is not None:
        made |= {"ratio": base[0] / found[0], "memory_ratio": found[1] / base[1]}
    return made


def child(tool: str, model: Path, data: Path, out: Path) -> None:
    """Quantizes with a peer, in this process."""
    feeds = read_feeds(data)
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name)
        if tool in METHODS:
            note = ort_static(model, feeds, out, folder, METHODS[tool])
        elif tool == "nncf":
            note = nncf_default(model, feeds, out, folder)
        else:
            note = onnxsim_full_qdq(model, feeds, out, folder)
    sys.stdout.write(f"\n{NOTE}{note}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], *map(Path, sys.argv[3:6]))
    else:
        main()
