"""The other quantizers and optimizers, each at the setting that its documentation gives.

Run as a program in a child process, because some of them end in native code that dies:

    python _peers.py list
    python _peers.py quantize PEER MODEL CALIBRATION.npz OUT
"""

import importlib.metadata
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx.version_converter
from _common import Feeds, run_child
from _models import read_feeds

FIRST_PER_CHANNEL_OPSET = 13
NOTE = "benchmark-note: "


class _Reader:
    """The feeds as onnxruntime's calibrators want them."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self.feeds = list(feeds)
        self.position = 0

    def get_next(self) -> Feeds | None:
        self.position += 1
        return self.feeds[self.position - 1] if self.position <= len(self.feeds) else None

    def get_first(self) -> Feeds:
        return self.feeds[0]

    def rewind(self) -> None:
        self.position = 0

    def __len__(self) -> int:
        return len(self.feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.feeds, self.position = self.feeds[start_index:end_index], 0


def _opset(proto: onnx.ModelProto) -> int:
    return max(int(item.version) for item in proto.opset_import if item.domain in ("", "ai.onnx"))


def _at_least_opset_13(model: Path, folder: Path) -> tuple[Path, str]:
    """The model itself, or a converted copy when it is too old for per-channel weights."""
    proto = onnx.load(str(model))
    if _opset(proto) >= FIRST_PER_CHANNEL_OPSET:
        return model, ""
    converted = folder / "converted.onnx"
    onnx.save(
        onnx.version_converter.convert_version(proto, FIRST_PER_CHANNEL_OPSET), str(converted)
    )
    return converted, f"opset {_opset(proto)} converted to 13; "


def ort_default(model: Path, feeds: Sequence[Feeds], out: Path, _folder: Path) -> str:
    """`quantize_static` as it comes: int8 activations and weights, per tensor, QDQ."""
    from onnxruntime.quantization import quantize_static

    quantize_static(str(model), str(out), _Reader(feeds))
    return ""


def _prepared(model: Path, folder: Path) -> tuple[Path, str]:
    """The model pre-processed as onnxruntime's documentation asks."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    try:
        quant_pre_process(str(model), str(prepared))
    except Exception as error:  # noqa: BLE001  (its symbolic shapes fail in many ways)
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        return prepared, f"symbolic shapes failed ({type(error).__name__}), skipped; "
    return prepared, ""


def ort_u8s8(model: Path, feeds: Sequence[Feeds], out: Path, folder: Path) -> str:
    """Pre-processed, uint8 activations, int8 weights per channel."""
    from onnxruntime.quantization import QuantType, quantize_static

    source, converted = _at_least_opset_13(model, folder)
    prepared, note = _prepared(source, folder)
    quantize_static(
        str(prepared),
        str(out),
        _Reader(feeds),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return converted + note


def ort_static(model: Path, feeds: Sequence[Feeds], out: Path, folder: Path, method: str) -> str:
    """`quantize_static` with a calibration method, uint8 activations, int8 weights per channel."""
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    source, note = _at_least_opset_13(model, folder)
    quantize_static(
        str(source),
        str(out),
        _Reader(feeds),
        calibrate_method=CalibrationMethod[method],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return note


def ort_dynamic(model: Path, _feeds: Sequence[Feeds], out: Path, folder: Path) -> str:
    """Pre-processed, `quantize_dynamic`, int8 weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, note = _prepared(model, folder)
    quantize_dynamic(str(prepared), str(out), weight_type=QuantType.QInt8)
    return note


def _nncf(model: Path, feeds: Sequence[Feeds], out: Path, folder: Path, **options: Any) -> str:
    import nncf

    source, note = _at_least_opset_13(model, folder)
    quantized = nncf.quantize(onnx.load(str(source)), nncf.Dataset(list(feeds)), **options)
    onnx.save(quantized, str(out))
    return note


def nncf_default(model: Path, feeds: Sequence[Feeds], out: Path, folder: Path) -> str:
    """`nncf.quantize` as it comes."""
    return _nncf(model, feeds, out, folder)


def nncf_transformer(model: Path, feeds: Sequence[Feeds], out: Path, folder: Path) -> str:
    """`nncf.quantize` with its transformer patterns; for graphs with attention."""
    import nncf

    return _nncf(model, feeds, out, folder, model_type=nncf.ModelType.TRANSFORMER)


def onnxsim_full_qdq(model: Path, feeds: Sequence[Feeds], out: Path, folder: Path) -> str:
    """`onnxsim.full_qdq.quantize_full_qdq` on the simplified model."""
    import onnxsim
    from onnxsim.full_qdq import quantize_full_qdq

    source, note = _at_least_opset_13(model, folder)
    simplified, _ = onnxsim.simplify(onnx.load(str(source)))
    onnx.save(quantize_full_qdq(simplified, calibration_data=list(feeds)), str(out))
    return note


def quark_default(model: Path, feeds: Sequence[Feeds], out: Path, folder: Path) -> str:
    """AMD Quark's ready-made configuration for 8 bits."""
    from quark.onnx import ModelQuantizer, QConfig

    source, note = _at_least_opset_13(model, folder)
    ModelQuantizer(QConfig.get_default_config("A8W8")).quantize_model(
        str(source), str(out), _Reader(feeds)
    )
    return note


def aimet_default(model: Path, feeds: Sequence[Feeds], out: Path, folder: Path) -> str:
    """AIMET's simulation with int8 weights and activations, exported as QDQ."""
    import aimet_onnx

    source, note = _at_least_opset_13(model, folder)
    simulated = aimet_onnx.QuantizationSimModel(
        onnx.load(str(source)), param_type=aimet_onnx.int8, activation_type=aimet_onnx.int8
    )
    simulated.compute_encodings(list(feeds))
    onnx.save(simulated.to_onnx_qdq(), str(out))
    return note


def modelopt_default(model: Path, feeds: Sequence[Feeds], out: Path, folder: Path) -> str:
    """NVIDIA ModelOpt's int8 for ONNX, calibrated on the CPU; made for TensorRT."""
    from modelopt.onnx.quantization import quantize as modelopt_quantize

    source, note = _at_least_opset_13(model, folder)
    modelopt_quantize(
        str(source),
        calibration_data_reader=_Reader(feeds),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(out),
    )
    return note


Quantizer: TypeAlias = Callable[[Path, Sequence[Feeds], Path, Path], str]
QUANTIZERS: dict[str, tuple[str, Quantizer]] = {
    "ort_default": ("onnxruntime", ort_default),
    "ort_u8s8": ("onnxruntime", ort_u8s8),
    "ort_dynamic": ("onnxruntime", ort_dynamic),
    "nncf": ("nncf", nncf_default),
    "nncf_transformer": ("nncf", nncf_transformer),
    "onnxsim_full_qdq": ("onnxsim", onnxsim_full_qdq),
    "quark": ("amd-quark", quark_default),
    "aimet": ("aimet-onnx", aimet_default),
    "modelopt": ("nvidia-modelopt", modelopt_default),
}
PACKAGES = (
    *("onnxruntime", "nncf", "onnxsim", "onnxslim", "onnxscript"),
    *("amd-quark", "aimet-onnx", "nvidia-modelopt"),
)


def has_attention(model: Path) -> bool:
    """Whether two activations are multiplied as matrices and a Softmax is there."""
    graph = onnx.load(str(model), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    products = [n for n in graph.node if n.op_type == "MatMul" and not constants & set(n.input)]
    return bool(products) and any(node.op_type == "Softmax" for node in graph.node)


def quantizers_for(model: Path) -> list[str]:
    """Those that make sense on this model."""
    return [name for name in QUANTIZERS if name != "nncf_transformer" or has_attention(model)]


# ---------------------------------------------------------------- called by the benchmarks


def interpreters(pythons: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The first interpreter that has a peer's package, and the version, by package."""
    found: dict[str, tuple[str, str]] = {}
    for python in pythons:
        for package, version in installed(python).items():
            found.setdefault(package, (python, version))
    return found


def installed(python: str) -> dict[str, str]:
    """Packages of peers that `python` has, with versions."""
    child = run_child([python, Path(__file__), "list"], timeout=60)
    if child.returncode != 0:
        return {}
    found: dict[str, str] = json.loads(child.stdout)
    return found


@dataclass(frozen=True)
class Quantized:
    """What became of one peer on one model."""

    failure: str
    note: str
    seconds: float


def quantize(
    python: str, peer: str, model: Path, calibration: Path, out: Path, *, timeout: float = 1800
) -> Quantized:
    """Runs a quantizer in a child process."""
    child = run_child(
        [python, Path(__file__), "quantize", peer, model, calibration, out], timeout=timeout
    )
    failure = child.reason if child.returncode else ""
    _, _, note = child.stdout.rpartition(NOTE)
    return Quantized(failure, note.strip(), child.seconds)


# What a user of each types, or the shortest script that the documentation leads to.
ONNXSCRIPT = """
import sys
import onnx
import onnxscript.optimizer
model = onnxscript.optimizer.optimize(onnx.load(sys.argv[1]))
onnx.save(model, sys.argv[2])
"""
ONNXRUNTIME_BASIC = """
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.optimized_model_filepath = sys.argv[2]
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
OPTIMIZERS = {
    "onnxsim": "",
    "onnxslim": "",
    "onnxscript": ONNXSCRIPT,
    "onnxruntime": ONNXRUNTIME_BASIC,
}


def optimizer_command(python: str, package: str, model: Path, out: Path) -> list[str | Path]:
    """What a user of a peer runs, in the environment of `python`."""
    if source := OPTIMIZERS[package]:
        return [python, "-c", source, model, out]
    script = Path(python).parent / package
    program: list[str | Path] = [script] if script.exists() else [python, "-m", package]
    return [*program, model, out]


def _main(arguments: list[str]) -> None:
    if arguments[0] == "list":
        versions = {}
        for package in PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        sys.stdout.write(json.dumps(versions))
        return
    _, peer, model, calibration, out = arguments
    folder = Path(tempfile.mkdtemp(prefix="peer-"))
    try:
        # A copy: some of them write beside the model.
        copy = folder / "model.onnx"
        shutil.copyfile(model, copy)
        note = QUANTIZERS[peer][1](copy, read_feeds(Path(calibration)), Path(out), folder)
    finally:
        shutil.rmtree(folder)
    sys.stdout.write(f"\n{NOTE}{note}\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
