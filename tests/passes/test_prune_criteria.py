"""prune-channels: what tells on samples how much a channel matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.errors import SamplesError
from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.prune.prune_channels import PruneChannels
from tests.helpers.text import model

# Four channels: 0 carries much but hardly anybody listens; 1 carries nothing; 2 and 3 carry the same and are
# both listened to, so that one can do the other's work.
NET = """
    g (float[1, 4, 4, 4] x) => (float[1, 2, 4, 4] y)
    <float[4, 4, 1, 1] w, float[2, 4, 1, 1] v> { a = Conv (x, w) y = Conv (a, v) }"""


def net() -> onnx.ModelProto:
    proto = model(NET)
    first = np.zeros((4, 4, 1, 1), np.float32)
    first[0, 0], first[1, 1], first[2, 2], first[3, 2] = 10, 5, 1, 1.01
    second = np.array([[0.05, 1, 1, 1], [0.05, 1, -1, 2]], np.float32).reshape(2, 4, 1, 1)
    for tensor, array in zip(proto.graph.initializer, (first, second), strict=True):
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return proto


def samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    feeds = [rng.normal(size=(1, 4, 4, 4)).astype("f4") for _ in range(8)]
    for x in feeds:
        x[:, 1] = 0
    return [{"x": x} for x in feeds]


def removed(criterion: Any, ratio: float) -> list[int]:
    """The channels that go, seen by what is left of the first weight."""
    step = PruneChannels(ratio=ratio, criterion=criterion, reconstruct=False)
    result = Pipeline((step,)).run(net(), samples=samples())
    found = result.model.graph.initializers["w"].const_value
    assert found is not None
    left = {float(row[np.abs(row).argmax()]) for row in found.numpy().reshape(-1, 4)}
    names = {10.0: 0, 5.0: 1, 1.0: 2, float(np.float32(1.01)): 3}
    return sorted(set(range(4)) - {names[number] for number in left})


def test_by_weights_the_smallest_go_whatever_they_carry() -> None:
    assert removed("l2", 0.5) == [2, 3]


def test_by_activations_those_that_carry_least() -> None:
    assert removed("activation", 0.25) == [1]
    assert removed("activation", 0.5) == [1, 2]


def test_by_products_those_that_nobody_listens_to_as_well() -> None:
    assert removed("wanda", 0.5) == [0, 1]
    assert removed("auto", 0.5) == [0, 1]


def test_with_making_up_those_that_others_can_stand_in_for() -> None:
    assert removed("obs", 0.5) in ([1, 2], [1, 3])


@pytest.mark.parametrize("criterion", ["activation", "wanda", "obs"])
def test_they_need_samples(criterion: Any) -> None:
    step = PruneChannels(ratio=0.5, criterion=criterion)
    with pytest.raises(SamplesError, match=f"the criterion {criterion} looks at samples"):
        Pipeline((step,)).run(net())


def test_the_better_way_to_spread_is_taken() -> None:
    def decibels(spread: Any) -> float:
        step = PruneChannels(ratio=0.5, spread=spread)
        text = """
            g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y)
            <float[16, 4, 1, 1] a, float[8, 16, 1, 1] b, float[4, 8, 1, 1] c> {
              d = Conv (x, a) e = Relu (d) f = Conv (e, b) h = Relu (f) y = Conv (h, c) }"""
        rng = np.random.default_rng(1)
        feeds = [{"x": rng.normal(size=(1, 4, 4, 4)).astype("f4")} for _ in range(12)]
        result = Pipeline((step,)).run(model(text), samples=feeds)
        (note,) = [d.message for d in result.diagnostics if d.code == "PRN104"]
        return float(note.split(", ")[1].split()[0])

    assert decibels("auto") == max(decibels("uniform"), decibels("global"))
