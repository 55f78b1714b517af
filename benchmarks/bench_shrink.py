"""Masks made elsewhere: what does `onnxcomp apply shrink-channels` make of them?

    python benchmarks/bench_shrink.py [--zoo DIR] [--models NAME...] [--torch-python PYTHON]
                                      [--peer-python PYTHON] [--masks coupled layers] [--rounds N]

Models go through `onnxcomp optimize` first. Half of the channels of every layer become zero (`_masks.py`
says how), then channels without effect are
removed. `ideal` is the same network written with half of its channels; models of a zoo have none. The
speed-up is that of the shrunk over the masked model, `flops_ratio` what it would be if time were
arithmetic; where the ideal network is known its speed-up stands beside ours. onnxsim simplifies the
same masked file.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    HERE,
    RESULTS,
    Feeds,
    Row,
    geometric_mean,
    interleaved_latency,
    onnxcomp_command,
    open_session,
    parser,
    ratio,
    run_child,
    run_session,
    say,
    write_results,
)
from _counting import count_arithmetic, count_parameters, random_feeds
from _if_family import conv_in_if
from _models import chosen_bundles
from _pruners import torch_program

RATIO = 0.5
WANTED = 0.8
STAIRS = (
    "With AVX-512 the blocked layout of onnxruntime has 16 channels to a block: a Conv of 12 channels takes "
    "as long as one of 16, one of 24 as long as one of 32. Networks of few channels gain what is left of "
    "their blocks, however they came to have fewer channels."
)
COLUMNS = [
    *("model", "masks", "masked", "removed", "merged", "parameters", "ideal", "of_ideal", "flops"),
    *("error", "flops_ratio", "speedup", "spread", "of_flops_ratio", "ideal_speedup"),
    *("onnxsim", "seconds", "note"),
]
ONNXSIM = (
    "import sys, onnx, onnxsim; onnx.save(onnxsim.simplify(onnx.load(sys.argv[1]))[0], sys.argv[2])"
)


@dataclass
class Case:
    """A model, something to run it on, and the network with half of its channels."""

    name: str
    model: Path
    feeds: list[Feeds]
    timed: Feeds
    ideal: Path | None = None


def cases(chosen: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Networks of all families where there is torch; models of the zoo, or of the demo and packages."""
    known = _families(chosen.torch_python) if chosen.torch_python else []
    known.append("conv_in_if")
    names = [name for name in chosen.models or known if name in known]
    built = [name for name in names if name != "conv_in_if"]
    if built:
        _build(chosen, built, folder)
    for name in names:
        made, ideal = folder / f"{name}.onnx", folder / f"{name}.ideal.onnx"
        if name == "conv_in_if":
            conv_in_if(1.0, made)
            conv_in_if(RATIO, ideal)
        if made.exists() and ideal.exists():
            yield _family(name, made, ideal)
        else:
            say(f"{name}: not exported")
    others = [name for name in chosen.models if name not in known]
    if others or not chosen.models:
        for bundle in chosen_bundles(chosen.zoo, others, folder, trained=True):
            yield Case(bundle.name, bundle.model, bundle.feeds[:4], bundle.timed_feeds)


def _family(name: str, model: Path, ideal: Path) -> Case:
    feeds = [random_feeds(model, seed) for seed in range(4)]
    return Case(name, model, feeds, feeds[0], ideal)


def _families(python: str) -> list[str]:
    child = run_child(torch_program(python, "list"))
    if child.returncode:
        raise SystemExit(f"{python}: {child.reason}")
    names: list[str] = json.loads(child.stdout)
    return names


def _build(chosen: argparse.Namespace, names: list[str], folder: Path) -> None:
    """Everything that needs torch, in one process."""
    files = {
        (name, share): folder / f"{name}{'' if share == 1 else '.ideal'}.onnx"
        for name in names
        for share in (1.0, RATIO)
    }
    jobs = [
        {"family": name, "exporter": chosen.exporter, "out": str(out), "inner": share}
        for (name, share), out in files.items()
        if not out.exists()
    ]
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs))
    child = run_child(torch_program(chosen.torch_python, "families", listed), timeout=3600)
    if child.returncode:
        raise SystemExit(f"{chosen.torch_python}: {child.reason}")


def simplified(chosen: argparse.Namespace, model: Path, out: Path) -> Path:
    """What masks are written into."""
    if not out.exists():
        run_child(onnxcomp_command(chosen.python, "optimize", model, "-o", out))
    return out


def measure(chosen: argparse.Namespace, case: Case, masks: str, folder: Path) -> Row:
    """One row of the table."""
    row: Row = {"model": case.name, "masks": masks, "note": ""}
    start = simplified(chosen, case.model, folder / f"{case.name}.simplified.onnx")
    if case.ideal is not None:
        ideal = folder / f"{case.name}.ideal.simplified.onnx"
        case = replace(case, ideal=simplified(chosen, case.ideal, ideal))
    masked = folder / f"{case.name}.{masks}.onnx"
    program = [chosen.python, HERE / "_masks.py", start, masked, masks, str(RATIO)]
    child = run_child(program)
    if child.returncode:
        return row | {"note": f"no masks: {child.reason}"}
    row["masked"] = int(child.stdout or 0)
    if not row["masked"]:
        return row | {"note": "nothing to mask"}
    shrunk = folder / f"{case.name}.{masks}.shrunk.onnx"
    shrunk.unlink(missing_ok=True)
    child = run_child(
        onnxcomp_command(chosen.python, "apply", "shrink-channels", masked, "-o", shrunk, "--json")
    )
    row["seconds"] = child.seconds
    if child.returncode not in (0, 3) or not shrunk.exists():
        return row | {"note": f"not shrunk: {child.reason}"}
    row |= _statistics(child.stdout)
    _count(case, row, masked, shrunk)
    _onnxsim(chosen, row, masked, folder / f"{case.name}.{masks}.onnxsim.onnx")
    _time(case, row, {"masked": masked, "shrunk": shrunk, "ideal": case.ideal}, chosen.rounds)
    return row


def _statistics(text: str) -> Row:
    """How many channels went, from the report of the program."""
    try:
        steps: list[Any] = json.loads(text)["steps"]
    except (ValueError, KeyError):
        return {}
    stats = {key: number for step in steps for key, number in step["stats"].items()}
    return {"removed": stats.get("channels removed", 0), "merged": stats.get("channels merged", 0)}


def _count(case: Case, row: Row, masked: Path, shrunk: Path) -> None:
    whole, left = count_parameters(masked), count_parameters(shrunk)
    row["parameters"] = 100 * (1 - left / whole)
    if case.ideal is not None and row["masks"] == "coupled":
        row["ideal"] = 100 * (1 - count_parameters(case.ideal) / whole)
        row["of_ideal"] = 100 * row["parameters"] / row["ideal"]
    before = count_arithmetic(masked, case.timed)
    after = count_arithmetic(shrunk, case.timed)
    row["flops"] = 100 * (1 - after / before)
    row["flops_ratio"] = before / after
    row["error"] = _error(masked, shrunk, case.feeds)


def _error(masked: Path, shrunk: Path, feeds: list[Feeds]) -> float:
    """Largest difference of an output over all feeds, relative to its largest number."""
    sessions = [open_session(model, optimize=False) for model in (masked, shrunk)]
    difference: dict[str, float] = {}
    largest: dict[str, float] = {}
    for feed in feeds:
        before, after = (run_session(session, feed) for session in sessions)
        for name, one in before.items():
            if one.size and np.issubdtype(one.dtype, np.floating):
                off = float(np.abs(one.astype(np.float64) - after[name]).max())
                difference[name] = max(difference.get(name, 0.0), off)
                largest[name] = max(largest.get(name, 1e-30), float(np.abs(one).max()))
            elif not np.array_equal(one, after[name]):
                return float("inf")
    return max((off / largest[name] for name, off in difference.items()), default=0.0)


def _onnxsim(chosen: argparse.Namespace, row: Row, masked: Path, out: Path) -> None:
    child = run_child([chosen.peer_python, "-c", ONNXSIM, masked, out])
    if child.returncode or not out.exists():
        row["note"] += f" onnxsim: {child.reason}"
        return
    row["onnxsim"] = 100 * (1 - count_parameters(out) / count_parameters(masked))


def _time(case: Case, row: Row, models: dict[str, Path | None], rounds: int) -> None:
    sessions = {name: (open_session(m), case.timed) for name, m in models.items() if m is not None}
    times = interleaved_latency(sessions, rounds=rounds)
    row["speedup"], row["spread"] = ratio(times["masked"], times["shrunk"])
    row["of_flops_ratio"] = 100 * row["speedup"] / row["flops_ratio"]
    row["masked_ms"], row["shrunk_ms"] = (1e3 * min(times[name]) for name in ("masked", "shrunk"))
    if "ideal" in times and row["masks"] == "coupled":
        row["ideal_speedup"] = ratio(times["masked"], times["ideal"])[0]


def notes(rows: list[Row]) -> list[str]:
    """The targets, and what was reached."""
    reached = [row for row in rows if "of_flops_ratio" in row]
    found = []
    for masks in sorted({row["masks"] for row in reached}):
        some = [row for row in reached if row["masks"] == masks]
        mean = geometric_mean([row["of_flops_ratio"] for row in some])
        good = sum(row["of_flops_ratio"] >= 100 * WANTED for row in some)
        text = f"{masks}: speed-up {mean or 0:.0f} % of the ratio of arithmetic (geometric mean); "
        text += f"{good} of {len(some)} models reach {100 * WANTED:.0f} %; "
        text += f"largest error {max(row['error'] for row in some):.1e}"
        text += _besides_ideal(some)
        ideals = [row["of_ideal"] for row in some if "of_ideal" in row]
        found.append(
            text + (f"; parameters {min(ideals):.1f} % of the ideal at least" if ideals else "")
        )
    return found


def _besides_ideal(rows: list[Row]) -> str:
    """How fast the network is that was written smaller: no removal can do better."""
    shares = [row["speedup"] / row["ideal_speedup"] for row in rows if "ideal_speedup" in row]
    if not shares:
        return ""
    best = [
        100 * row["ideal_speedup"] / row["flops_ratio"] for row in rows if "ideal_speedup" in row
    ]
    text = f"; the networks written with half of their channels reach {geometric_mean(best) or 0:.0f} %, "
    return text + f"ours are {geometric_mean(shares) or 0:.2f} times as fast as these"


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--torch-python", help="interpreter with torch, for networks of families")
    options.add_argument("--exporter", choices=["dynamo", "torchscript"], default="dynamo")
    options.add_argument(
        "--masks", nargs="+", choices=["coupled", "layers"], default=["coupled", "layers"]
    )
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--work", type=Path, help="keeps the models")
    chosen = options.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case in cases(chosen, folder):
            for masks in chosen.masks:
                rows.append(measure(chosen, case, masks, folder))
                say(
                    "  ".join(
                        f"{key}={rows[-1].get(key)}"
                        for key in COLUMNS
                        if rows[-1].get(key) is not None
                    )
                )
                write_results(
                    chosen.output or RESULTS / "shrink.json",
                    "Masks that become smaller layers",
                    rows,
                    COLUMNS,
                    notes=[*notes(rows), STAIRS],
                )


if __name__ == "__main__":
    main()
