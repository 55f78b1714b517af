"""`onnxcomp optimize` against onnxsim, onnxslim, onnxscript and onnxruntime's basic level.

    python benchmarks/bench_optimize.py [--zoo DIR] [--models NAME...] [--tools NAME...]
        [--peer-python PYTHON]

Every tool is a whole process, started as its user would (`_peers.py`): a console script, or the
shortest Python script where there is none. Processes run in turn (A B C A B C ...), times are medians.

- `nodes`: over all scopes, Constant nodes not counted.
- `seconds`: the whole process; `times_onnxcomp`: divided by ours. `cpu_seconds`: what it and its
  children spent in processors, which a busy machine changes less, but which threads add up in.
- `anonymous_mb`: peak of the memory that only swapping could take back, over the process tree, pages
  shared by forked processes counted once. `resident_mb` adds the pages of files (libraries, weights
  that are memory-mapped) of the process that has most of them. Sampled in a run of its own.
- `speed`: time of the original / time of the result in onnxruntime, one thread, the runtime's own
  optimizations on (what a user gets): above 1 is faster. Paired and interleaved, sessions opened
  anew several times, `low` and `high` are the 95 % interval of the median. The tool `original` is a
  second session of the original: what the machine's noise amounts to.
- `difference`: largest deviation of an output from the original's, relative to the largest value of
  that output, over a few samples.
- `broken`: the tool fails, or its result does not load or run, has other inputs or outputs, or
  differs by more than a thousandth.
"""

import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    RESULTS,
    Child,
    Feeds,
    Row,
    count_nodes,
    geometric_mean,
    interleave,
    interleaved_latency,
    median_interval,
    median_seconds,
    model_bytes,
    onnxcomp_command,
    open_session,
    parser,
    run_child,
    run_session,
    say,
    write_results,
)
from _models import Bundle, chosen_bundles
from _peers import OPTIMIZERS, installed, optimizer_command

COLUMNS = [
    "model",
    "tool",
    "nodes",
    "bytes",
    "seconds",
    "times_onnxcomp",
    "cpu_seconds",
    "anonymous_mb",
    "resident_mb",
    "speed",
    "low",
    "high",
    "difference",
    "broken",
]
OURS, ORIGINAL = "onnxcomp", "original"
COMPARED_SAMPLES = 3
LARGEST_DIFFERENCE = 1e-3
SLOWEST = 0.99
# The runtime's own optimizer compares nothing and writes what it is about to run: no match in time.
PYTHON_PEERS = frozenset(OPTIMIZERS) - {"onnxruntime"}
LARGE_BYTES = 50_000_000
# Sessions of one model differ by a percent or two in where their memory lies: so not one of each.
SESSIONS = 4
SAMPLING = 0.005


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--tools", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    options.add_argument("--rounds", type=int, default=5, help="whole processes of each tool")
    options.add_argument("--latency-rounds", type=int, default=11, help="per set of sessions")
    options.add_argument("--no-latency", action="store_true")
    options.add_argument("--timeout", type=float, default=900)
    chosen = options.parse_args()
    there = installed(chosen.peer_python)
    peers = [name for name in chosen.tools if name in there]
    absent = [f"not installed: {name}" for name in chosen.tools if name not in there]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for bundle in chosen_bundles(chosen.zoo, chosen.models, folder):
            outs = {name: folder / f"{bundle.name}.{name}.onnx" for name in (OURS, *peers)}
            commands = {
                name: onnxcomp_command(chosen.python, "optimize", bundle.model, "-o", out)
                if name == OURS
                else optimizer_command(chosen.peer_python, name, bundle.model, out)
                for name, out in outs.items()
            }
            found = _measure(bundle, commands, outs, chosen.rounds, chosen.timeout)
            _run_results(bundle, outs, found, 0 if chosen.no_latency else chosen.latency_rounds)
            rows += found
            for row in found:
                say("  ".join(f"{name}={_short(row.get(name))}" for name in COLUMNS))
            for out in outs.values():
                out.unlink(missing_ok=True)
            write_results(
                chosen.output or RESULTS / "optimize.json",
                "Lossless optimization",
                rows,
                COLUMNS,
                notes=[*absent, *summary(rows), *misses(rows)],
            )


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _measure(
    bundle: Bundle,
    commands: dict[str, list[str | Path]],
    outs: dict[str, Path],
    rounds: int,
    timeout: float,
) -> list[Row]:
    for out in outs.values():
        out.unlink(missing_ok=True)
    # Sampling the memory costs a little time, so it gets a run of its own if there are several.
    once = rounds == 1
    done = interleave(commands, rounds, timeout=timeout, watch=SAMPLING if once else 0)
    sampled = {
        name: runs[0] if once else run_child(commands[name], timeout=timeout, watch=SAMPLING)
        for name, runs in done.items()
        if runs[-1].returncode == 0
    }
    ours = median_seconds(done[OURS])
    original: Row = {
        "model": bundle.name,
        "tool": ORIGINAL,
        "nodes": count_nodes(bundle.model),
        "bytes": model_bytes(bundle.model),
    }
    return [original] + [
        _row(bundle, name, runs, sampled.get(name), outs[name], ours) for name, runs in done.items()
    ]


def _row(
    bundle: Bundle,
    name: str,
    runs: list[Child],
    sampled: Child | None,
    out: Path,
    ours: float | None,
) -> Row:
    seconds = median_seconds(runs)
    row: Row = {
        "model": bundle.name,
        "tool": name,
        "seconds": seconds,
        "times_onnxcomp": seconds / ours if seconds and ours else None,
        "cpu_seconds": statistics.median(run.cpu_seconds for run in runs),
        "all_seconds": [run.seconds for run in runs],
        "broken": f"failed: {runs[-1].reason}" if runs[-1].returncode else "",
    }
    if sampled:
        row["anonymous_mb"] = sampled.peak_anonymous / 1e6
        row["resident_mb"] = sampled.peak_resident / 1e6
    if out.exists():
        row |= {"nodes": count_nodes(out), "bytes": model_bytes(out)}
    elif not row["broken"]:
        row["broken"] = "wrote nothing"
    return row


# ---------------------------------------------------------------- results


def _run_results(bundle: Bundle, outs: dict[str, Path], rows: list[Row], rounds: int) -> None:
    """Adds difference, breakage and, with `rounds`, speed."""
    by_tool = {row["tool"]: row for row in rows}
    original = open_session(bundle.model)
    samples = bundle.feeds[:COMPARED_SAMPLES]
    reference = [run_session(original, feeds) for feeds in samples]
    usable = {ORIGINAL: bundle.model}
    for name, out in outs.items():
        if by_tool[name]["broken"]:
            continue
        difference, why = _judge(out, original, samples, reference)
        by_tool[name] |= {"difference": difference, "broken": why}
        if not why:
            usable[name] = out
    if rounds:
        for name, speeds in _speeds(bundle, usable, rounds).items():
            row = by_tool[name]
            row["speed"], row["low"], row["high"] = median_interval(speeds)


def _judge(
    out: Path, original: Any, samples: Sequence[Feeds], reference: Sequence[Feeds]
) -> tuple[float | None, str]:
    """How much a result differs, and what is wrong with it, if anything."""
    try:
        session = open_session(out)
        if _interface(session) != _interface(original):
            return None, "inputs or outputs changed"
        outputs = [run_session(session, feeds) for feeds in samples]
    except Exception as error:  # noqa: BLE001  (onnxruntime raises many kinds)
        return None, f"does not run: {str(error)[:120]}"
    difference = _difference(outputs, reference)
    return difference, "differs" if difference > LARGEST_DIFFERENCE else ""


def _interface(session: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    return (
        [(value.name, value.type) for value in session.get_inputs()],
        [(value.name, value.type) for value in session.get_outputs()],
    )


def _difference(outputs: Sequence[Feeds], reference: Sequence[Feeds]) -> float:
    worst = 0.0
    for got, expected in zip(outputs, reference, strict=True):
        for name, value in expected.items():
            if got[name].shape != value.shape:
                return math.inf
            a, b = got[name].astype(np.float64), value.astype(np.float64)
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            gap = np.abs(np.where(same, 0, a) - np.where(same, 0, b))
            gap = np.where(np.isnan(gap), np.inf, gap)
            scale = max(float(np.abs(b[np.isfinite(b)]).max(initial=0)), 1e-12)
            worst = max(worst, float(gap.max(initial=0)) / scale)
    return worst


def _speeds(bundle: Bundle, models: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Paired speeds relative to the original; under its own name those of a second session of it."""
    speeds: dict[str, list[float]] = {name: [] for name in models}
    reference = "the reference"
    for seed in range(SESSIONS):
        order = [reference, *models]
        np.random.default_rng(seed).shuffle(order)  # who comes first gets other memory
        paths = {**models, reference: bundle.model}
        sessions = {name: (open_session(paths[name]), bundle.timed_feeds) for name in order}
        times = interleaved_latency(sessions, rounds=rounds, seed=seed)
        for name in models:
            speeds[name] += [
                base / own for base, own in zip(times[reference], times[name], strict=True)
            ]
    return speeds


# ---------------------------------------------------------------- what it comes to


def summary(rows: Sequence[Row]) -> list[str]:
    """Geometric means of each tool over the models that it did not break."""
    originals = {row["model"]: row for row in rows if row["tool"] == ORIGINAL}
    ours = {row["model"]: row for row in rows if row["tool"] == OURS}
    lines = []
    for tool in dict.fromkeys(row["tool"] for row in rows):
        own = [row for row in rows if row["tool"] == tool]
        good = [row for row in own if not row.get("broken")]
        parts = [f"{tool}: {len(good)} of {len(own)} models kept"]
        for title, name, reference in (
            ("nodes / original's", "nodes", originals),
            ("speed", "speed", None),
            ("seconds / ours", "seconds", ours),
            ("processor seconds / ours", "cpu_seconds", ours),
            ("anonymous memory / ours", "anonymous_mb", ours),
            ("resident memory / ours", "resident_mb", ours),
        ):
            found = geometric_mean(list(_ratios(good, name, reference)))
            if found is not None and (tool != ORIGINAL or name == "speed"):
                parts.append(f"{title} {found:.3f}")
        lines.append(", ".join(parts))
    return lines


def _ratios(rows: Iterable[Row], name: str, reference: dict[str, Row] | None) -> Iterable[float]:
    for row in rows:
        base = 1.0 if reference is None else reference[row["model"]].get(name)
        if row.get(name) and base:
            yield row[name] / base


@dataclass(frozen=True)
class Claim:
    """A column in which no peer may be better."""

    title: str
    column: str
    unit: str
    show: Callable[[float], str]
    against: frozenset[str] = PYTHON_PEERS


CLAIMS = (
    Claim("more nodes", "nodes", "", lambda value: f"{value:.0f}", frozenset(OPTIMIZERS)),
    Claim("took longer", "seconds", " s", lambda value: f"{value:.2f}"),
    Claim("more anonymous memory", "anonymous_mb", " MB", lambda value: f"{value:.1f}"),
    Claim("more resident memory", "resident_mb", " MB", lambda value: f"{value:.1f}"),
)


def misses(rows: Sequence[Row]) -> list[str]:
    """Where we are not what we want to be."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = {row["tool"]: row for row in rows if row["model"] == model}
        mine = of_model[OURS]
        peers = [row for name, row in of_model.items() if name not in (OURS, ORIGINAL)]
        if mine["broken"]:
            found.append(f"MISS {model}: {mine['broken']}")
            continue
        found += [f"MISS {model}: {text}" for text in _slower_result(mine, peers)]
        for claim in CLAIMS:
            found += [f"MISS {model}: {text}" for text in _beaten(mine, peers, claim)]
        found += [f"MISS {model}: {text}" for text in _not_a_third(mine, of_model, peers)]
    return found or ["no miss"]


def _slower_result(mine: Row, peers: Sequence[Row]) -> Iterable[str]:
    if mine.get("speed") and mine["speed"] < SLOWEST:
        sure = "surely" if mine["high"] < SLOWEST else "perhaps"
        yield f"the result is {sure} slower than the original, speed {mine['speed']:.3f}"
    for peer in peers:
        if peer.get("speed") and peer["low"] > mine.get("high", math.inf):
            yield (
                f"the result of {peer['tool']} is faster, speed {peer['speed']:.3f}, "
                f"ours {mine['speed']:.3f}"
            )


def _beaten(mine: Row, peers: Sequence[Row], claim: Claim) -> Iterable[str]:
    for peer in peers:
        theirs, own = peer.get(claim.column), mine.get(claim.column)
        if peer["tool"] in claim.against and not peer["broken"] and theirs and own and theirs < own:
            yield (
                f"{claim.title} than {peer['tool']}: "
                f"{claim.show(own)} > {claim.show(theirs)}{claim.unit}"
            )


def _not_a_third(mine: Row, of_model: dict[str, Row], peers: Sequence[Row]) -> Iterable[str]:
    if of_model[ORIGINAL]["bytes"] < LARGE_BYTES:
        return
    for peer in peers:
        if peer["tool"] not in PYTHON_PEERS or peer["broken"] or not peer.get("seconds"):
            continue
        if mine["seconds"] > peer["seconds"] / 3:
            yield (
                f"a large model took {mine['seconds']:.2f} s, "
                f"more than a third of {peer['tool']}'s {peer['seconds']:.2f} s"
            )


if __name__ == "__main__":
    main()
