"""Channels that are equal, or multiples of each other, become one; branches and layers that do nothing go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.facts import Facts
from onnxcomp.ir import Edit, Model
from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.prune.shrink_channels import ShrinkChannels
from tests.helpers import text
from tests.helpers.check import assert_rewrites, assert_same, assert_unchanged
from tests.helpers.numbers import seeded_feeds
from tests.passes.test_shrink_channels import FAMILIES

if TYPE_CHECKING:
    from onnxcomp.analysis.channels import ChannelMap, Group

SHRINK = ShrinkChannels(multiple=1)
# Nothing is known of what a body returns, or of sums that an equation writes.
UNMERGED = {"branches", "einsum"}


def doubled(model: Model, rng: np.random.Generator) -> tuple[Model, int]:
    """Gives channels the weights of others; returns how many are copies."""
    copy = model.copy()
    channels = Facts(copy).get(Channels())
    edit, count = Edit(copy), 0
    for group in channels.groups:
        if not group.mixed and group.units > 2:
            source = rng.integers(0, group.units, group.units)
            source[source] = source[source][source]  # mostly chains of one
            _copy(edit, channels, group, source)
            count += int((source != np.arange(group.units)).sum())
    return copy, count


def _copy(edit: Edit, channels: ChannelMap, group: Group, source: np.ndarray[Any, Any]) -> None:
    for member in group.members:
        weights = member.value.const_value
        if weights is None or (member.value, member.axis) in channels.consumers:
            continue
        array = np.moveaxis(weights.numpy().copy(), member.axis, 0)
        array[member.positions] = array[member.positions[source]]
        edit.set_tensor(member.value, np.ascontiguousarray(np.moveaxis(array, 0, member.axis)))


def assert_close(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Equal up to rounding of sums, of which the largest number decides."""
    feeds = seeded_feeds(before, 0)
    (one,) = list(_run(before, feeds))[:1]
    scale = float(np.abs(one).max())
    assert_same(before, after, feeds=[feeds], rtol=1e-5, atol=1e-5 * max(scale, 1.0))


def _run(proto: onnx.ModelProto, feeds: Any) -> list[np.ndarray[Any, Any]]:
    from onnx.reference import ReferenceEvaluator

    return [np.asarray(found) for found in ReferenceEvaluator(proto).run(None, dict(feeds))]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(set(FAMILIES) - {"lstm", "gru"})), st.integers(0, 1 << 16))
def test_copies_are_merged(family: str, seed: int) -> None:
    source, _ = doubled(Model.load(text.model(FAMILIES[family])), np.random.default_rng(seed))
    result = Pipeline((SHRINK,)).run(source)
    assert_close(source.to_proto(), result.model.to_proto())


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - UNMERGED))
def test_copies_are_found(family: str) -> None:
    model = Model.load(text.model(FAMILIES[family]))
    found = 0
    for seed in range(4):
        source, _ = doubled(model, np.random.default_rng(seed))
        (outcome,) = Pipeline((SHRINK,)).run(source).outcomes
        found += outcome.stats.get("channels merged", 0)
    assert found


def test_of_two_equal_filters_one_stays() -> None:
    assert_rewrites(
        SHRINK,
        before="""g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
            <float[3, 2, 1, 1] w = {1, 2, 3, 4, 1, 2}, float[3] b = {1, 2, 1}, float[1, 3, 3, 3] v> {
              a = Conv (x, w, b)
              r = Sigmoid (a)
              y = Conv <pads = [1, 1, 1, 1]> (r, v)
            }""",
        after=_summed("v", (1, 3, 3, 3)),
    )


def _summed(name: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    whole = onnx.numpy_helper.to_array(text.weight(name, 1, shape))
    proto = text.model(
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2] b = {1, 2}, float[1, 2, 3, 3] v> {
          a = Conv (x, w, b)
          r = Sigmoid (a)
          y = Conv <pads = [1, 1, 1, 1]> (r, v)
        }"""
    )
    wide = whole.astype(np.float64)
    left = np.stack([wide[:, 0] + wide[:, 2], wide[:, 1]], 1).astype(np.float32)
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(left, name))
    return proto


def test_filters_with_other_biases_are_not_equal() -> None:
    assert_unchanged(
        SHRINK,
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[2, 2, 1, 1] w = {1, 2, 1, 2}, float[2] b = {1, 3}, float[1, 2, 1, 1] v> {
          a = Conv (x, w, b)
          r = Sigmoid (a)
          y = Conv (r, v)
        }""",
    )


def test_equal_filters_that_are_scaled_apart_are_not_equal() -> None:
    """PRelu has a slope for each channel."""
    assert_unchanged(
        SHRINK,
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[2, 2, 1, 1] w = {1, 2, 1, 2}, float[2, 1, 1] s = {0.1, 0.2}, float[1, 2, 1, 1] v> {
          a = Conv (x, w)
          r = PRelu (a, s)
          y = Conv (r, v)
        }""",
    )


def test_equal_filters_that_sums_tell_apart_stay() -> None:
    assert_unchanged(
        SHRINK,
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[2, 2, 1, 1] w = {1, 2, 1, 2}, float[2, 2, 1, 1] u = {1, 2, 3, 4}, float[1, 2, 1, 1] v> {
          a = Conv (x, w)
          b = Conv (x, u)
          c = Add (a, b)
          r = Relu (c)
          y = Conv (r, v)
        }""",
    )


def test_a_weight_with_two_readers_stays() -> None:
    """What is added up for one reader would be wrong for the other."""
    assert_unchanged(
        SHRINK,
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y, float[1, 1, 4, 4] z)
        <float[2, 2, 1, 1] w = {1, 2, 1, 2}, float[2, 2, 1, 1] u = {1, 2, 3, 4}, float[1, 2, 1, 1] v> {
          a = Conv (x, w)
          b = Conv (x, u)
          y = Conv (a, v)
          z = Conv (b, v)
        }""",
    )


def test_constants_under_padding_become_one() -> None:
    """Three channels that always hold 2, 0.5 and 1: at borders the reader sees zeros in their place."""
    source = text.model(
        """g (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[4, 1, 1, 1] w = {1, 0, 0, 0}, float[4] b = {3, 2, 0.5, 1}, float[2, 4, 3, 3] v> {
          a = Conv (x, w, b)
          r = Relu (a)
          y = Conv <pads = [1, 1, 1, 1]> (r, v)
        }"""
    )
    result = Pipeline((SHRINK,)).run(source)
    shapes = {n: list(v.shape or ()) for n, v in result.model.graph.initializers.items()}
    assert shapes["w"] == [2, 1, 1, 1]
    assert shapes["v"] == [2, 2, 3, 3]
    assert_same(source, result.model.to_proto(), rtol=1e-5, atol=1e-5)


def test_constants_behind_a_pad_are_multiples_still() -> None:
    source = text.model(
        """g (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[4, 1, 1, 1] w = {1, 0, 0, 0}, float[4] b = {3, 2, 0.5, -1}, float[2, 4, 3, 3] v,
         int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}> {
          a = Conv (x, w, b)
          p = Pad (a, pads)
          y = Conv (p, v)
        }"""
    )
    result = Pipeline((SHRINK,)).run(source)
    assert list(result.model.graph.initializers["w"].shape or ()) == [2, 1, 1, 1]
    assert_same(source, result.model.to_proto(), rtol=1e-5, atol=1e-5)


def test_a_pad_with_something_else_keeps_constants_apart() -> None:
    assert_unchanged(
        SHRINK,
        """g (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[3, 1, 1, 1] w = {1, 0, 0}, float[3] b = {3, 2, 0.5}, float[2, 3, 3, 3] v,
         int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, float one = {1}> {
          a = Conv (x, w, b)
          p = Pad (a, pads, one)
          y = Conv (p, v)
        }""",
    )


def test_branches_that_are_alike_are_merged_behind_a_concatenation() -> None:
    source = text.model(
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[3, 2, 1, 1] u = {5, 6, 1, 2, 7, 8}, float[1, 5, 1, 1] v> {
          a = Conv (x, w)
          b = Conv (x, u)
          c = Relu (a)
          d = Relu (b)
          e = Concat <axis = 1> (c, d)
          y = Conv (e, v)
        }"""
    )
    result = Pipeline((SHRINK,)).run(source)
    assert list(result.model.graph.initializers["v"].shape or ()) == [1, 4, 1, 1]
    assert_same(source, result.model.to_proto(), rtol=1e-5, atol=1e-5)


def test_a_branch_of_zeros_is_no_branch() -> None:
    assert_rewrites(
        SHRINK,
        before="""g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
            <float[3, 2, 1, 1] w, float[2, 3, 3, 3] v = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
             0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
             float[2, 2, 1, 1] h> {
              a = Conv (x, w)
              b = Relu (a)
              c = Conv <pads = [1, 1, 1, 1]> (b, v)
              d = Add (x, c)
              y = Conv (d, h)
            }""",
        after="""g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2, 2, 1, 1] h> {
              y = Conv (x, h)
            }""",
    )


def test_a_branch_that_holds_a_constant_becomes_one() -> None:
    assert_rewrites(
        SHRINK,
        before="""g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
            <float[3, 2, 1, 1] w, float[2, 3, 1, 1] v = {0, 0, 0, 0, 0, 0}, float[2] b = {1, -2}> {
              a = Conv (x, w)
              c = Conv (a, v, b)
              d = Relu (c)
              y = Add (x, d)
            }""",
        after="""g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2, 1, 1] c = {1, 0}> {
              y = Add (x, c)
            }""",
    )


def test_a_gate_that_is_always_the_same_becomes_a_constant() -> None:
    source = text.model(
        """g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[2, 2, 1, 1] v = {0, 0, 0, 0}, float[2] b = {1, -2}> {
          m = GlobalAveragePool (x)
          c = Conv (m, v, b)
          d = Sigmoid (c)
          y = Mul (x, d)
        }"""
    )
    result = Pipeline((SHRINK,)).run(source)
    assert [node.op_type for node in result.model.nodes()] == ["Mul"]
    assert_same(source, result.model.to_proto(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        "Conv (r, eye4)",
        "MatMul (r, eye)",
        "Mul (r, ones)",
        "Add (zeros, r)",
        "BatchNormalization <epsilon = 0.0> (r, ones, zeros, zeros, ones)",
    ],
)
def test_a_layer_that_does_nothing_goes(layer: str) -> None:
    shape = "2, 3, 3, 3" if "eye4" in layer else "2, 3"
    result = Pipeline((SHRINK,)).run(
        text.model(
            f"""g (float[{shape}] x) => (float[{shape}] y)
            <float[3, 3, 1, 1] eye4 = {{1, 0, 0, 0, 1, 0, 0, 0, 1}}, float[3, 3] eye = {{1, 0, 0, 0, 1, 0, 0, 0, 1}},
             float[3] ones = {{1, 1, 1}}, float[3] zeros = {{0, 0, 0}}> {{
              r = Relu (x)
              s = {layer}
              y = Tanh (s)
            }}"""
        )
    )
    assert [node.op_type for node in result.model.nodes()] == ["Relu", "Tanh"]


@pytest.mark.parametrize(
    "layer",
    [
        "Conv <strides = [2, 2]> (x, eye)",
        "Conv (x, swapped)",
        "Conv (x, eye, b)",
        "Conv <pads = [1, 1, 1, 1]> (x, eye)",
    ],
)
def test_a_layer_that_does_something_stays(layer: str) -> None:
    size = {"strides": 2, "pads": 6}.get(layer.split("<")[-1].strip().split(" ")[0], 4)
    assert_unchanged(
        SHRINK,
        f"""g (float[1, 2, 4, 4] x) => (float[1, 2, {size}, {size}] y)
        <float[2, 2, 1, 1] eye = {{1, 0, 0, 1}}, float[2, 2, 1, 1] swapped = {{0, 1, 1, 0}},
         float[2] b = {{1, 2}}> {{
          y = {layer}
        }}""",
    )


def test_a_sum_that_widens_stays() -> None:
    """The branch of zeros gives the result its shape."""
    source = text.model(
        """g (float[1, 2, 4, 4] x, float[1, 2, 1, 1] z) => (float[1, 2, 4, 4] y)
        <float[2, 2, 1, 1] v = {0, 0, 0, 0}> {
          c = Conv (x, v)
          y = Add (z, c)
        }"""
    )
    result = Pipeline((SHRINK,)).run(source)
    assert [node.op_type for node in result.model.nodes()] == ["Conv", "Add"]


INCEPTION = """g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
    <float[3, 2, 1, 1] w, float[3, 3, 3, 3] u, float[2, 2, 1, 1] p = {0, 0, 0, 0}, float[2] b = {1, -1},
     float[2, 2, 1, 1] k, float[2, 7, SIZE] v> {
      a = Conv (x, w)
      c = Conv <pads = [1, 1, 1, 1]> (a, u)
      d = Conv (x, p, b)
      e = Relu (d)
      f = MaxPool <kernel_shape = [1, 1]> (e)
      g = Conv (x, k)
      h = Concat <axis = 1> (c, f, g)
      y = Conv <PADS> (h, v)
    }"""


def test_a_branch_of_a_concatenation_goes_as_a_whole() -> None:
    source = text.model(INCEPTION.replace("SIZE", "1, 1").replace("<PADS>", ""))
    result = Pipeline((SHRINK,)).run(source)
    assert [node.op_type for node in result.model.nodes()] == ["Conv"] * 3 + ["Concat", "Conv"]
    assert list(result.model.graph.initializers["v"].shape or ()) == [2, 5, 1, 1]
    assert_same(source, result.model.to_proto(), rtol=1e-5, atol=1e-5)


def test_a_branch_of_a_concatenation_that_padding_shows_stays() -> None:
    source = text.model(INCEPTION.replace("SIZE", "3, 3").replace("PADS", "pads = [1, 1, 1, 1]"))
    result = Pipeline((SHRINK,)).run(source)
    assert list(result.model.graph.initializers["v"].shape or ()) == [2, 6, 3, 3]
    assert_same(source, result.model.to_proto(), rtol=1e-5, atol=1e-5)


def test_of_two_operands_the_one_that_stays_needs_no_concatenation() -> None:
    source = text.model(
        """g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[3, 2, 1, 1] w, float[2, 2, 1, 1] p = {0, 0, 0, 0}, float[2, 5, 1, 1] v> {
          a = Conv (x, w)
          d = Conv (x, p)
          h = Concat <axis = 1> (d, a)
          y = Conv (h, v)
        }"""
    )
    result = Pipeline((SHRINK,)).run(source)
    assert [node.op_type for node in result.model.nodes()] == ["Conv", "Conv"]
    assert_same(source, result.model.to_proto(), rtol=1e-5, atol=1e-5)


def test_a_part_of_a_split_keeps_a_channel() -> None:
    """The other part is still read."""
    source = text.model(
        """g (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[4, 3, 1, 1] a = {1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0}, float[2, 4, 1, 1] h, int64[2] parts = {2, 2}> {
          p = Conv (x, a)
          q, r = Split <axis = 1> (p, parts)
          s = Relu (q)
          t = Concat <axis = 1> (s, r)
          y = Conv (t, h)
        }"""
    )
    result = Pipeline((SHRINK,)).run(source)
    assert_same(source, result.model.to_proto(), rtol=1e-5, atol=1e-5)
    assert list(result.model.graph.initializers["a"].shape or ()) == [3, 3, 1, 1]
