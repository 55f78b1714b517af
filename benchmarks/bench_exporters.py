"""`onnxcomp optimize` against its peers on graphs as exporters write them (`_exporters.py`).

    python benchmarks/bench_exporters.py [--models NAME...] [--tools NAME...] [--peer-python PYTHON]

Columns as in `bench_optimize.py`; processes run once, because these models are small and time is
not what this is about: nodes left, speed of the result, and whether it is still right.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from _common import RESULTS, Row, onnxcomp_command, parser, say, write_results
from _exporters import EXPORTERS, feeds_of
from _models import Bundle
from _peers import OPTIMIZERS, installed, optimizer_command
from bench_optimize import OURS, _measure, _run_results, misses, summary

COLUMNS = ["model", "tool", "nodes", "speed", "low", "high", "difference", "broken"]
SAMPLES = 3


def bundle_of(name: str, folder: Path) -> Bundle:
    """One of the graphs, written to a folder with numbers to run it on."""
    model = EXPORTERS[name]()
    onnx.save(model, str(folder / f"{name}.onnx"))
    feeds = [feeds_of(model, seed) for seed in range(SAMPLES)]
    arrays = {
        f"{index}/{key}": value for index, one in enumerate(feeds) for key, value in one.items()
    }
    np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    return Bundle(name, folder / f"{name}.onnx", folder / f"{name}.npz", folder / f"{name}.npz")


def main() -> None:
    options = parser(__doc__ or "", models=False)
    options.add_argument("--models", nargs="+", default=list(EXPORTERS), choices=list(EXPORTERS))
    options.add_argument("--tools", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    options.add_argument("--latency-rounds", type=int, default=15, help="per set of sessions")
    chosen = options.parse_args()
    there = installed(chosen.peer_python)
    peers = [name for name in chosen.tools if name in there]
    absent = [f"not installed: {name}" for name in chosen.tools if name not in there]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in chosen.models:
            bundle = bundle_of(name, folder)
            outs = {tool: folder / f"{name}.{tool}.onnx" for tool in (OURS, *peers)}
            commands = {
                tool: onnxcomp_command(chosen.python, "optimize", bundle.model, "-o", out)
                if tool == OURS
                else optimizer_command(chosen.peer_python, tool, bundle.model, out)
                for tool, out in outs.items()
            }
            found = _measure(bundle, commands, outs, 1, 300)
            _run_results(bundle, outs, found, chosen.latency_rounds)
            # One process each says nothing about time and memory.
            rows += [
                {name: row[name] for name in (*COLUMNS, "bytes") if name in row} for row in found
            ]
            for row in found:
                say("  ".join(f"{column}={row.get(column)}" for column in COLUMNS))
            write_results(
                chosen.output or RESULTS / "exporters.json",
                "Graphs as exporters write them",
                rows,
                COLUMNS,
                notes=[*absent, *summary(rows), *misses(rows)],
            )


if __name__ == "__main__":
    main()
