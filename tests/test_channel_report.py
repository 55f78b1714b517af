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
    assert [(barrier.reason, barrier.weights) for barrier in found.barriers] == [
        ("it is an input of the model", ("w axis 1 (3)",)),
        ("it is an output of the model", ("v axis 0 (5)",)),
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
    assert any("w axis 1 (2)" in barrier.weights for barrier in found.barriers)
