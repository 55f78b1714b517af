"""Graphs for tests of passes that fold arithmetic into weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx import numpy_helper

from tests.helpers.check import (
    assert_holds,
)
from tests.helpers.numbers import RUNTIMES

if TYPE_CHECKING:
    import numpy as np

    from onnxcomp.passbase import Pass

NORM = "BatchNormalization"
PARAMETERS = "float[4] g, float[4] b, float[4] m, float[4] v = {0.5, 1.0, 2.0, 0.25}"
TIGHT: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}


def becomes(rewrite: Pass, text: str, operators: str) -> onnx.ModelProto:
    """Fails unless the operators that are left are those, and everything that must hold holds."""
    # The reference evaluator cannot run a ConvTranspose with groups.
    runtimes = ["onnxruntime"] if "ConvTranspose <group" in text else RUNTIMES
    got = assert_holds(rewrite, text, runtimes=runtimes, **TIGHT)
    assert " ".join(node.op_type for node in got.graph.node) == operators
    return got


def weights(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def conv(
    body: str, more: str = "", x: str = "float[N, 2, 5, 5]", w: str = "float[4, 2, 3, 3]"
) -> str:
    return f"g ({x} x) => (float[P, Q, R, S] y) <{w} w, {PARAMETERS}{more}> {{ {body} }}"


def matrix(body: str, more: str = "", x: str = "float[N, 3]", w: str = "float[3, 4]") -> str:
    return f"g ({x} x) => (float[P, 4] y) <{w} w, {PARAMETERS}{more}> {{ {body} }}"


def before_conv(body: str, w: str = "float[3, 4, 3, 3]", more: str = "") -> str:
    return conv(body, more, x="float[N, 4, 5, 5]", w=w)
