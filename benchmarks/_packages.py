"""Real models that packages bring along: found when installed, never downloaded by us."""

import importlib.resources
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import Feeds
from _models import Bundle

SAMPLES = 8


@dataclass(frozen=True)
class Packaged:
    """One model file inside an installed package.

    Attributes:
        sizes: Extent of open dimensions, by `input:axis` or by symbol; 1 when not named.
        highest: Exclusive upper end of integer inputs, by input name; 2 when not named.
        trained: Whether the weights mean something; the networks in onnx are constants.
    """

    name: str
    package: str
    file: str
    licence: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    highest: Mapping[str, int] = field(default_factory=dict)
    trained: bool = True

    @property
    def path(self) -> Path | None:
        """Where the file is, or None when the package is not installed."""
        spec = importlib.util.find_spec(self.package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            path = Path(place) / self.file
            if path.exists():
                return path
        return None


LIGHT = "backend/test/data/light/light_"
PACKAGED = (
    Packaged("squeezenet", "onnx", f"{LIGHT}squeezenet.onnx", "Apache-2.0", trained=False),
    Packaged("shufflenet", "onnx", f"{LIGHT}shufflenet.onnx", "Apache-2.0", trained=False),
    Packaged("resnet50", "onnx", f"{LIGHT}resnet50.onnx", "Apache-2.0", trained=False),
    Packaged("densenet121", "onnx", f"{LIGHT}densenet121.onnx", "Apache-2.0", trained=False),
    Packaged("inception_v2", "onnx", f"{LIGHT}inception_v2.onnx", "Apache-2.0", trained=False),
    Packaged(
        "magika", "magika", "models/standard_v3_3/model.onnx", "Apache-2.0", {}, {"bytes": 257}
    ),
    Packaged(
        "ppocr_det",
        "rapidocr",
        "models/PP-OCRv6_det_small.onnx",
        "Apache-2.0",
        {"x:2": 320, "x:3": 320},
    ),
    Packaged("ppocr_rec", "rapidocr", "models/PP-OCRv6_rec_small.onnx", "Apache-2.0", {"x:3": 320}),
    Packaged("ppocr_cls", "rapidocr", "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", "Apache-2.0"),
)


def packaged_bundles(folder: Path, *, trained: bool) -> Iterator[Bundle]:
    """Bundles for the packages that are here, with random data written into `folder`.

    Random data says nothing about accuracy in the field; it serves to compare tools.
    """
    for packaged in PACKAGED:
        path = packaged.path
        if path is not None and (packaged.trained or not trained):
            yield synthetic_bundle(packaged.name, path, folder, packaged)


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
