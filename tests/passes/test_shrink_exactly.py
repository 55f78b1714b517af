"""Masks at random: what is left is the network that somebody would write with the channels that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.prune.shrink_channels import ShrinkChannels
from tests.helpers.check import assert_same

SHRINK = ShrinkChannels(multiple=1)
Array = np.ndarray[Any, Any]
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


@dataclass(frozen=True)
class Architecture:
    """A network whose numbers of channels are parameters.

    Attributes:
        sizes: How many channels there are of each kind.
        weights: For each weight the kinds of its axes: a number for what is fixed, `4h` for gates of h,
            `h16` for each of h sixteen times in a row. A star marks the axis that makes channels.
        text: Inputs, outputs and nodes; braces hold sizes.
    """

    sizes: dict[str, int]
    weights: dict[str, tuple[str, ...]]
    text: str

    def build(self, weights: dict[str, Array], sizes: dict[str, int]) -> onnx.ModelProto:
        """Returns the network with weights, and with sizes where the text has them."""
        text = self.text
        for name, size in sizes.items():
            text = text.replace(f"[[{name}]]", str(size))
        proto = onnx.parser.parse_model(HEADER + text)
        for name, found in weights.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(found, name))
        return proto


ARCHITECTURES = {
    "plain": Architecture(
        {"p": 7, "q": 9},
        {
            "a": ("p*", "3", "3", "3"),
            "ab": ("p*",),
            "b": ("q*", "p", "3", "3"),
            "bb": ("q*",),
            "h": ("4", "q"),
        },
        """g (float[1, 3, 6, 6] x) => (float[1, 4] y) {
          c = Conv <pads = [1, 1, 1, 1]> (x, a, ab)
          d = Relu (c)
          e = Conv <pads = [1, 1, 1, 1]> (d, b, bb)
          f = Relu (e)
          m = GlobalAveragePool (f)
          l = Flatten (m)
          y = Gemm <transB = 1> (l, h)
        }""",
    ),
    "residual": Architecture(
        {"p": 6, "q": 5},
        {
            "a": ("p*", "3", "1", "1"),
            "b": ("q*", "p", "3", "3"),
            "c": ("p*", "q", "3", "3"),
            "h": ("4", "p", "1", "1"),
        },
        """g (float[1, 3, 6, 6] x) => (float[1, 4, 6, 6] y) {
          d = Conv (x, a)
          e = Conv <pads = [1, 1, 1, 1]> (d, b)
          f = Relu (e)
          g = Conv <pads = [1, 1, 1, 1]> (f, c)
          i = Mul (g, s1)
          k = Add (d, i)
          y = Conv (k, h)
        }""",
    ),
    "dense": Architecture(
        {"p": 5, "q": 6, "r": 4},
        {
            "a": ("p*", "3", "1", "1"),
            "b": ("q*", "p", "3", "3"),
            "c": ("r*", "p+q", "1", "1"),
            "h": ("4", "p+q+r", "1", "1"),
        },
        """g (float[1, 3, 6, 6] x) => (float[1, 4, 6, 6] y) {
          d = Conv (x, a)
          e = Conv <pads = [1, 1, 1, 1]> (d, b)
          f = Concat <axis = 1> (d, e)
          i = Conv (f, c)
          k = Concat <axis = 1> (d, e, i)
          y = Conv (k, h)
        }""",
    ),
    "inverted": Architecture(
        {"p": 6, "q": 5},
        {
            "a": ("p*", "3", "1", "1"),
            "d": ("p*", "1", "3", "3"),
            "e": ("q*", "p", "1", "1"),
            "h": ("4", "q", "1", "1"),
        },
        """g (float[1, 3, 6, 6] x) => (float[1, 4, 6, 6] y) {
          c = Conv (x, a)
          f = Clip (c, low, high)
          i = Conv <group = [[p]], pads = [1, 1, 1, 1]> (f, d)
          k = Clip (i, low, high)
          l = Conv (k, e)
          y = Conv (l, h)
        }""",
    ),
    "flattened": Architecture(
        {"p": 5, "q": 7},
        {"a": ("p*", "3", "1", "1"), "b": ("q*", "p16"), "h": ("4", "q")},
        """g (float[1, 3, 4, 4] x) => (float[1, 4] y) {
          c = Conv (x, a)
          d = LeakyRelu (c)
          f = Flatten (d)
          e = Gemm <transB = 1> (f, b)
          i = Tanh (e)
          y = Gemm <transB = 1> (i, h)
        }""",
    ),
    "recurrent": Architecture(
        {"h": 6, "q": 5},
        {
            "w": ("1", "4h*", "3"),
            "r": ("1", "4h*", "h"),
            "b": ("1", "8h*"),
            "u": ("1", "3q*", "h"),
            "v": ("1", "3q*", "q"),
            "o": ("q", "4"),
        },
        """g (float[5, 1, 3] x) => (float[5, 1, 4] y) {
          a, ah, ac = LSTM <hidden_size = [[h]]> (x, w, r, b)
          s = Squeeze (a, one)
          c, ch = GRU <hidden_size = [[q]]> (s, u, v)
          t = Squeeze (c, one)
          y = MatMul (t, o)
        }""",
    ),
    "attention": Architecture(
        {"d": 6, "e": 5, "f": 8},
        {
            "q": ("7", "d*"),
            "k": ("7", "d*"),
            "v": ("7", "e*"),
            "o": ("e", "7"),
            "m": ("7", "f*"),
            "mb": ("f*",),
            "n": ("f", "7"),
        },
        """g (float[1, 5, 7] x) => (float[1, 5, 7] y) {
          a = MatMul (x, q)
          b = MatMul (x, k)
          c = MatMul (x, v)
          bt = Transpose <perm = [0, 2, 1]> (b)
          s = MatMul (a, bt)
          p = Softmax (s)
          h = MatMul (p, c)
          i = MatMul (h, o)
          j = Add (x, i)
          l = MatMul (j, m)
          lb = Add (l, mb)
          g = Gelu (lb)
          u = MatMul (g, n)
          y = Add (j, u)
        }""",
    ),
}


def places(kind: str, kept: dict[str, Array]) -> Array | None:
    """Returns which positions of an axis stay, None for an axis that is nobody's channels."""
    kind = kind.rstrip("*")
    if kind.isdigit():
        return None
    if "+" in kind:
        return np.concatenate([kept[part] for part in kind.split("+")])
    if kind[0].isdigit():
        return np.tile(kept[kind[1:]], int(kind[0]))
    return np.repeat(kept[kind[0]], int(kind[1:] or 1))


def build_both(
    architecture: Architecture, kept: dict[str, Array], rng: np.random.Generator
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Returns the masked network and the one that is written with the channels that stay."""
    masked: dict[str, Array] = {}
    small: dict[str, Array] = {}
    full = {name: np.ones(size, bool) for name, size in architecture.sizes.items()}
    for name, kinds in architecture.weights.items():
        axes = [places(kind, full) for kind in kinds]
        shape = [int(k) if a is None else len(a) for k, a in zip(kinds, axes, strict=True)]
        weight = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
        weight = (weight / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        masked[name], small[name] = weight.copy(), weight
        for axis, kind in enumerate(kinds):
            stays = places(kind, kept)
            if stays is None:
                continue
            if kind.endswith("*"):
                np.moveaxis(masked[name], axis, 0)[~stays] = 0
            small[name] = small[name].compress(stays, axis)
    fixed = {
        "low": np.float32(0),
        "high": np.float32(6),
        "one": np.asarray([1], np.int64),
        "s1": np.float32(0.5),
    }
    extra = {name: np.asarray(value) for name, value in fixed.items() if name in architecture.text}
    counts = {name: int(stays.sum()) for name, stays in kept.items()}
    return (
        architecture.build(masked | extra, architecture.sizes),
        architecture.build(small | extra, counts),
    )


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(ARCHITECTURES)),
    st.integers(0, 1 << 20),
    st.floats(0.1, 0.9),
)
def test_every_masked_channel_goes(name: str, seed: int, ratio: float) -> None:
    architecture = ARCHITECTURES[name]
    rng = np.random.default_rng(seed)
    kept = {kind: rng.random(size) >= ratio for kind, size in architecture.sizes.items()}
    for stays in kept.values():
        stays[rng.integers(len(stays))] = True
    masked, small = build_both(architecture, kept, rng)
    result = Pipeline((SHRINK,)).run(masked).model.to_proto()
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in small.graph.initializer}
    got = {t.name: onnx.numpy_helper.to_array(t) for t in result.graph.initializer}
    for weight in architecture.weights:
        np.testing.assert_array_equal(got[weight], expected[weight], err_msg=weight)
    runtimes = ("onnxruntime",) if name in {"recurrent"} else ("reference", "onnxruntime")
    assert_same(masked, result, rtol=1e-5, atol=1e-5, runtimes=runtimes)
    assert_same(small, result, rtol=1e-6, atol=1e-6, runtimes=runtimes)
    assert not Pipeline((SHRINK,)).run(result).changed


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_goes_where_nothing_is_masked(name: str) -> None:
    architecture = ARCHITECTURES[name]
    kept = {kind: np.ones(size, bool) for kind, size in architecture.sizes.items()}
    whole, _ = build_both(architecture, kept, np.random.default_rng(0))
    assert not Pipeline((SHRINK,)).run(Model.load(whole)).changed
