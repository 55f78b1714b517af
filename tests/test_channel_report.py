"""What a user is told about a model's channels."""

from __future__ import annotations

from onnxcomp.channel_report import channel_report
from onnxcomp.ir import Model
from tests.helpers import text


def test_groups_with_their_cost_and_barriers_with_their_reason() -> None:
    found = channel_report(
        Model.load(
            text.model(
                """g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y)
                <float[6, 3, 1, 1] w, float[6] b, float[5, 6, 1, 1] v> {
                  [first] a = Conv (x, w, b)
                  r = Relu (a)
                  [second] y = Conv (r, v)
                }"""
            )
        )
    )
    (group,) = found.groups
    assert (group.units, group.layers, group.readers) == (6, ("first",), ("second",))
    assert group.parameters == 6 * 3 + 6 + 5 * 6
    # Two operations per weight and position; an open batch counts as one.
    assert group.flops == 2 * 64 * (6 * 3 + 5 * 6)
    assert found.reachable == found.parameters == group.parameters
    assert group.weights == ("w axis 0 (6)", "b axis 0 (6)", "v axis 1 (6)")
    assert [(row.reason, row.parameters, row.weights) for row in found.barriers] == [
        ("it is an output of the model", 30, ("v axis 0 (5)",)),
        ("it is an input of the model", 18, ("w axis 1 (3)",)),
    ]


def test_weights_that_a_caller_may_replace_stay() -> None:
    found = channel_report(
        Model.load(
            text.model(
                """g (float[1, 3] x, float[3, 2] w) => (float[1, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2, 2] v> {
                  a = MatMul (x, w)
                  y = MatMul (a, v)
                }"""
            )
        )
    )
    assert not found.groups
    (barrier,) = [row for row in found.barriers if "w axis 1 (2)" in row.weights]
    assert "fix-signature" in barrier.reason


def test_weights_of_operators_that_are_not_understood() -> None:
    found = channel_report(
        Model.load(
            text.model(
                """<ir_version: 10, opset_import: ["" : 21, "my.own" : 1]>
                g (float[1, 3] x) => (float[1, 4] y) <float[3, 8] w, float[8, 4] v> { y = my.own.Layers (x, w, v) }"""
            )
        )
    )
    (row,) = found.barriers
    assert "nothing is known of the operator" in row.reason
    assert row.weights == ("v axis 0 (8)", "v axis 1 (4)", "w axis 0 (3)", "w axis 1 (8)")


def test_a_quantized_model_names_its_layers() -> None:
    found = channel_report(
        Model.load(
            text.model(
                """g (float[1, 3] x) => (float[1, 4] y)
                <int8[3, 8] w, float[8] ws, int8[4, 8] v, float[4] vs> {
                  u = DequantizeLinear <axis = 1> (w, ws)
                  [first] p = MatMul (x, u)
                  d = DequantizeLinear <axis = 0> (v, vs)
                  t = Transpose <perm = [1, 0]> (d)
                  [second] y = MatMul (p, t)
                }"""
            )
        )
    )
    (group,) = found.groups
    assert (group.units, group.layers, group.readers) == (8, ("first",), ("second",))


def test_weights_that_nodes_hold_are_counted() -> None:
    found = channel_report(
        Model.load(
            text.model(
                """g (float[1, 2] x) => (float[1, 2] y) {
                  w = Constant <value = float[2, 3] {1, 2, 3, 4, 5, 6}> ()
                  v = Constant <value = float[3, 2] {1, 2, 3, 4, 5, 6}> ()
                  a = MatMul (x, w)
                  y = MatMul (a, v)
                }"""
            )
        )
    )
    assert found.reachable == found.parameters == 12
