"""What `onnxcomp lint --fix` makes of the models that other quantizers wrote.

    python benchmarks/bench_lint.py --work DIR [--zoo DIR] [--models NAME...] [--rounds 21]

DIR is the folder in which `bench_compress.py --work DIR` left the models of all tools. Each is mended
with the calibration data of its bundle, once as it is and once held against the float model
(--reference), and scored as there. Latency is a ratio to the float model, one thread, all models of a
bundle interleaved.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from _common import (
    RESULTS,
    Row,
    interleaved_latency,
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

COLUMNS = [
    "model",
    "tool",
    "findings",
    "latency_before",
    "latency_after",
    "conversions",
    "metric_before",
    "metric_after",
    "sqnr_before",
    "sqnr_after",
    "bytes_before",
    "bytes_after",
    "seconds",
    "note",
]
OURS = "onnxcomp"


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--work", type=Path, required=True, help="holds the models of the tools")
    options.add_argument("--reference", action="store_true", help="hold against the float model")
    options.add_argument("--tools", nargs="*", default=[], help="only these")
    options.add_argument("--timeout", type=float, default=1800)
    chosen = options.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for bundle in chosen_bundles(chosen.zoo, chosen.models, Path(temporary), trained=True):
            found = _bundle_rows(bundle, chosen, Path(temporary))
            rows += found
            for row in found:
                say("  ".join(f"{name}={row.get(name)}" for name in COLUMNS))
            write_results(
                chosen.output or RESULTS / "lint.json",
                "Models of other quantizers, mended",
                rows,
                COLUMNS,
                notes=_verdicts(rows),
            )


def _bundle_rows(bundle: Bundle, chosen: argparse.Namespace, temporary: Path) -> list[Row]:
    """A row for each tool's model; all of them are timed together."""
    rows: dict[str, Row] = {}
    models = {"float": bundle.model}
    for path in sorted((chosen.work / bundle.name).glob("*.onnx")):
        tool = path.stem
        if tool.startswith(OURS) or (chosen.tools and tool not in chosen.tools):
            continue
        place = temporary / f"{bundle.name}-{tool}.onnx"
        rows[tool] = _mended(bundle, tool, path, place, chosen)
        models[f"{tool} before"], models[f"{tool} after"] = path, place
    sessions = {}
    for name, model in models.items():
        tool, _, when = name.partition(" ")
        try:
            session = open_session(model)
            scores = bundle.score([run_session(session, feeds) for feeds in bundle.feeds])
        except Exception as error:  # noqa: BLE001  (onnxruntime raises many kinds)
            if when:
                rows[tool]["note"] += f" {when}: does not run: {str(error)[:120]}"
            continue
        sessions[name] = (session, bundle.timed_feeds)
        if when:
            rows[tool] |= {
                f"metric_{when}": scores[bundle.primary],
                f"sqnr_{when}": scores["sqnr_db"],
                f"bytes_{when}": model_bytes(model),
            }
    if "float" in sessions:
        times = interleaved_latency(sessions, rounds=chosen.rounds)
        for name in sessions.keys() - {"float"}:
            tool, _, when = name.partition(" ")
            rows[tool][f"latency_{when}"] = ratio(times[name], times["float"])[0]
    return list(rows.values())


def _mended(bundle: Bundle, tool: str, path: Path, place: Path, chosen: argparse.Namespace) -> Row:
    """Mends one model, and says what was found in it."""
    against: list[str | Path] = ["--reference", bundle.model] if chosen.reference else []
    child = run_child(
        onnxcomp_command(
            chosen.python,
            *("lint", path, "--fix", "-o", place, "--data", bundle.calibration),
            *("--fail-on", "never", "--json"),
            *against,
        ),
        timeout=chosen.timeout,
    )
    row: Row = {"model": bundle.name, "tool": tool, "seconds": child.seconds, "note": ""}
    if child.returncode != 0:
        return row | {"note": f"failed: {child.reason}"}
    document = json.loads(child.stdout)
    fixed = document["fixed"]
    counts = {code: n for code, n in document["counts"].items() if code != "LNT303"}
    return row | {
        "findings": " ".join(f"{code}:{number}" for code, number in counts.items()),
        "conversions": f"{document['conversions']} -> {fixed['conversions']}",
        "remarks": [line["message"] for line in fixed["remarks"]],
    }


def _verdicts(rows: list[Row]) -> list[str]:
    """Geometric means by tool, and where a mended model is slower or worse."""
    notes = []
    for tool in sorted({row["tool"] for row in rows}):
        own = [r for r in rows if r["tool"] == tool and r.get("latency_after") is not None]
        own = [r for r in own if r.get("latency_before") is not None]
        if own:
            before = statistics.geometric_mean(r["latency_before"] for r in own)
            after = statistics.geometric_mean(r["latency_after"] for r in own)
            notes.append(
                f"{tool}: {before:.2f} of float before, {after:.2f} after, {len(own)} models"
            )
    slower = [
        f"{r['model']} {r['tool']}"
        for r in rows
        if (r.get("latency_after") or 0) > 1.05 * (r.get("latency_before") or float("inf"))
    ]
    worse = [
        f"{r['model']} {r['tool']}"
        for r in rows
        if (r.get("metric_after") or 0) < (r.get("metric_before") or 0) - 0.01
    ]
    return [
        *notes,
        f"slower than before: {', '.join(slower) or 'none'}",
        f"metric more than a point worse: {', '.join(worse) or 'none'}",
    ]


if __name__ == "__main__":
    main()
