"""`onnxcomp apply sparsify` against magnitudes alone, Wanda, and onnxsim's pruning of single weights.

    python benchmarks/bench_sparsify.py [--zoo DIR] [--models NAME...] [--peer-python PYTHON]
                                        [--goals 50% 70% 2:4 4x1] [--tools NAME...] [--work DIR]

Every tool gets the same calibration data, runs on one thread in a process of its own, and is scored on
evaluation data that nobody saw. `zeros` is the share of zeros in the constants that layers multiply with;
`zipped` the size of the file once compressed, relative to that of the original (onnxruntime's kernels for
processors do not skip zeros, so latency is no column). onnxsim has no blocks of weights; its N:M counts
along the kernel where TensorRT wants input channels.
"""

import argparse
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import onnx
from _common import (
    RESULTS,
    Child,
    Row,
    onnxcomp_command,
    parser,
    run_child,
    say,
    write_results,
)
from _models import Bundle, chosen_bundles, read_feeds
from _peers import interpreters
from onnx import numpy_helper

COLUMNS = [
    "model",
    "goal",
    "tool",
    "zeros",
    "primary",
    "metric",
    "sqnr_db",
    "zipped",
    "seconds",
    "cpu_seconds",
    "megabytes",
    "note",
]
OURS = {"magnitude": "method=magnitude", "wanda": "method=wanda spread=uniform", "onnxcomp": ""}
PEERS = ("onnxsim_magnitude", "onnxsim_wanda", "onnxsim_sparsegpt")
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
WATCH_SECONDS = 0.02


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--goals", nargs="+", default=["50%", "2:4", "4x1"])
    options.add_argument("--tools", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS])
    options.add_argument("--work", type=Path, help="keeps the models that the tools wrote")
    options.add_argument("--timeout", type=float, default=1800)
    chosen = options.parse_args()
    pythons = interpreters([chosen.peer_python, chosen.python])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for bundle in chosen_bundles(chosen.zoo, chosen.models, Path(temporary), trained=True):
            rows.append(_scored(_row(bundle, "", "float"), bundle, bundle.model))
            for goal in chosen.goals:
                rows += _goal_rows(chosen, pythons, bundle, goal, work / bundle.name)
                write_results(
                    chosen.output or RESULTS / "sparsify.json",
                    "Weights set to zero",
                    rows,
                    COLUMNS,
                    notes=_verdicts(rows),
                )


def _goal_rows(
    chosen: argparse.Namespace,
    pythons: dict[str, tuple[str, str]],
    bundle: Bundle,
    goal: str,
    folder: Path,
) -> list[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for tool in chosen.tools:
        if tool in PEERS and "x" in goal:
            continue
        out = folder / f"{tool}.{goal.replace(':', '-')}.onnx"
        out.unlink(missing_ok=True)
        row = _row(bundle, goal, tool)
        if tool in PEERS and "onnxsim" not in pythons:
            rows.append(row | {"note": "not installed"})
            continue
        command = _command(chosen, pythons, bundle, goal, tool, out)
        child = run_child(command, timeout=chosen.timeout, watch=WATCH_SECONDS)
        row |= _cost(child)
        if child.returncode or not out.exists():
            row["note"] = f"failed: {child.reason}"
        else:
            row = _scored(row, bundle, out)
        say("  ".join(f"{name}={row.get(name)}" for name in COLUMNS))
        rows.append(row)
    return rows


def _command(
    chosen: argparse.Namespace,
    pythons: dict[str, tuple[str, str]],
    bundle: Bundle,
    goal: str,
    tool: str,
    out: Path,
) -> list[str | Path]:
    if tool in PEERS:
        arguments: list[str | Path] = [tool, goal, bundle.model, bundle.calibration, out]
        return [pythons["onnxsim"][0], Path(__file__), "child", *arguments]
    share = f"sparsity={_share(goal)}" if goal.endswith("%") else f"pattern={goal}"
    options = " ".join(filter(None, [share, OURS[tool]]))
    # Weights that a caller might replace are not touched, which the first pass rules out.
    passes = f"fix-signature,sparsify{{{options}}}"
    fixed: list[str | Path] = ["--data", bundle.calibration, "--threads", "1", "--quiet", "-o", out]
    return onnxcomp_command(chosen.python, "run", bundle.model, "--passes", passes, *fixed)


def _share(goal: str) -> float:
    return float(goal.removesuffix("%")) / 100


def _row(bundle: Bundle, goal: str, tool: str) -> Row:
    return {
        "model": bundle.name,
        "goal": goal,
        "tool": tool,
        "primary": bundle.primary,
        "note": "",
    }


def _cost(child: Child) -> Row:
    return {
        "seconds": child.seconds,
        "cpu_seconds": child.cpu_seconds,
        "megabytes": child.peak_anonymous / 2**20,
    }


def _scored(row: Row, bundle: Bundle, model: Path) -> Row:
    """Adds scores, the share of zeros, and what the file zips to."""
    try:
        scores = bundle.score(bundle.outputs(model))
    except Exception as error:  # noqa: BLE001  (onnxruntime raises many kinds)
        return row | {"note": f"does not run: {str(error)[:120]}"}
    return row | {
        "metric": scores[bundle.primary],
        "sqnr_db": scores["sqnr_db"],
        "scores": scores,
        "zeros": zeros(model),
        "zipped": _zipped(model) / _zipped(bundle.model),
    }


def zeros(model: Path) -> float:
    """The share of zeros in the constants of two dimensions and more that layers of any scope read."""
    empty = total = 0
    scopes = [onnx.load(str(model)).graph]
    tensors: dict[str, onnx.TensorProto] = {}
    read: set[str] = set()
    while scopes:
        graph = scopes.pop()
        tensors |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                tensors[node.output[0]] = node.attribute[0].t
            if node.op_type in LAYERS:
                read |= set(node.input)
            scopes += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    for name in read & tensors.keys():
        array = numpy_helper.to_array(tensors[name])
        if array.ndim >= 2 and array.dtype.kind == "f":
            empty += int((array == 0).sum())
            total += array.size
    return empty / max(total, 1)


def _zipped(model: Path) -> int:
    return len(zlib.compress(model.read_bytes(), 6))


def _verdicts(rows: list[Row]) -> list[str]:
    """Per model and goal, all tools in one line."""
    verdicts = []
    for model, goal in dict.fromkeys((row["model"], row["goal"]) for row in rows if row["goal"]):
        parts = [
            f"{row['tool']} {row['metric']:.4f} at {row['sqnr_db']:.1f} dB"
            for row in rows
            if (row["model"], row["goal"]) == (model, goal) and "metric" in row
        ]
        verdicts.append(f"{model}, {goal}: " + "; ".join(parts))
    return verdicts


def child(tool: str, goal: str, model: str, data: str, out: str) -> None:
    """Prunes with onnxsim, in this process."""
    import onnxsim

    share = {"sparsity": _share(goal)} if goal.endswith("%") else {}
    if not share:
        kept, width = goal.split(":")
        share = {"n": int(kept), "m": int(width)}
    proto = onnx.load(model)
    if tool == "onnxsim_magnitude":
        made = onnxsim.apply_magnitude_pruning(proto, **share)
    else:
        ways = {
            "onnxsim_wanda": onnxsim.apply_wanda_pruning,
            "onnxsim_sparsegpt": onnxsim.apply_sparsegpt_pruning,
        }
        feeds = [
            {name: np.asarray(array) for name, array in each.items()}
            for each in read_feeds(Path(data))
        ]
        made = ways[tool](proto, calibration_data=feeds, **share)
    onnx.save(made, out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:7])
    else:
        main()
