"""Candidates, what the provider fuses, the plan, and where int8 pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.errors import SamplesError
from onnxcomp.ir import Model
from onnxcomp.quant.calibrate import calibrate
from onnxcomp.quant.candidates import Candidates, Filter, find_candidates
from onnxcomp.quant.fusion import check_fusion
from onnxcomp.quant.measure import NodeTimes, measure_nodes
from onnxcomp.quant.placement import Placement
from onnxcomp.quant.plan import Plan, make_plan
from onnxcomp.quant.regions import Regions, find_regions
from onnxcomp.quant.scheme import Fixed, QScheme, Shared
from onnxcomp.targets import load_target
from tests.helpers.text import model

CPU = load_target("cpu")
NET = """
    g (float[1, 4, 8, 8] x) => (float[1, 4, 4, 4] y)
    <float[4, 4, 1, 1] w, float[4] b, float[4, 4, 1, 1] v> {
      c = Conv (x, w, b)
      r = Relu (c)
      p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
      d = Conv (p, v)
      e = Exp (d)
      s = Sigmoid (e)
      y = Mul (s, p)
    }"""
GELU = """
    g (float[1, 8] x) => (float[1, 8] y)
    <float[8, 8] w, float two = {1.4142135}, float one = {1}, float half = {0.5}> {
      c = MatMul (x, w)
      d = Div (c, two) e = Erf (d) f = Add (e, one) h = Mul (c, f) i = Mul (h, half)
      y = MatMul (i, w)
    }"""


def candidates(text: str, **options: tuple[str, ...]) -> tuple[Model, Candidates]:
    loaded = Model.load(model(text))
    shapes = Facts(loaded).get(Shapes())
    return loaded, find_candidates(loaded.graph, CPU, shapes, Filter(**options))


def test_candidates_know_their_weight_and_what_vanishes_into_the_q() -> None:
    _, found = candidates(NET)
    assert set(found.found) == {"c", "p", "d", "s", "y"}
    conv = found.found["c"]
    assert conv.weight == 1
    assert conv.absorbed is not None
    assert conv.absorbed.op_type == "Relu"
    assert [value.name for value in conv.points] == ["r"]
    assert [value.name for value in found.found["y"].inputs] == ["s", "p"]


def test_options_leave_nodes_out_with_a_reason() -> None:
    _, found = candidates(NET, skip=("c",), skip_ops=("Mul",))
    assert set(found.found) == {"p", "d", "s"}
    assert [reason.split()[0] for _, reason in found.refused] == ["it", "Mul"]


def test_the_plan_shares_fixes_and_gives_parameters() -> None:
    _, found = candidates(NET)
    plan = make_plan(found, {"c", "p", "s", "y"}, CPU)
    assert dict(plan) == {
        "x": QScheme(),
        "r": QScheme(),
        "p": Shared("r"),
        "e": QScheme(),
        "s": Fixed(1 / 256, 0),
        "y": QScheme(),
    }
    assert plan.root("p") == "r"
    assert plan.nodes == {"c": "conv", "p": "select", "s": "probability", "y": "elementwise"}


def test_the_plan_is_text_and_back() -> None:
    _, found = candidates(NET)
    plan = make_plan(found, set(found.found), CPU)
    again = Plan.from_json(plan.to_json())
    assert (dict(again), dict(again.nodes)) == (dict(plan), dict(plan.nodes))
    assert "p: as r" in str(plan)
    assert "s: uint8 scale 0.00390625 zero 0" in str(plan)


def test_a_kernel_that_writes_float_needs_no_point_behind_it() -> None:
    text = """
        g (float[2, 4] x) => (float[2, 4] y) <float[4, 4] w> {
          a = MatMul (x, w) b = Exp (a) c = MatMul (b, w) y = MatMul (c, w)
        }"""
    _, found = candidates(text)
    assert set(make_plan(found, {"a", "c", "y"}, CPU)) == {"x", "b", "c"}


def test_fused_kernels_are_found_and_sealed() -> None:
    loaded, _ = candidates(GELU)
    regions = find_regions(loaded, "cpu")
    assert {key: op for key, op in regions.sealed.items() if key in "defhi"} == dict.fromkeys(
        "defhi", "Gelu"
    )
    assert "c" not in regions.sealed


def times(**seconds: float) -> NodeTimes:
    return NodeTimes({name: value * 1e-3 for name, value in seconds.items()})


def placement(text: str, floats: NodeTimes, int8: NodeTimes, elements: int = 10_000) -> Placement:
    loaded, found = candidates(text)
    sizes = {v.name or "": elements for node in loaded.graph for v in node.outputs} | {
        "x": elements
    }
    return Placement(loaded.graph, found, Regions(), CPU, floats, int8, sizes)


def test_what_gains_is_placed_in_int8_and_what_loses_is_not() -> None:
    problem = placement(
        NET, times(c=1, d=1, p=0.01, s=0.01, y=0.01), times(c=0.3, d=2, p=0.01, s=0.5, y=0.5)
    )
    assert problem.solve() == {"c"}


def test_small_gains_do_not_pay_for_conversions() -> None:
    floats, int8 = times(c=1.0, d=1.0), times(c=0.99, d=0.99)
    assert placement(NET, floats, int8, elements=10_000_000).solve() == set()
    assert placement(NET, floats, int8, elements=10).solve() >= {"c", "d"}


def test_a_slow_node_between_fast_ones_goes_with_them() -> None:
    floats, int8 = times(c=1.0, d=1.0, p=0.01), times(c=0.2, d=0.2, p=0.02)
    problem = placement(NET, floats, int8, elements=100_000)
    assert problem.solve() == {"c", "p", "d"}
    slower = replace(problem, int8_times=times(c=0.2, d=0.2, p=6.0))
    assert slower.solve() == {"c", "d"}


def test_measured_nodes_have_the_models_names() -> None:
    loaded, _ = candidates(NET)
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype("f4")}
    found = measure_nodes(loaded, feeds, provider="cpu", rounds=3)
    assert set(found.seconds) <= {"c", "r", "p", "d", "e", "s", "y"}
    assert {"d", "e"} <= set(found.seconds)
    assert found.total > 0


def test_float_where_int8_was_planned_is_found() -> None:
    loaded, found = candidates(NET)
    plan = make_plan(found, set(found.found), CPU)
    # Nothing was inserted, so everything planned runs in float.
    check = check_fusion(loaded, plan, found, load_target("cpu"))
    assert {"c", "d", "s", "y"} <= set(check.strays)
    assert not check.leftovers


def test_calibration_in_groups_gives_the_same() -> None:
    loaded, _ = candidates(NET)
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(1, 4, 8, 8)).astype("f4")} for _ in range(4)]
    names = ["x", "r", "p", "d"]
    once = calibrate(loaded, names, feeds)
    split = calibrate(loaded, names, iter(feeds), sizes=dict.fromkeys(names, 100), memory_limit=600)
    assert once.keys() == split.keys() == set(names)
    for name in names:
        assert (once[name].low, once[name].high) == (split[name].low, split[name].high)
        np.testing.assert_array_equal(once[name].counts, split[name].counts)
    assert once["r"].low == 0.0


def test_no_samples_are_an_error() -> None:
    loaded, _ = candidates(NET)
    with pytest.raises(SamplesError, match="no calibration sample"):
        calibrate(loaded, ["x", "r"], [])
