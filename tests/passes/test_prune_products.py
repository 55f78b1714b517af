"""prune-channels: what channels cost that can make up for each other, in numbers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.facts import Facts
from onnxcomp.ir import Edit, Model
from onnxcomp.passbase import Context
from onnxcomp.quant.gram import Gram
from onnxcomp_passes.prune.support.criteria import layer_adaptive, unit_scores
from onnxcomp_passes.prune.support.effects import Effects
from onnxcomp_passes.prune.support.ends import ends_of
from onnxcomp_passes.prune.support.products import removal_costs, shrunk
from tests.helpers import text


def test_layer_adaptive_magnitudes() -> None:
    np.testing.assert_allclose(layer_adaptive(np.asarray([9.0, 1, 4])), [1, 1 / 14, 4 / 13])
    np.testing.assert_allclose(layer_adaptive(np.zeros(2)), [0, 0])


def gram(rows: np.ndarray) -> Gram:
    wide = rows.astype(np.float64)
    return Gram(wide.T @ wide, wide.sum(axis=0), np.abs(wide).sum(axis=0), len(wide))


def test_what_is_twice_there_can_go_once() -> None:
    rows = np.random.default_rng(0).normal(size=(4000, 3))
    rows = rows[:, [0, 1, 0, 2]]
    costs = removal_costs(gram(rows), np.ones((4, 1)), np.arange(4)[:, None])
    first, second = sorted(costs[[0, 2]])
    assert first < 0.01
    # The one that is left does the work of both: twice the weight, four times the power.
    np.testing.assert_allclose([second, *costs[[1, 3]]], [1, 0.25, 0.25], rtol=0.06)


def test_what_the_others_make_up_for() -> None:
    rows = np.random.default_rng(1).normal(size=(5000, 6))
    rows = (rows @ np.random.default_rng(2).normal(size=(6, 6))) + 5.0
    weight = np.random.default_rng(3).normal(size=(6, 4))
    costs = removal_costs(gram(rows), weight, np.arange(6).reshape(3, 2))
    # The first one to go costs what a regression on all others with an offset leaves.
    first = int(costs.argmin())
    others = [row for row in range(6) if row // 2 != first]
    known = np.column_stack([rows[:, others], np.ones(len(rows))])
    lost = rows[:, 2 * first : 2 * first + 2] @ weight[2 * first : 2 * first + 2]
    rest = lost - known @ np.linalg.lstsq(known, lost, rcond=None)[0]
    power = ((rows**2).sum(axis=0)[:, None] * weight**2).sum()
    np.testing.assert_allclose(costs[first], (rest**2).sum() / power, rtol=0.05)


def test_few_rows_say_nothing_of_what_goes_together() -> None:
    rng = np.random.default_rng(4)
    few, many = rng.normal(size=(8, 40)), rng.normal(size=(4000, 2)) @ rng.normal(size=(2, 40))
    for rows, share in ((few, 0.3), (many, 0.99)):
        centred = gram(rows).centred
        made = shrunk(centred, len(rows))
        beside = ~np.eye(40, dtype=bool)
        kept = np.abs(made[beside]).sum() / np.abs(centred[beside]).sum()
        assert (kept < share) == (rows is few)


READERS = {
    "conv": (
        "[1, 4, 4, 4]",
        "float[4, 6, 3, 3] b> { h = Conv (x, a) y = Conv <pads = [1, 1, 1, 1]> (h, b) }",
    ),
    "strided": (
        "[1, 4, 2, 2]",
        "float[4, 6, 2, 2] b> { h = Conv (x, a) y = Conv <strides = [2, 2]> (h, b) }",
    ),
    "transposed": (
        "[1, 4, 8, 8]",
        "float[6, 4, 2, 2] b> { h = Conv (x, a) y = ConvTranspose <strides = [2, 2]> (h, b) }",
    ),
    "flat": (
        "[1, 5]",
        "float[5, 96] b> { h = Conv (x, a) f = Flatten (h) y = Gemm <transB = 1> (f, b) }",
    ),
    "turned": (
        "[16, 4]",
        """float[6, 4] b, int64[2] p = {6, 16}> {
            h = Conv (x, a) r = Reshape (h, p) t = Transpose <perm = [1, 0]> (r) y = MatMul (t, b) }""",
    ),
    "left": (
        "[4, 16]",
        "float[4, 6] b, int64[2] p = {6, 16}> { h = Conv (x, a) r = Reshape (h, p) y = MatMul (b, r) }",
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_first_order_is_the_slope_of_the_energy(reader: str) -> None:
    shape, body = READERS[reader]
    graph = f"g (float[1, 3, 4, 4] x) => (float{shape} y) <float[6, 3, 1, 1] a, {body}"
    rng = np.random.default_rng(7)
    sample = {"x": rng.normal(size=(1, 3, 4, 4)).astype(np.float32)}
    model = Model.load(text.model(graph))
    ctx = Context(model, Edit(model), Facts(model), samples=[sample], threads=1)  # type: ignore[arg-type]
    channels = ctx.facts.get(Channels())
    [found] = unit_scores(ctx, channels, "taylor", 0).values()
    effects = Effects.prepare(ctx, ends_of(channels), [sample])
    assert effects is not None

    def energy(unit: int, factor: float) -> float:
        gate = np.ones(7, np.float32)
        gate[unit] = factor
        made = effects.session.run({**sample, effects.names[0]: gate})
        return float(np.square(made["y"].astype(np.float64)).sum())

    # The energy is of second order in each gate: this slope is exact.
    slopes = [(energy(unit, 2.0) - energy(unit, 0.0)) / 4 for unit in range(6)]
    np.testing.assert_allclose(found, np.abs(slopes) / energy(0, 1.0), rtol=1e-3, atol=1e-5)
