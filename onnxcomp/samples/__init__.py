"""Where calibration and validation data come from."""

from onnxcomp.samples.core import Samples, Source
from onnxcomp.samples.feeds import Array, Feed, conform, joined
from onnxcomp.samples.limits import Limits
from onnxcomp.samples.load import load_samples
from onnxcomp.samples.preprocess import Preprocess

__all__ = [
    "Array",
    "Feed",
    "Limits",
    "Preprocess",
    "Samples",
    "Source",
    "conform",
    "joined",
    "load_samples",
]
