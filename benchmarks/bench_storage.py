"""Models stored in fewer bytes, and back: 16 bits, palettes, signs, and float from quantized models.

    python benchmarks/bench_storage.py --zoo FOLDER [--models minilm ...] [--peer-python PYTHON]
        [--quantized FOLDER]

`file` and `gzip` are shares of the float file; `load` is the time to open a session and `time` that of a run,
as shares of the float model's, interleaved, one thread. `--quantized` names a folder with a folder
for each model, which holds models that quantizers made (what `bench_compress.py --work DIR` leaves): these are
turned back to float. The peer for float16 is onnxconverter-common.
"""

import argparse
import gzip
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from _common import (
    RESULTS,
    Row,
    interleaved_latency,
    onnxcomp_command,
    open_session,
    parser,
    ratio,
    run_child,
    say,
    write_results,
)
from _models import Bundle, zoo_bundles

COLUMNS = [
    *(
        "model",
        "method",
        "file",
        "gzip",
        "score",
        "float score",
        "sqnr_db",
        "load",
        "time",
        "seconds",
    ),
    "note",
]
WAYS: Mapping[str, Sequence[str]] = {
    "float16": ["convert", "float16"],
    "float16, data": ["convert", "float16", "--data"],
    "float16, stored": ["convert", "float16", "--mode", "storage"],
    "palettes, 4 bits": ["apply", "palettize-weights", "--bits", "4"],
    "palettes, 4 bits, data": ["apply", "palettize-weights", "--bits", "4", "--data"],
    "palettes, budget 0.1, data": ["apply", "palettize-weights", "--budget", "0.1", "--data"],
    "signs, 1 basis": ["apply", "binarize-weights", "--only", "*"],
    "signs, 3 bases": ["apply", "binarize-weights", "--only", "*", "--bases", "3"],
}
LOADS = 5


def made(
    bundle: Bundle, options: argparse.Namespace, folder: Path
) -> dict[str, tuple[Path, float]]:
    """What every way makes of a model."""
    found = {}
    for index, (way, arguments) in enumerate(WAYS.items()):
        out = folder / f"{bundle.name}-{index}.onnx"
        given = [*arguments, bundle.calibration] if arguments[-1] == "--data" else list(arguments)
        command = onnxcomp_command(options.python, *given, bundle.model, "-o", out, "--quiet")
        child = run_child(command)
        say(f"  {way}: {child.seconds:.0f} s {child.reason if child.returncode else ''}")
        if not child.returncode and out.exists():
            found[way] = (out, child.seconds)
    out = folder / f"{bundle.name}-peer.onnx"
    child = run_child([options.peer_python, __file__, "peer", bundle.model, out])
    if not child.returncode and out.exists():
        found["float16, onnxconverter-common"] = (out, child.seconds)
    if options.quantized:
        found |= restored(bundle, options, folder)
    return found


def restored(
    bundle: Bundle, options: argparse.Namespace, folder: Path
) -> dict[str, tuple[Path, float]]:
    """Quantized models as they are, and back in float."""
    found = {}
    for path in sorted((options.quantized / bundle.name).glob("*.onnx")):
        out = folder / f"{bundle.name}-{path.stem}-back.onnx"
        command = ("apply", "dequantize", path, "-o", out, "--quiet")
        child = run_child(onnxcomp_command(options.python, *command))
        found[path.stem] = (path, 0.0)
        if not child.returncode and out.exists():
            found[f"{path.stem}, back in float"] = (out, child.seconds)
    return found


def row(bundle: Bundle, way: str, path: Path, seconds: float, rounds: int) -> Row:
    """Measures one model."""
    size = bundle.model.stat().st_size
    known: Row = {
        "model": bundle.name,
        "method": way,
        "file": path.stat().st_size / size,
        "gzip": len(gzip.compress(path.read_bytes(), 6)) / size,
        "float score": bundle.score(bundle.reference)[bundle.primary],
        "seconds": seconds,
    }
    try:
        scores = bundle.score(bundle.outputs(path))
        loads = [_load(path) / max(_load(bundle.model), 1e-6) for _ in range(LOADS)]
        feeds = bundle.timed_feeds
        sessions = {
            "float": (open_session(bundle.model), feeds),
            "new": (open_session(path), feeds),
        }
        times = interleaved_latency(sessions, rounds=rounds)
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises
        return {**known, "note": f"does not run: {str(error).splitlines()[0][:120]}"}
    return {
        **known,
        "score": scores[bundle.primary],
        "sqnr_db": scores.get("sqnr_db"),
        "load": sorted(loads)[LOADS // 2],
        "time": ratio(times["new"], times["float"])[0],
    }


def _load(path: Path) -> float:
    started = time.perf_counter()
    open_session(path)
    return time.perf_counter() - started


def main() -> None:
    """Measures every model."""
    options = parser(__doc__ or "")
    options.add_argument("--quantized", type=Path, help="folder of quantized models by model")
    options.add_argument("--rounds", type=int, default=11)
    chosen = options.parse_args()
    table: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for bundle in zoo_bundles(chosen.zoo):
            if chosen.models and bundle.name not in chosen.models:
                continue
            say(bundle.name)
            for way, (path, seconds) in made(bundle, chosen, Path(name)).items():
                table.append(row(bundle, way, path, seconds, chosen.rounds))
            output = chosen.output or RESULTS / "storage.json"
            write_results(output, "Fewer bytes, and back to float", table, COLUMNS)


def peer(model: str, out: str) -> None:
    """onnxconverter-common's conversion."""
    from onnxconverter_common import float16  # type: ignore[import-not-found]

    onnx.save(float16.convert_float_to_float16(onnx.load(model), keep_io_types=True), out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        peer(*sys.argv[2:])
    else:
        main()
