"""`onnxcomp quantize dynamic` against onnxruntime's `quantize_dynamic`, in the same run.

    python benchmarks/bench_dynamic.py [--zoo DIR] [--models NAME...] [--peer-python PYTHON]
                                       [--work DIR] [--rounds 21]

The peer needs no samples, so we run twice: without samples, and with the calibration data. Where a model
has an LSTM the peer uses onnxruntime's own operator for it; `contrib` is our result with leave to do the
same. Every result is scored on evaluation data that nobody saw. Latency is a ratio to the original model,
one thread, all models of a bundle interleaved.
"""

import argparse
import json
import tempfile
from pathlib import Path

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
from _peers import Quantized, installed, quantize
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
PEER = "ort_dynamic"
PLAIN, SAMPLED, CONTRIB = "onnxcomp_no_samples", "onnxcomp", "onnxcomp_contrib"
# What makes a model a case for this benchmark.
PRODUCTS = frozenset({"MatMul", "Gemm", "LSTM", "GRU"})
# Loops may turn out to be an LSTM.
RECURRENT = frozenset({"LSTM", "Loop", "Scan"})


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--work", type=Path, help="keeps the models that the tools wrote")
    options.add_argument("--timeout", type=float, default=1800)
    chosen = options.parse_args()
    versions = installed(chosen.peer_python)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for bundle in chosen_bundles(chosen.zoo, chosen.models, Path(temporary), trained=True):
            kinds = _kinds(bundle.model)
            if not kinds & PRODUCTS:
                continue
            found = _bundle_rows(
                chosen, bundle, work / bundle.name, recurrent=bool(kinds & RECURRENT)
            )
            rows += found
            for row in found:
                say("  ".join(f"{name}={row.get(name)}" for name in COLUMNS))
            write_results(
                chosen.output or RESULTS / "dynamic.json",
                "Dynamic quantization against onnxruntime's",
                rows,
                COLUMNS,
                notes=[f"peers: {json.dumps(versions)}", *_verdicts(rows)],
            )


def _kinds(model: Path) -> set[str]:
    """The operators of a model, bodies of If, Loop and Scan included."""
    found = set()
    scopes = [onnx.load(str(model), load_external_data=False).graph]
    while scopes:
        for node in scopes.pop().node:
            found.add(node.op_type)
            scopes += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def _bundle_rows(
    chosen: argparse.Namespace, bundle: Bundle, folder: Path, *, recurrent: bool
) -> list[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    data: list[str | Path] = ["--data", bundle.calibration, "--batch", str(bundle.batch)]
    arguments: dict[str, list[str | Path]] = {PLAIN: [], SAMPLED: data}
    if recurrent:
        arguments[CONTRIB] = [*data, "--allow-contrib"]
    models = {"float": bundle.model}
    rows: dict[str, Row] = {"float": _blank(bundle, "float")}
    for name in (PEER, *arguments):
        out = folder / f"{name}.onnx"
        out.unlink(missing_ok=True)
        if name == PEER:
            made = quantize(
                chosen.peer_python,
                name,
                bundle.model,
                bundle.calibration,
                out,
                timeout=chosen.timeout,
            )
        else:
            made = _ours(chosen, bundle, arguments[name], out)
        rows[name] = _blank(bundle, name) | {
            "seconds": made.seconds,
            "note": f"failed: {made.failure}" if made.failure else made.note,
        }
        if not made.failure and out.exists():
            models[name] = out
    score_and_time(bundle, models, rows, chosen.rounds)
    return list(rows.values())


def _blank(bundle: Bundle, tool: str) -> Row:
    return {
        "model": bundle.name,
        "tool": tool,
        "primary": bundle.primary,
        "seconds": None,
        "note": "",
    }


def _ours(
    chosen: argparse.Namespace, bundle: Bundle, arguments: list[str | Path], out: Path
) -> Quantized:
    command = onnxcomp_command(
        chosen.python, "quantize", "dynamic", bundle.model, *arguments, "--threads", "1", "-o", out
    )
    child = run_child(command, timeout=chosen.timeout)
    return Quantized(child.reason if child.returncode else "", "", child.seconds)


def _verdicts(rows: list[Row]) -> list[str]:
    """Per model, the peer and each of our results in one line."""
    verdicts = []
    for name in dict.fromkeys(row["model"] for row in rows):
        parts = [
            f"{row['tool']} {row['latency_ratio']:.3f} at {row['sqnr_db']:.1f} dB, {row['metric']:.4f}"
            for row in rows
            if row["model"] == name and "latency_ratio" in row
        ]
        verdicts.append(f"{name}: " + "; ".join(parts))
    return verdicts


if __name__ == "__main__":
    main()
