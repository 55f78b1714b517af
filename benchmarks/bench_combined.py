"""Pruning and quantization by themselves and together: what each adds to speed, size and quality.

    python benchmarks/bench_combined.py [--zoo DIR] [--models NAME...] [--flops 30%] [--max-drop 1%]
                                        [--rounds 21] [--work DIR]

Per model: the float model, channels pruned, int8, both in one recipe, and what `compress` finds with and
without --prune. Everybody gets the same calibration data; scores are taken on evaluation data that nobody saw,
with the bundle's own metric where there is one. Latency is a ratio to the original model, one thread, all
models of a bundle interleaved.
"""

import argparse
import json
import tempfile
from pathlib import Path

from _common import RESULTS, Row, onnxcomp_command, parser, run_child, say, write_results
from _models import Bundle, chosen_bundles
from _scoring import score_and_time

COLUMNS = [
    "model",
    "what",
    "latency_ratio",
    "spread",
    "primary",
    "metric",
    "sqnr_db",
    "bytes",
    "seconds",
    "note",
]
SIMPLIFY = "fold-constants,share-common,fuse-batchnorm,fuse-affine"


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--flops", default="0.3", help="share of the arithmetic that goes")
    options.add_argument("--max-drop", default="1%", help="limit of compress")
    options.add_argument("--timeout", type=float, default=1800)
    options.add_argument("--work", type=Path, help="keeps the models that were written")
    chosen = options.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for bundle in chosen_bundles(chosen.zoo, chosen.models, Path(temporary), trained=True):
            found = _bundle_rows(bundle, chosen, work)
            rows += found
            for row in found:
                say("  ".join(f"{name}={row.get(name)}" for name in COLUMNS))
            write_results(
                chosen.output or RESULTS / "combined.json",
                "Pruning and quantization, apart and together",
                rows,
                COLUMNS,
                notes=[
                    f"pruned: prune-channels, {float(chosen.flops):.0%} of the arithmetic; int8: quantize-static; "
                    f"compress: at most {chosen.max_drop} worse by its own held-out fidelity"
                ],
            )


def _commands(chosen: argparse.Namespace) -> dict[str, list[str]]:
    """What is run, by the name of its row."""
    prune = f"prune-channels{{flops={chosen.flops}}}"
    return {
        "pruned": ["run", "--passes", f"{SIMPLIFY},{prune}"],
        "int8": ["run", "--passes", f"{SIMPLIFY},quantize-static"],
        "pruned, int8": ["run", "--passes", f"{SIMPLIFY},{prune},quantize-static"],
        "compress": ["compress", "--max-drop", chosen.max_drop, "--no-memory"],
        "compress --prune": ["compress", "--prune", "--max-drop", chosen.max_drop, "--no-memory"],
    }


def _bundle_rows(bundle: Bundle, chosen: argparse.Namespace, work: Path) -> list[Row]:
    folder = work / bundle.name
    folder.mkdir(parents=True, exist_ok=True)
    blank: Row = {"model": bundle.name, "primary": bundle.primary, "note": "", "seconds": None}
    rows: dict[str, Row] = {"float": {**blank, "what": "float"}}
    models = {"float": bundle.model}
    for index, (name, command) in enumerate(_commands(chosen).items()):
        out = folder / f"{index}.onnx"
        rows[name] = {**blank, "what": name, **_made(bundle, chosen, command, out)}
        if out.exists():
            models[name] = out
    score_and_time(bundle, models, rows, chosen.rounds)
    return list(rows.values())


def _made(bundle: Bundle, chosen: argparse.Namespace, command: list[str], out: Path) -> Row:
    """Runs a command; returns how long it took, and which candidate it chose or why it failed."""
    report = out.with_suffix(".json")
    for old in (out, out.with_name(out.name + ".data"), report):
        old.unlink(missing_ok=True)
    more = ["--batch", str(bundle.batch)] if command[0] == "compress" else []
    child = run_child(
        onnxcomp_command(
            chosen.python,
            command[0],
            *command[1:],
            bundle.model,
            "--data",
            bundle.calibration,
            "--threads",
            "1",
            *more,
            "--report",
            report,
            "-o",
            out,
        ),
        timeout=chosen.timeout,
    )
    note = "" if child.returncode == 0 else child.reason
    if report.exists():
        labels = [row["label"] for row in json.loads(report.read_text())["models"]]
        note += "".join(label for label in labels if label.endswith("(chosen)"))
    return {"seconds": child.seconds, "note": note}


if __name__ == "__main__":
    main()
