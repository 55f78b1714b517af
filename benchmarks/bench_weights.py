"""Weights in 4 bits: ours against onnxruntime's quantizer, NNCF and onnxsim. Bytes, score, latency.

    python benchmarks/bench_weights.py --zoo FOLDER [FOLDER...] [--models minilm decoder]
        [--peer-python PYTHON...]

A folder holds bundles (see README.md); `train_decoder.py` makes one with a decoder. Everybody stores the
matrices of MatMul and Gemm in 4 bits with blocks of 32 rows, the rest stays as it is. `matrices` is their bytes with
scales and zero points, as a share of float. Times are shares of the float model's, interleaved, one thread,
with one row (a sequence of length 1) and with 128.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from _common import (
    RESULTS,
    Feeds,
    Row,
    interleaved_latency,
    onnxcomp_command,
    open_session,
    ratio,
    run_child,
    say,
    write_results,
)
from _models import Bundle, fidelity, read_feeds, zoo_bundles

BLOCK = 32
LENGTHS = (1, 128)
COLUMNS = [
    *("model", "method", "matrices", "file", "score", "score / float", "sqnr_db", "cosine"),
    *("time, 1 row", "time, 128 rows", "seconds", "note"),
]
OURS: dict[str, list[str]] = {
    "onnxcomp rtn": ["--method", "rtn", "--format", "qdq"],
    "onnxcomp hqq": ["--method", "hqq", "--format", "qdq"],
    "onnxcomp": ["--format", "qdq"],
    "onnxcomp, data": ["--format", "qdq", "--data"],
    "onnxcomp, data, unpacked": ["--format", "unpacked", "--data"],
    "onnxcomp, data, awq-gptq": ["--format", "qdq", "--method", "awq-gptq", "--data"],
}

# ---------------------------------------------------------------- peers, in a child process each


def _ort(model: Path, out: Path, **options: Any) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(str(model)), block_size=BLOCK, accuracy_level=4, **options
    )
    quantizer.process()
    onnx.save(quantizer.model.model, str(out))


def ort_default(model: Path, feeds: Sequence[Feeds], out: Path) -> None:
    """`MatMulNBitsQuantizer` as it comes: asymmetric, round to nearest."""
    _ort(model, out)


def ort_hqq(model: Path, feeds: Sequence[Feeds], out: Path) -> None:
    """`MatMulNBitsQuantizer` with HQQ."""
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig

    _ort(model, out, algo_config=HQQWeightOnlyQuantConfig(block_size=BLOCK))


def ort_gptq(model: Path, feeds: Sequence[Feeds], out: Path) -> None:
    """`MatMulNBitsQuantizer` with GPTQ."""
    from onnxruntime.quantization.matmul_nbits_quantizer import GPTQWeightOnlyQuantConfig

    class Reader:
        def __init__(self) -> None:
            self.left = iter(feeds)

        def __iter__(self) -> Iterator[Feeds]:
            return iter(feeds)

        def get_next(self) -> Feeds | None:
            return next(self.left, None)

        def rewind(self) -> None:
            self.left = iter(feeds)

    config = GPTQWeightOnlyQuantConfig(Reader(), block_size=BLOCK)
    _ort(model, out, algo_config=config)


def ort_kquant(model: Path, feeds: Sequence[Feeds], out: Path) -> None:
    """`MatMulNBitsQuantizer` with k-quants."""
    from onnxruntime.quantization.matmul_nbits_quantizer import KQuantWeightOnlyQuantConfig

    _ort(model, out, algo_config=KQuantWeightOnlyQuantConfig())


def _nncf(model: Path, out: Path, **options: Any) -> None:
    import nncf

    found = nncf.compress_weights(
        _raised(model), mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=BLOCK, ratio=1.0,
        all_layers=True, ignored_scope=nncf.IgnoredScope(types=["Gather"]), **options,
    )  # fmt: skip
    onnx.save(found, str(out))


def _raised(model: Path) -> onnx.ModelProto:
    """The model in opset 21, which NNCF wants for 4 bits."""
    import onnx.version_converter

    proto = onnx.load(str(model))
    version = max(int(entry.version) for entry in proto.opset_import if not entry.domain)
    return proto if version >= 21 else onnx.version_converter.convert_version(proto, 21)


def nncf_plain(model: Path, feeds: Sequence[Feeds], out: Path) -> None:
    """`nncf.compress_weights` to 4 bits, without data."""
    _nncf(model, out)


def nncf_data(model: Path, feeds: Sequence[Feeds], out: Path) -> None:
    """`nncf.compress_weights` to 4 bits with AWQ and scale estimation."""
    import nncf

    _nncf(model, out, dataset=nncf.Dataset(list(feeds)), awq=True, scale_estimation=True)


def nncf_gptq(model: Path, feeds: Sequence[Feeds], out: Path) -> None:
    """`nncf.compress_weights` to 4 bits with GPTQ."""
    import nncf

    _nncf(model, out, dataset=nncf.Dataset(list(feeds)), gptq=True)


Peer: TypeAlias = Callable[[Path, Sequence[Feeds], Path], None]
PEERS: dict[str, Peer] = {
    "onnxruntime": ort_default,
    "onnxruntime hqq": ort_hqq,
    "onnxruntime gptq": ort_gptq,
    "onnxruntime k-quant": ort_kquant,
    "nncf": nncf_plain,
    "nncf awq+scales": nncf_data,
    "nncf gptq": nncf_gptq,
}

# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Made:
    """A model that somebody made."""

    method: str
    path: Path
    seconds: float


def matrix_bytes(model: Path) -> tuple[int, int]:
    """Bytes of the matrices of MatMul and Gemm, and of all weights, in a float model."""
    proto = onnx.load(str(model))
    tensors = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            tensors[node.output[0]] = node.attribute[0].t
    used = {n.input[1] for n in proto.graph.node if n.op_type in ("MatMul", "Gemm")}
    sizes = {name: len(onnx.numpy_helper.to_array(t).tobytes()) for name, t in tensors.items()}
    large = [n for n in used & set(sizes) if len(tensors[n].dims) == 2 and sizes[n] >= 4 * 4096]
    return sum(sizes[name] for name in large), sum(sizes.values())


def weight_bytes(model: Path) -> int:
    """Bytes of all weights of a model."""
    proto = onnx.load(str(model))
    found = list(proto.graph.initializer)
    found += [a.t for n in proto.graph.node for a in n.attribute if a.HasField("t")]
    return sum(len(t.raw_data) or t.ByteSize() for t in found)


def simplified(bundle: Bundle, python: str, folder: Path) -> Path:
    """The float model that all start from: simplified by us, its weights as initializers."""
    out = folder / f"{bundle.name}.onnx"
    child = run_child(onnxcomp_command(python, "optimize", bundle.model, "-o", out, "--quiet"))
    if child.returncode or not out.exists():
        say(f"  not simplified: {child.reason}")
        return bundle.model
    return out


def ours(
    bundle: Bundle, model: Path, python: str, folder: Path, methods: Sequence[str]
) -> list[Made]:
    """What our own methods make."""
    made = []
    for method in methods:
        options = OURS[method]
        out = folder / f"{bundle.name}-{method.replace(' ', '_')}.onnx"
        full = [*options, str(bundle.calibration)] if options[-1] == "--data" else options
        command = onnxcomp_command(
            python, "quantize", "weights", model, "-o", out, "--quiet", "--no-simplify",
            "--operators", "MatMul", "--operators", "Gemm", *full,
        )  # fmt: skip
        child = run_child(command)
        say(f"  {method}: {child.seconds:.0f} s {child.reason if child.returncode else ''}")
        if not child.returncode:
            made.append(Made(method, out, child.seconds))
    return made


def theirs(
    bundle: Bundle, model: Path, pythons: Sequence[str], folder: Path, methods: Sequence[str]
) -> list[Made]:
    """What the peers make, each in the first interpreter in which it works."""
    made = []
    for method in methods:
        out = folder / f"{bundle.name}-{method.replace(' ', '_')}.onnx"
        reason = ""
        for python in pythons:
            child = run_child([python, __file__, "peer", method, model, bundle.calibration, out])
            reason = child.reason
            if not child.returncode and out.exists():
                made.append(Made(method, out, child.seconds))
                reason = ""
                break
        say(f"  {method}: {reason or 'done'}")
    return made


def of_length(bundle: Bundle, model: Path, length: int) -> Feeds | None:
    """The first feeds with a sequence of another length, where the model takes that."""
    found = {}
    for info in onnx.load(str(model), load_external_data=False).graph.input:
        first = bundle.feeds[0][info.name]
        dims = info.type.tensor_type.shape.dim
        if first.ndim != 2 or len(dims) != 2 or dims[1].dim_value:
            return None
        found[info.name] = np.resize(first, (1, length)).astype(first.dtype)
    return found


def rows(bundle: Bundle, model: Path, made: Sequence[Made], rounds: int) -> list[Row]:
    """Everything about what was made of one model."""
    reference = bundle.outputs(model)
    base = bundle.score(reference)
    matrices, total = matrix_bytes(model)
    found: list[Row] = []
    for each in made:
        try:
            outputs = bundle.outputs(each.path)
        except Exception as error:  # noqa: BLE001  (what a peer made may fail in any way)
            note = f"does not run: {str(error)[-120:]}"
            found.append({"model": bundle.name, "method": each.method, "note": note})
            continue
        score = bundle.score(outputs)
        near = fidelity(outputs, reference)
        primary = bundle.primary
        found.append(
            {
                "model": bundle.name,
                "method": each.method,
                "matrices": (weight_bytes(each.path) - (total - matrices)) / matrices,
                "file": each.path.stat().st_size / model.stat().st_size,
                "score": score[primary],
                "score / float": score[primary] / base[primary],
                "sqnr_db": near["sqnr_db"],
                "cosine": near["cosine"],
                "seconds": each.seconds,
            }
        )
    good = {row["method"] for row in found if "score" in row}
    _add_times(bundle, model, [each for each in made if each.method in good], found, rounds)
    float_row = {"model": bundle.name, "method": "float", "matrices": 1.0, "file": 1.0}
    return [{**float_row, "score": base[bundle.primary], "score / float": 1.0}, *found]


def _add_times(
    bundle: Bundle, model: Path, made: Sequence[Made], found: Sequence[Row], rounds: int
) -> None:
    for length in LENGTHS:
        feeds = of_length(bundle, model, length)
        if feeds is None:
            continue
        paths: Mapping[str, Path] = {"float": model, **{each.method: each.path for each in made}}
        sessions = {name: (open_session(path), feeds) for name, path in paths.items()}
        times = interleaved_latency(sessions, rounds=rounds)
        for row in found:
            if row["method"] not in times:
                continue
            name = "time, 1 row" if length == 1 else f"time, {length} rows"
            row[name] = ratio(times[row["method"]], times["float"])[0]


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--zoo", type=Path, nargs="+", required=True, help="folders of bundles")
    made.add_argument("--models", nargs="+", default=["minilm", "decoder"], help="which of them")
    made.add_argument("--python", default=sys.executable, help="interpreter that has onnxcomp")
    made.add_argument("--peer-python", nargs="+", default=[sys.executable], help="that have peers")
    made.add_argument("--methods", nargs="+", default=[*OURS, *PEERS], help="only these")
    made.add_argument("--rounds", type=int, default=11)
    made.add_argument("--output", type=Path, default=RESULTS / "weights.json")
    options = made.parse_args()
    bundles = [b for folder in options.zoo for b in zoo_bundles(folder) if b.name in options.models]
    table: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for bundle in bundles:
            say(bundle.name)
            folder = Path(name)
            model = simplified(bundle, options.python, folder)
            own = [method for method in options.methods if method in OURS]
            others = [method for method in options.methods if method in PEERS]
            everything = ours(bundle, model, options.python, folder, own)
            everything += theirs(bundle, model, options.peer_python, folder, others)
            table += rows(bundle, model, everything, options.rounds)
            write_results(options.output, "Weights in 4 bits, blocks of 32", table, COLUMNS)


def peer(method: str, model: str, calibration: str, out: str) -> None:
    PEERS[method](Path(model), read_feeds(Path(calibration)), Path(out))


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        peer(*sys.argv[2:])
    else:
        main()
