"""`onnxcomp optimize` on a model with 1.6 GB of external weights, against copying the file.

    python benchmarks/bench_large.py [--layers 100] [--width 2048] [--rounds 3] [--peers]

Layers of MatMul, Add and Relu with some harmless clutter (an Identity after every tenth layer).
The copy is made with `cp` and then, as a saver that wants the file to survive does, flushed to disk.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from _common import (
    RESULTS,
    Row,
    interleave,
    median_seconds,
    onnxcomp_command,
    parser,
    say,
    write_results,
)
from _peers import installed, optimizer_command
from onnx import TensorProto, helper

COLUMNS = ["what", "median_s", "times_copy", "peak_anonymous_mb", "peak_resident_mb", "note"]
FLUSHED = "cp and flush"


def generate(folder: Path, layers: int, width: int) -> Path:
    """Writes `model.onnx` and `weights.bin`, one layer in memory at a time."""
    random = np.random.default_rng(0)
    nodes, tensors, offset = [], [], 0
    with (folder / "weights.bin").open("wb") as data:

        def tensor(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
            nonlocal offset
            data.write(array.tobytes())
            made = TensorProto(name=name, dims=array.shape, data_type=TensorProto.FLOAT)
            made.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", "weights.bin"),
                ("offset", str(offset)),
                ("length", str(array.nbytes)),
            ):
                made.external_data.add(key=key, value=value)
            tensors.append(made)
            offset += array.nbytes

        last = "x"
        for i in range(layers):
            weight = random.standard_normal((width, width), dtype=np.float32) / width**0.5
            tensor(f"w{i}", weight)
            tensor(f"b{i}", random.standard_normal(width, dtype=np.float32))
            nodes += [
                helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]),
                helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
                helper.make_node("Relu", [f"a{i}"], [f"r{i}"]),
            ]
            last = f"r{i}"
            if i % 10 == 9:
                nodes.append(helper.make_node("Identity", [last], [f"i{i}"]))
                last = f"i{i}"
    nodes[-1].output[0] = "y"
    shape: list[str | int | None] = ["n", width]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    graph.initializer.extend(tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def main() -> None:
    options = parser(__doc__ or "", models=False)
    options.add_argument("--layers", type=int, default=100)
    options.add_argument("--width", type=int, default=2048)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--peers", action="store_true", help="onnxsim and onnxslim too (slow)")
    options.add_argument(
        "--folder", type=Path, help="where to put the files (needs twice the size)"
    )
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        folder = Path(temporary)
        model = generate(folder, chosen.layers, chosen.width)
        say(f"{(folder / 'weights.bin').stat().st_size / 1e9:.2f} GB of weights generated")
        rows = _measure(_commands(chosen, model, folder / "out"), folder / "out", chosen.rounds)
    for row in rows:
        say("  ".join(f"{name}={row[name]}" for name in COLUMNS))
    write_results(chosen.output or RESULTS / "large.json", "Large model", rows, COLUMNS)


def _commands(chosen: argparse.Namespace, model: Path, out: Path) -> dict[str, list[str | Path]]:
    files: list[str | Path] = [model, model.parent / "weights.bin", out]
    result = out / "model.onnx"
    commands: dict[str, list[str | Path]] = {
        "cp": ["cp", *files],
        FLUSHED: ["sh", "-c", 'cp "$0" "$1" "$2" && sync "$2"/*', *files],
        "onnxcomp optimize": onnxcomp_command(chosen.python, "optimize", model, "-o", result),
    }
    if chosen.peers:
        for package in sorted({"onnxsim", "onnxslim"} & set(installed(chosen.peer_python))):
            commands[package] = optimizer_command(chosen.peer_python, package, model, result)
    return commands


def _measure(commands: dict[str, list[str | Path]], out: Path, rounds: int) -> list[Row]:
    def clear() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    done = interleave(commands, rounds, watch=0.02, before=clear)
    flushed = median_seconds(done[FLUSHED])
    rows: list[Row] = []
    for name, runs in done.items():
        seconds = median_seconds(runs)
        rows.append(
            {
                "what": name,
                "median_s": seconds,
                "times_copy": seconds / flushed if seconds and flushed else None,
                "peak_anonymous_mb": max(run.peak_anonymous for run in runs) / 1e6,
                "peak_resident_mb": max(run.peak_resident for run in runs) / 1e6,
                "note": runs[-1].reason if runs[-1].returncode else "",
            }
        )
    return rows


if __name__ == "__main__":
    main()
