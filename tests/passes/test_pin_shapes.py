"""Fixing open dimensions of inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.errors import UserError
from onnxcomp.optimization import optimize, pin_shapes
from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.convert.pin_shapes import PinShapes
from tests.helpers.check import assert_rewrites, assert_unchanged, run_pass
from tests.helpers.numbers import assert_same_numbers
from tests.helpers.text import model
from tests.passes import test_fuse_lstm as lstm

TWO = """
    g (float[N, 3, H] x, float[N, K] y) => (float[N, M] z, float[?] w) <int64[2] t = {0, -1}> {
      a = Reshape (x, t)
      z = Concat <axis = 1> (a, y)
      w = ReduceSum <keepdims = 0> (y)
    }
"""


def test_a_symbol_gets_its_size_wherever_it_occurs() -> None:
    assert_rewrites(
        PinShapes(shapes=("x:2,3,?",)),
        before=TWO.replace("float[?] w", "float w"),
        after="""
            g (float[2, 3, H] x, float[2, K] y) => (float[2, M] z, float w) <int64[2] t = {0, -1}> {
              a = Reshape (x, t)
              z = Concat <axis = 1> (a, y)
              w = ReduceSum <keepdims = 0> (y)
            }
        """,
        feeds=[{"x": np.ones((2, 3, 5), np.float32), "y": np.ones((2, 4), np.float32)}],
    )


def dims_of(infos: Any) -> list[list[int | str]]:
    return [
        [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]
        for dims in (info.type.tensor_type.shape.dim for info in infos)
    ]


@pytest.mark.parametrize(
    ("options", "inputs", "output"),
    [
        ({"shapes": ["x:2,3,5", "y:2,7"]}, [[2, 3, 5], [2, 7]], [2, 22]),
        ({"shapes": ["x:N,3,*", "K=4"]}, [["N", 3, "H"], ["N", 4]], ["N", "M"]),
        ({"shapes": ["N=6"]}, [[6, 3, "H"], [6, "K"]], [6, "M"]),
        ({"batch": 8}, [[8, 3, "H"], [8, "K"]], [8, "M"]),
        ({"batch": 8, "shapes": ["x:?,3,2", "K=1"]}, [[8, 3, 2], [8, 1]], [8, 7]),
    ],
)
def test_inputs_and_outputs_are_declared_with_what_follows(
    options: dict[str, Any], inputs: list[list[Any]], output: list[Any]
) -> None:
    got, _ = run_pass(PinShapes(**options), model(TWO))
    assert dims_of(got.graph.input) == inputs
    assert dims_of(got.graph.output)[0] == output


def test_declared_outputs_that_lie_are_dropped() -> None:
    source = model(TWO)
    source.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 9
    source.graph.output[1].type.tensor_type.shape.dim[0].dim_value = 5
    got, outcome = run_pass(PinShapes(shapes=("N=2", "H=1", "K=1")), source)
    assert dims_of(got.graph.output) == [[2, 4], []]
    assert [(item.code, item.where.name) for item in outcome.diagnostics] == [
        ("PIN101", "z"),
        ("PIN101", "w"),
    ]


def test_a_question_mark_stands_for_different_sizes() -> None:
    source = model("g (float[A, B] x, float[C] y) => (float[?, ?] z) { z = Add (x, y) }")
    for info in source.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            dim.dim_param = "?"
    got, _ = run_pass(PinShapes(shapes=("x:2,3",)), source)
    assert dims_of(got.graph.input) == [[2, 3], ["?"]]


def test_a_negative_dimension_is_open() -> None:
    source = model("g (float[N, 2] x) => (float[?, ?] z) { z = Relu (x) }")
    source.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    got, _ = run_pass(PinShapes(batch=3), source)
    assert dims_of(got.graph.input) == [[3, 2]]
    assert dims_of(got.graph.output) == [[3, 2]]


def test_an_input_without_a_shape_gets_one() -> None:
    source = model("g (float[N] x) => (float[?] z) { z = Relu (x) }")
    source.graph.input[0].type.tensor_type.ClearField("shape")
    got, _ = run_pass(PinShapes(shapes=("x:2,?",)), source)
    assert dims_of(got.graph.input) == [[2, ""]]


def test_names_with_colons_are_names() -> None:
    source = model("g (float[N] x) => (float[?] z) { z = Relu (x) }")
    source.graph.input[0].name = source.graph.node[0].input[0] = "in:0"
    got, _ = run_pass(PinShapes(shapes=("in:0:5",)), source)
    assert dims_of(got.graph.input) == [[5]]


def test_bodies_are_declared_with_the_sizes_too() -> None:
    source = model(
        """
            g (bool c, float[N] x) => (float[N] z) {
              z = If (c) <then_branch = a () => (float[N] p) { p = Relu (x) },
                          else_branch = b () => (float[N] q) { q = Neg (x) }>
            }
        """
    )
    got, _ = run_pass(PinShapes(shapes=("N=4",)), source)
    bodies = [onnx.helper.get_attribute_value(attr) for attr in got.graph.node[0].attribute]
    assert [dims_of(body.output) for body in bodies] == [[[4]], [[4]]]
    assert dims_of(got.graph.output) == [[4]]


@pytest.mark.parametrize("options", [{}, {"shapes": ("x:?,3,?",)}, {"shapes": ("x:N,3,H",)}])
def test_what_is_left_open_changes_nothing(options: dict[str, Any]) -> None:
    assert_unchanged(PinShapes(**options), TWO)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shapes": ["q:1,2"]}, ['no input "q"', 'inputs: "x", "y"']),
        ({"shapes": ["xx:1,3,2"]}, ['did you mean "x"?']),
        ({"shapes": ["x:1,3"]}, ["has 3 dimensions, not 2", "N,3,H"]),
        ({"shapes": ["x:1,4,5"]}, ["dimension 1", "fixed at 3 and cannot be 4"]),
        (
            {"shapes": ["x:1,3,5", "y:2,2"]},
            ['"N" cannot be both 1 (x) and 2 (y)', '"x", "y" share'],
        ),
        ({"shapes": ["x:1,3,5"], "batch": 2}, ["cannot be both 1"]),
        ({"shapes": ["x:1,3,K"]}, ["dimension 2", "is H, not K"]),
        ({"shapes": ["x:1,3,0"]}, ['"0"', "is no size"]),
        ({"shapes": ["x:1,3,-1"]}, ['"-1"', "is no size"]),
        ({"shapes": ["NN=3"]}, ['no input has a dimension "NN"', 'did you mean "N"?']),
        ({"shapes": ["N=many"]}, ['"many"', "is no size"]),
        ({"shapes": ["N"]}, ["not understood", "name:1,3,224,224"]),
    ],
)
def test_mistakes_are_told_apart(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        run_pass(PinShapes(**options), model(TWO))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_batch_that_no_input_has_is_an_error_and_another_first_dimension_a_note() -> None:
    fixed = "g (float[2, 3] x) => (float[2, 3] z) { z = Relu (x) }"
    with pytest.raises(UserError, match="no input has an open first dimension"):
        run_pass(PinShapes(batch=4), model(fixed))
    both = model(
        "g (float[N, 2] x, float[2, N] state) => (float[?, ?] z) { z = MatMul (x, state) }"
    )
    got, outcome = run_pass(PinShapes(batch=4), both)
    assert dims_of(got.graph.input) == [[4, 2], [2, 4]]
    assert [(item.code, item.where.name) for item in outcome.diagnostics] == [("PIN102", "state")]


CHAIN = """
    g (float[N, S, 6] x, float[N, S] m) => (float[?, ?, ?] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] ax = {0}, int64[1] rest = {-1}, int64 three = {3}> {
      s = Shape (x)
      a = Gather (s, zero)
      b = Gather (s, one)
      c = Mul (b, three)
      a1 = Unsqueeze (a, ax)
      c1 = Unsqueeze (c, ax)
      t = Concat <axis = 0> (a1, c1, rest)
      r = Reshape (x, t)
      k = ReduceMean <keepdims = 0> (m, k_one)
      k2 = Unsqueeze (k, k_axes)
      y = Add (r, k2)
    }
""".replace("<int64 zero", "<int64[1] k_one = {1}, int64[2] k_axes = {1, 2}, int64 zero")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_pinned_models_compute_what_the_original_does(n: int, s: int, by_symbol: bool) -> None:
    source = model(CHAIN)
    shapes: Any = {"N": n, "S": s} if by_symbol else {"x": (n, s, None), "m": (n, s)}
    result = optimize(source, input_shapes=shapes, threads=1)
    got = result.model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    assert not {"Shape", "Gather", "Concat", "Mul"} & {node.op_type for node in got.graph.node}
    assert dims_of(got.graph.input) == [[n, s, 6], [n, s]]
    rng = np.random.default_rng(n + 10 * s)
    feeds = {
        "x": rng.normal(size=(n, s, 6)).astype(np.float32),
        "m": rng.normal(size=(n, s)).astype(np.float32),
    }
    assert_same_numbers(source, got, feeds, runtimes=("onnxruntime",), rtol=1e-5, atol=1e-5)
    session = onnxruntime.InferenceSession(got.SerializeToString())
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(None, {**feeds, "x": np.ones((n + 1, s, 6), np.float32)})


def test_the_report_names_the_step_and_the_shapes_can_be_given_as_texts() -> None:
    result = optimize(model(CHAIN), input_shapes=["x:2,3,6"], batch=2)
    assert result.pipeline.startswith('pin-shapes{shapes=["x:2,3,6"] batch=2},')
    assert result.outcomes[0].stats["shapes fixed"] >= 2
    alone = pin_shapes(model(CHAIN), batch=2)
    assert [spec.shape for spec in alone.model.signature().inputs] == [(2, "S", 6), (2, "S")]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_loop_over_a_fixed_number_of_steps_is_still_one_over_the_sequence(axis: int) -> None:
    source = model(lstm._graph(axis=axis))
    steps = Pipeline.parse('pin-shapes{shapes=["T=5"]},fold-constants,fuse-lstm')
    got = steps.run(source).model.to_proto()
    assert "LSTM" in {node.op_type for node in got.graph.node}
    assert "Loop" not in {node.op_type for node in got.graph.node}
    shape = (2, 5, 3) if axis == 1 else (5, 2, 3)
    feeds: dict[str, Any] = {
        "xs": np.random.default_rng(0).normal(size=shape).astype(np.float32),
        "first": np.zeros((2, 4), np.float32),
        "n": np.array(5),
    }
    assert_same_numbers(source, got, feeds, runtimes=("onnxruntime",), rtol=1e-5, atol=1e-5)
