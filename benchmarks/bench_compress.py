"""`onnxcomp compress` against the quantizers of onnxruntime, NNCF and onnxsim, in the same run.

    python benchmarks/bench_compress.py [--zoo DIR] [--models NAME...] [--peer-python PYTHON]
                                        [--more-pythons PYTHON...] [--work DIR] [--rounds 21]

Everybody gets the model and the same calibration data, and is scored on evaluation data that nobody
saw, with the bundle's own metric where there is one. Models with LSTM are also compressed with
--contrib, which allows the operator in int8 that only onnxruntime knows. Latency is a ratio to the original model, one
thread, all models of a bundle interleaved. Results of peers are kept in --work and used again.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import TypeAlias

import onnx
from _common import (
    RESULTS,
    Row,
    onnxcomp_command,
    parser,
    run_child,
    say,
    write_results,
)
from _models import Bundle, chosen_bundles
from _peers import QUANTIZERS, Quantized, interpreters, quantize, quantizers_for
from _scoring import score_and_time

COLUMNS = [
    "model",
    "tool",
    "latency_ratio",
    "spread",
    "primary",
    "metric",
    "cosine",
    "sqnr_db",
    "bytes",
    "seconds",
    "note",
]
OURS, CONTRIB = "onnxcomp", "onnxcomp_contrib"
# A latency closer than this is the same; so is a metric or an SQNR.
NEAR_FLOAT = 0.01
SAME_LATENCY, SAME_METRIC, SAME_SQNR = 0.03, 0.0005, 0.1


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--work", type=Path, help="keeps the models that the tools wrote")
    options.add_argument("--max-drop", default="1%", help="handed to onnxcomp")
    options.add_argument("--peers", nargs="*", choices=QUANTIZERS, default=list(QUANTIZERS))
    options.add_argument("--only-peers", action="store_true", help="leave onnxcomp out")
    options.add_argument(
        "--more-pythons", nargs="*", default=[], help="interpreters with peers that exclude others"
    )
    options.add_argument("--timeout", type=float, default=1800)
    chosen = options.parse_args()
    there = interpreters([chosen.peer_python, *chosen.more_pythons])
    versions = {package: version for package, (_, version) in there.items()}
    absent = sorted({package for package, _ in QUANTIZERS.values()} - set(versions))
    notes = [f"peers: {json.dumps(versions)}"]
    notes += [f"not installed: {', '.join(absent)}"] * bool(absent)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for bundle in chosen_bundles(chosen.zoo, chosen.models, Path(temporary), trained=True):
            found = _bundle_rows(bundle, _tools(chosen, bundle, there), work, chosen.rounds)
            rows += found
            for row in found:
                say("  ".join(f"{name}={row.get(name)}" for name in COLUMNS))
            write_results(
                chosen.output or RESULTS / "compress.json",
                "Compression against peers",
                rows,
                COLUMNS,
                notes=[*notes, *_verdicts(rows), *_gains(rows)],
            )


Tool: TypeAlias = Callable[[Path], Quantized]


def _tools(
    chosen: argparse.Namespace, bundle: Bundle, there: dict[str, tuple[str, str]]
) -> dict[str, Tool]:
    """What to run on a bundle, by name; each takes the path to write to."""

    def peer(name: str) -> Tool:
        python = there[QUANTIZERS[name][0]][0]
        return lambda out: quantize(
            python, name, bundle.model, bundle.calibration, out, timeout=chosen.timeout
        )

    tools = {
        name: peer(name)
        for name in quantizers_for(bundle.model)
        if name in chosen.peers and QUANTIZERS[name][0] in there
    }
    if chosen.only_peers:
        return tools
    ours: dict[str, Tool] = {OURS: lambda out: _compress(chosen, bundle, out)}
    if _has_recurrence(bundle.model):
        ours[CONTRIB] = lambda out: _compress(chosen, bundle, out, "--contrib")
    return {**ours, **tools}


def _has_recurrence(model: Path) -> bool:
    """Whether onnxruntime's own operators could do more than the standard's."""
    return any(node.op_type == "LSTM" for node in all_nodes(onnx.load(str(model)).graph))


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for each in node.attribute:
            if each.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(each.g)


def _compress(chosen: argparse.Namespace, bundle: Bundle, out: Path, *more: str) -> Quantized:
    child = run_child(
        onnxcomp_command(
            chosen.python,
            "compress",
            bundle.model,
            "--data",
            bundle.calibration,
            "--batch",
            str(bundle.batch),
            "--max-drop",
            chosen.max_drop,
            "--threads",
            "1",
            *more,
            "-o",
            out,
        ),
        timeout=chosen.timeout,
    )
    # Exit code 3: a gate was missed and said so; there may be a result all the same.
    failure = child.reason if child.returncode not in (0, 3) else ""
    return Quantized(failure, child.reason if child.returncode == 3 else "", child.seconds)


def _bundle_rows(bundle: Bundle, tools: dict[str, Tool], work: Path, rounds: int) -> list[Row]:
    folder = work / bundle.name
    folder.mkdir(parents=True, exist_ok=True)
    models = {"float": bundle.model}
    rows: dict[str, Row] = {"float": _blank(bundle, "float") | {"seconds": None, "note": ""}}
    for name, tool in tools.items():
        out = folder / f"{name}.onnx"
        made = _made(name, tool, out)
        rows[name] = _blank(bundle, name) | {
            "seconds": made.seconds,
            "note": f"failed: {made.failure}" if made.failure else made.note,
        }
        if not made.failure:
            models[name] = out
    score_and_time(bundle, models, rows, rounds)
    return list(rows.values())


def _blank(bundle: Bundle, tool: str) -> Row:
    return {"model": bundle.name, "tool": tool, "primary": bundle.primary}


def _made(name: str, tool: Tool, out: Path) -> Quantized:
    """Runs a tool; what a peer wrote in an earlier run is good enough."""
    record = out.with_suffix(".json")
    if name not in (OURS, CONTRIB) and record.exists():
        made = Quantized(**json.loads(record.read_text()))
        if made.failure or out.exists():
            return made
    for old in (out, out.with_name(out.name + ".data")):
        old.unlink(missing_ok=True)
    made = tool(out)
    if not made.failure and not out.exists():
        made = Quantized("wrote nothing", made.note, made.seconds)
    record.write_text(json.dumps(vars(made)) + "\n")
    return made


def _verdicts(rows: list[Row]) -> list[str]:
    """Per model, every peer that is better than us in something."""
    verdicts = []
    for name in dict.fromkeys(row["model"] for row in rows):
        by_tool = {row["tool"]: row for row in rows if row["model"] == name and "metric" in row}
        by_tool.pop(CONTRIB, None)
        ours = by_tool.pop(OURS, None)
        base = by_tool.pop("float", None)
        if ours is None or base is None:
            verdicts.append(f"{name}: no result of onnxcomp")
            continue
        ahead = [text for peer in by_tool.values() if (text := _ahead(peer, ours))]
        head = f"{name}: {ours['latency_ratio']:.3f} of float, metric {ours['metric'] - base['metric']:+.4f}"
        verdicts.append(f"{head}; " + ("; ".join(ahead) or "no peer is ahead in anything"))
    return verdicts


def _gains(rows: list[Row]) -> list[str]:
    """How much faster we are than the fastest peer, and than the fastest one within 1 % of float."""
    any_quality, equal_quality = [], []
    for name in dict.fromkeys(row["model"] for row in rows):
        timed = [r for r in rows if r["model"] == name and r.get("latency_ratio") and "metric" in r]
        by_tool = {row["tool"]: row for row in timed}
        base = by_tool.pop("float", None)
        own = [by_tool.pop(tool) for tool in (OURS, CONTRIB) if tool in by_tool]
        if base is None or not own or not by_tool:
            continue
        ours = min(row["latency_ratio"] for row in own)
        least = base["metric"] - NEAR_FLOAT * abs(base["metric"])
        good = [row["latency_ratio"] for row in by_tool.values() if row["metric"] >= least]
        any_quality.append(min(row["latency_ratio"] for row in by_tool.values()) / ours)
        equal_quality.append(min([1.0, *good]) / ours)
    if not any_quality:
        return []
    return [
        f"geometric mean over {len(any_quality)} models: {geometric_mean(any_quality):.3f} times as fast as the "
        f"fastest peer, {geometric_mean(equal_quality):.3f} times as fast as float or the fastest peer whose "
        f"metric is within {NEAR_FLOAT:.0%} of it (of our results the faster one, --contrib included)"
    ]


def _ahead(peer: Row, ours: Row) -> str:
    """In what a peer is ahead; `beats us` when it is behind in nothing."""
    gaps = {
        "latency": ours["latency_ratio"] / peer["latency_ratio"] - 1,
        "metric": peer["metric"] - ours["metric"],
        "SQNR": peer["sqnr_db"] - ours["sqnr_db"],
    }
    same = {"latency": SAME_LATENCY, "metric": SAME_METRIC, "SQNR": SAME_SQNR}
    ahead = [f"{what} by {gap:.4g}" for what, gap in gaps.items() if gap > same[what]]
    if not ahead:
        return ""
    behind = any(gap < -same[what] for what, gap in gaps.items())
    return f"{peer['tool']} {'is ahead in' if behind else 'BEATS US in'} {', '.join(ahead)}"


if __name__ == "__main__":
    main()
