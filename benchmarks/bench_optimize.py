"""`onnxcomp optimize` against onnxsim and onnxslim: whole processes, results, memory.

    python benchmarks/bench_optimize.py [--zoo DIR] [--models NAME...] [--peer-python PYTHON]

Processes run in turn (A B C A B C ...), times are medians. Nodes are counted over all scopes, without
Constant nodes. The latency ratio is that of the result to the original, one thread, interleaved; the
runtime optimizes both, so it is expected near 1. `difference` is the largest deviation of an output
from the original's, relative to the largest value, over a few samples.
"""

import tempfile
from pathlib import Path

import numpy as np
from _common import (
    RESULTS,
    Child,
    Feeds,
    Row,
    count_nodes,
    interleave,
    interleaved_latency,
    median_seconds,
    model_bytes,
    onnxcomp_command,
    open_session,
    parser,
    ratio,
    run_child,
    run_session,
    say,
    write_results,
)
from _models import Bundle, chosen_bundles
from _peers import installed, optimizer_command

COLUMNS = [
    "model",
    "tool",
    "seconds",
    "times_onnxcomp",
    "nodes",
    "bytes",
    "peak_mb",
    "latency_ratio",
    "spread",
    "difference",
    "note",
]
PEERS = ("onnxsim", "onnxslim")
COMPARED_SAMPLES = 3


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--no-latency", action="store_true")
    chosen = options.parse_args()
    peers = [name for name in PEERS if name in installed(chosen.peer_python)]
    absent = sorted(set(PEERS) - set(peers))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for bundle in chosen_bundles(chosen.zoo, chosen.models, folder):
            outs = {name: folder / f"{bundle.name}.{name}.onnx" for name in ("onnxcomp", *peers)}
            commands = {
                name: onnxcomp_command(chosen.python, "optimize", bundle.model, "-o", out)
                if name == "onnxcomp"
                else optimizer_command(chosen.peer_python, name, bundle.model, out)
                for name, out in outs.items()
            }
            found = _measure(bundle, commands, outs, chosen.rounds)
            if not chosen.no_latency:
                _add_latency(bundle, outs, found)
            rows += found
            for row in found:
                say("  ".join(f"{name}={row.get(name)}" for name in COLUMNS))
            write_results(
                chosen.output or RESULTS / "optimize.json",
                "Lossless optimization",
                rows,
                COLUMNS,
                notes=[f"not installed: {', '.join(absent)}"] * bool(absent) + _shortfalls(rows),
            )


def _measure(
    bundle: Bundle,
    commands: dict[str, list[str | Path]],
    outs: dict[str, Path],
    rounds: int,
) -> list[Row]:
    def clear() -> None:
        for out in outs.values():
            out.unlink(missing_ok=True)

    done = interleave(commands, rounds, before=clear)
    # Once more with the memory sampled, which costs a little time.
    sampled = {name: run_child(command, watch=0.01) for name, command in commands.items()}
    ours = median_seconds(done["onnxcomp"])
    original: Row = {
        "model": bundle.name,
        "tool": "original",
        "nodes": count_nodes(bundle.model),
        "bytes": model_bytes(bundle.model),
    }
    return [original] + [
        _row(bundle, name, runs, sampled[name], outs[name], ours) for name, runs in done.items()
    ]


def _row(
    bundle: Bundle, name: str, runs: list[Child], sampled: Child, out: Path, ours: float | None
) -> Row:
    seconds = median_seconds(runs)
    row: Row = {
        "model": bundle.name,
        "tool": name,
        "seconds": seconds,
        "times_onnxcomp": seconds / ours if seconds and ours else None,
        "peak_mb": sampled.peak_resident / 1e6,
        "note": runs[-1].reason if runs[-1].returncode else "",
    }
    if out.exists():
        row |= {"nodes": count_nodes(out), "bytes": model_bytes(out)}
    elif not row["note"]:
        row["note"] = "wrote nothing"
    return row


def _add_latency(bundle: Bundle, outs: dict[str, Path], rows: list[Row]) -> None:
    by_tool = {row["tool"]: row for row in rows}
    sessions = {}
    reference: list[Feeds] = []
    for name, model in {"original": bundle.model, **outs}.items():
        if not model.exists():
            continue
        try:
            session = open_session(model)
            outputs = [run_session(session, f) for f in bundle.feeds[:COMPARED_SAMPLES]]
        except Exception as error:  # noqa: BLE001  (onnxruntime raises many kinds)
            by_tool[name]["note"] = f"does not run: {str(error)[:120]}"
            continue
        reference = reference or outputs
        by_tool[name]["difference"] = _difference(outputs, reference)
        sessions[name] = (session, bundle.timed_feeds)
    if "original" not in sessions:
        return
    times = interleaved_latency(sessions)
    for name, values in times.items():
        by_tool[name]["latency_ratio"], by_tool[name]["spread"] = ratio(values, times["original"])


def _difference(outputs: list[Feeds], reference: list[Feeds]) -> float:
    worst = 0.0
    for got, expected in zip(outputs, reference, strict=True):
        for name, value in expected.items():
            if got[name].shape != value.shape:
                return float("inf")
            a, b = got[name].astype(np.float64), value.astype(np.float64)
            gap = np.where(np.isclose(a, b, rtol=0, atol=0, equal_nan=True), 0, np.abs(a - b))
            scale = max(float(np.abs(b[np.isfinite(b)]).max(initial=0)), 1e-12)
            worst = max(worst, float(gap.max(initial=0)) / scale)
    return worst


def _shortfalls(rows: list[Row]) -> list[str]:
    """Where a peer was faster or left fewer nodes."""
    ours = {row["model"]: row for row in rows if row["tool"] == "onnxcomp"}
    found = []
    for row in rows:
        mine = ours[row["model"]]
        if row["tool"] not in PEERS or row["note"]:
            continue
        if mine["note"]:
            found.append(f"{row['model']}: onnxcomp failed where {row['tool']} did not")
            continue
        if row["seconds"] < mine["seconds"]:
            found.append(
                f"{row['model']}: {row['tool']} took {row['seconds']:.2f} s, "
                f"onnxcomp {mine['seconds']:.2f} s"
            )
        if row["nodes"] < mine["nodes"]:
            found.append(
                f"{row['model']}: {row['tool']} left {row['nodes']} nodes, onnxcomp {mine['nodes']}"
            )
    return found or ["never slower and never more nodes than a peer that worked"]


if __name__ == "__main__":
    main()
