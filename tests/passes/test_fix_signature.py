"""fix-signature: weights that are inputs become constants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.ir import Model
from onnxcomp.optimization import optimize
from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.convert.fix_signature import FixSignature
from tests.helpers.check import assert_refuses, assert_rewrites, assert_rolls_back, assert_same
from tests.helpers.text import model

if TYPE_CHECKING:
    from pathlib import Path

FIX = FixSignature()
DEFAULTS = """
    g (float[2] x, float[2] w = {1, 2}, float[2] b = {3, 4}) => (float[2] y) {
      a = Mul (x, w)
      y = Add (a, b)
    }
"""


def test_every_default_becomes_a_constant() -> None:
    outcome = assert_rewrites(
        FIX,
        before=DEFAULTS,
        after="""
            g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] b = {3, 4}> {
              a = Mul (x, w)
              y = Add (a, b)
            }
        """,
    )
    assert outcome.stats == {"inputs made constant": 2}


def test_only_and_keep() -> None:
    after = """
        g (float[2] x, float[2] w = {1, 2}) => (float[2] y) <float[2] b = {3, 4}> {
          a = Mul (x, w)
          y = Add (a, b)
        }
    """
    assert_rewrites(FixSignature(only=("b*",)), before=DEFAULTS, after=after)
    assert_rewrites(FixSignature(keep=("w",)), before=DEFAULTS, after=after)


def test_a_file_of_the_old_format_gets_one_that_can_have_free_weights() -> None:
    proto = model(DEFAULTS.replace("g (", '<ir_version: 3, opset_import: ["" : 9]> g (', 1))
    got = Pipeline((FIX,)).run(proto).model
    assert got.ir_version == 4
    assert [value.name for value in got.graph.inputs] == ["x"]
    assert [spec.name for spec in got.signature().inputs] == ["x"]
    assert_same(proto, got.to_proto())
    assert_rolls_back(FIX, proto)


def test_nothing_to_do_is_said() -> None:
    assert_refuses(FIX, "g (float[2] x) => (float[2] y) { y = Neg (x) }", code="SIG101")


def test_what_training_refers_to_stays() -> None:
    proto = model(DEFAULTS)
    training = proto.training_info.add()
    training.algorithm.name = "a"
    training.algorithm.node.add(op_type="Neg", input=["w"], output=["d"])
    training.algorithm.output.add(name="d").type.tensor_type.elem_type = 1
    training.update_binding.add(key="w", value="d")
    result = Pipeline((FIX,)).run(proto)
    assert [value.name for value in result.model.graph.inputs] == ["x", "w"]
    assert [found.code for found in result.diagnostics if found.code.startswith("SIG")] == [
        "SIG102"
    ]


def test_an_output_that_is_an_input_with_a_default() -> None:
    proto = model(
        "g (float[2] x, float[2] w = {1, 2}) => (float[2] y, float[2] w) { y = Mul (x, w) }"
    )
    got = Pipeline((FIX,)).run(proto).model.to_proto()
    onnx.checker.check_model(got)
    assert_same(proto, got, runtimes=("onnxruntime",))


def test_optimize_only_says_that_it_is_possible() -> None:
    proto = model("""
        g (float[1, 2, 4, 4] x, float[2] s = {1, 2}, float[2] b = {1, 1}, float[2] m = {0, 0},
           float[2] v = {1, 4}) => (float[1, 2, 4, 4] y) <float[2, 2, 1, 1] w> {
          a = Conv (x, w)
          y = BatchNormalization (a, s, b, m, v)
        }
    """)
    kept = optimize(proto)
    assert len(list(kept.model.nodes())) == 2
    hint = next(found for found in kept.diagnostics if found.code == "MDL107")
    assert "4 weights" in hint.message
    assert "fix-signature" in hint.hint
    fixed = optimize(Pipeline((FIX,)).run(proto).model)
    assert [node.op_type for node in fixed.model.nodes()] == ["Conv"]
    assert_same(proto, fixed.model.to_proto(), rtol=1e-5, atol=1e-6)


def test_weights_outside_stay_outside(tmp_path: Path) -> None:
    weights = np.arange(4096, dtype=np.float32)
    proto = model("g (float[4096] x, float[4096] w) => (float[4096] y) { y = Mul (x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    source = Model.load(path)
    tensor = source.graph.initializers["w"].const_value
    got = Pipeline((FIX,)).run(source).model
    assert got.graph.initializers["w"].const_value is tensor
    got.save(tmp_path / "n.onnx")
    assert [value.name for value in onnx.load(tmp_path / "n.onnx").graph.input] == ["x"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(defaults=st.lists(st.booleans(), min_size=1, max_size=6), keep=st.integers(0, 5))
def test_whatever_has_a_default_and_is_not_kept_goes(defaults: list[bool], keep: int) -> None:
    inputs = [
        f"float[2] i{n}" + (f" = {{{n}, 1}}" if has else "") for n, has in enumerate(defaults)
    ]
    sums = " ".join(f"s{n + 1} = Add (s{n}, i{n})" for n in range(len(defaults)))
    text = f"g (float[2] x, {', '.join(inputs)}) => (float[2] y) {{ s0 = Neg (x) {sums} y = Neg (s{len(defaults)}) }}"
    proto = model(text)
    result = Pipeline((FixSignature(keep=(f"i{keep}",)),)).run(proto)
    left = [f"i{n}" for n, has in enumerate(defaults) if not has or n == keep]
    assert [value.name for value in result.model.graph.inputs] == ["x", *left]
    assert_same(proto, result.model.to_proto(), runtimes=("onnxruntime",))
    assert_rolls_back(FixSignature(keep=(f"i{keep}",)), proto)
