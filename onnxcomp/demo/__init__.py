"""A real model with real data that comes with the package, to see what the tool does.

A small ResNet for Fashion-MNIST, trained by `benchmarks/train_demo.py` of the source tree; see
`assets/README.md` for where the images come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ASSETS = Path(__file__).parent / "assets"
MODEL = ASSETS / "model.onnx"
CALIBRATION = ASSETS / "calibration.npz"
EVALUATION = ASSETS / "evaluation.npz"


def accuracy(
    outputs: Sequence[Mapping[str, np.ndarray]], labels: Mapping[str, Any]
) -> dict[str, float]:
    """Returns the share of images whose class is found.

    Args:
        outputs: For each image the model's outputs: `scores`, float [1, 10].
        labels: `label_class`, the true classes, int64 [images].
    """
    found = np.array([int(output["scores"].argmax()) for output in outputs])
    return {"accuracy": float((found == labels["label_class"]).mean())}
