"""Plans for providers that want Q/DQ only where weighted layers read."""

from __future__ import annotations

import pytest

from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import Model
from onnxcomp.quant.candidates import Candidates, Filter, find_candidates
from onnxcomp.quant.plan import Plan, make_plan
from onnxcomp.quant.scheme import QScheme, Shared
from onnxcomp.targets import load_target
from tests.helpers.text import model

INT8 = QScheme("int8", symmetric=True)
WEIGHTS = "float[4, 4, 1, 1] w, float[4, 4, 1, 1] v, float[4, 4, 1, 1] u, float[4] s"


def planned(
    body: str, target: str = "tensorrt", *, outputs: str = "float[1, 4, 8, 8] y", more: str = ""
) -> tuple[Plan, Candidates]:
    text = f"g (float[1, 4, 8, 8] x) => ({outputs}) <{WEIGHTS}{more}> {{ {body} }}"
    loaded, table = Model.load(model(text)), load_target(target)
    found = find_candidates(loaded.graph, table, Facts(loaded).get(Shapes()), Filter())
    return make_plan(found, set(found.found), table), found


def reads(found: Candidates) -> dict[str, tuple[int, ...]]:
    return {key: candidate.activations for key, candidate in found.found.items()}


def why_not(found: Candidates) -> dict[str, str]:
    return {node.outputs[0].name or "": reason for node, reason in found.refused}


def test_outputs_stay_float() -> None:
    plan, found = planned("a = Conv (x, w) b = Relu (a) y = Conv (b, v)")
    assert dict(plan) == {"x": INT8, "b": INT8}
    assert all(not candidate.points for candidate in found)
    assert all(candidate.absorbed is None for candidate in found)


# -- residual branches -----------------------------------------------------------------------------


@pytest.mark.parametrize(("add", "index"), [("Add (a, x)", 1), ("Add (x, a)", 0)])
def test_the_other_input_of_an_add_behind_a_conv_is_quantized(add: str, index: int) -> None:
    plan, found = planned(f"a = Conv (x, w) y = {add}")
    assert reads(found) == {"a": (0,), "y": (index,)}
    assert dict(plan) == {"x": INT8}


def test_of_two_convs_the_later_one_is_fused() -> None:
    plan, found = planned(
        "a = Conv (x, w) b = Relu (a) c = Conv (b, v) d = Conv (x, u) y = Add (c, d)"
    )
    assert reads(found)["y"] == (0,)
    assert set(plan) == {"x", "b", "c"}


def test_a_normalization_between_is_looked_through() -> None:
    _, found = planned("a = Conv (x, w) b = BatchNormalization (a, s, s, s, s) y = Add (b, x)")
    assert reads(found)["y"] == (1,)


@pytest.mark.parametrize(
    "body",
    [
        "a = Relu (x) y = Add (a, x)",
        "a = Conv (x, w) b = Relu (a) y = Add (b, x)",
        "a = Conv (x, w) b = Exp (a) c = Add (a, x) y = Mul (b, c)",
    ],
)
def test_an_add_that_no_layer_is_fused_with_stays_float(body: str) -> None:
    plan, found = planned(body)
    assert not [c for c in found if c.node.op_type == "Add"]
    assert "no layer" in next(iter(why_not(found).values()))
    assert set(plan) <= {"x"}


def test_an_add_that_spreads_its_input_stays_float() -> None:
    _, found = planned("p = GlobalAveragePool (x) a = Conv (x, w) y = Add (a, p)")
    assert why_not(found) == {"y": "its inputs have different shapes, or unknown ones"}


def test_an_add_of_a_value_and_itself_stays_float() -> None:
    _, found = planned("a = Conv (x, w) y = Add (a, a)")
    assert why_not(found) == {"y": "it adds no two activations"}


# -- Concat ----------------------------------------------------------------------------------------


def test_what_goes_into_a_concat_has_the_scale_of_what_comes_out() -> None:
    plan, _ = planned(
        "a = Relu (x) b = Conv (a, w) c = Concat <axis = 1> (a, b) d = Conv (c, z) y = Conv (b, v)",
        outputs="float[1, 4, 8, 8] y, float[1, 4, 8, 8] d",
        more=", float[4, 8, 1, 1] z",
    )
    assert dict(plan) == {"a": Shared("c"), "b": Shared("c"), "c": INT8}
    assert plan.root("b") == "c"


def test_a_dense_block_has_one_scale() -> None:
    plan, _ = planned(
        "a = Relu (x) b = Conv (a, w) c = Concat <axis = 1> (a, b) d = Conv (c, z) "
        "e = Concat <axis = 1> (a, b, d) y = Conv (e, q)",
        more=", float[4, 8, 1, 1] z, float[4, 12, 1, 1] q",
    )
    assert dict(plan) == {"a": Shared("e"), "c": Shared("e"), "e": INT8}


def test_a_value_in_two_concats_of_which_none_covers_the_other_keeps_its_scale() -> None:
    plan, _ = planned(
        "a = Relu (x) b = Exp (x) k = Conv (a, w) c = Concat <axis = 1> (a, b) "
        "e = Concat <axis = 1> (a, k) d = Conv (c, z) y = Conv (e, z)",
        outputs="float[1, 4, 8, 8] y, float[1, 4, 8, 8] d",
        more=", float[4, 8, 1, 1] z",
    )
    assert dict(plan) == {"a": INT8, "c": INT8, "e": INT8}


def test_two_concats_of_the_same_values_do_not_share_in_a_circle() -> None:
    plan, _ = planned(
        "a = Relu (x) b = Abs (x) k = Conv (a, w) l = Conv (b, w) c = Concat <axis = 1> (a, b) "
        "e = Concat <axis = 1> (b, a) d = Conv (c, z) y = Conv (e, z)",
        outputs="float[1, 4, 8, 8] y, float[1, 4, 8, 8] d, float[1, 4, 8, 8] k, float[1, 4, 8, 8] l",
        more=", float[4, 8, 1, 1] z",
    )
    assert {plan.root(point) for point in plan} == {"e"}


def test_a_target_that_quantizes_outputs_shares_nothing_in_a_concat() -> None:
    plan, _ = planned(
        "b = Conv (x, w) c = Concat <axis = 1> (x, b) y = Conv (c, z)",
        "cpu",
        more=", float[4, 8, 1, 1] z",
    )
    assert not [scheme for scheme in plan.values() if isinstance(scheme, Shared)]


# -- operators that hand on numbers ----------------------------------------------------------------


def test_rounding_moves_in_front_of_operators_that_hand_on_numbers() -> None:
    plan, found = planned(
        "a = Conv (x, w) b = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a) "
        "c = Transpose <perm = [0, 1, 3, 2]> (b) y = Conv (c, v)",
        "openvino",
    )
    assert reads(found) == {"a": (0,), "y": (), "c": (), "b": (0,)}
    assert set(plan) == {"x", "a"}


@pytest.mark.parametrize(
    ("rest", "outputs"),
    [
        ("d = Exp (b) y = Mul (c, d)", "float[1, 4, 8, 8] y"),
        ("y = Relu (c)", "float[1, 4, 8, 8] y, float[1, 4, 8, 8] b"),
        (
            "y = If (p) <then_branch = t () => (float[1, 4, 8, 8] o) { o = Exp (b) }, "
            "else_branch = e () => (float[1, 4, 8, 8] o2) { o2 = Neg (c) }>",
            "float[1, 4, 8, 8] y",
        ),
    ],
)
def test_rounding_stays_where_something_else_reads_the_float(rest: str, outputs: str) -> None:
    body = f"a = Conv (x, w) b = MaxPool <kernel_shape = [1, 1]> (a) c = Conv (b, v) {rest}"
    plan, found = planned(body, "openvino", outputs=outputs, more=", bool p = {1}")
    assert reads(found) == {"a": (0,), "c": (0,)}
    assert set(plan) == {"x", "b"}


def test_both_halves_of_a_split_are_read_by_layers() -> None:
    plan, found = planned(
        "a = Relu (x) p, q = Split <axis = 1, num_outputs = 2> (a) b = Conv (p, h) c = Conv (q, h) "
        "y = Add (b, c)",
        "openvino",
        more=", float[4, 2, 1, 1] h",
    )
    assert reads(found) == {"b": (), "c": (), "y": (0,), "p": (0,)}
    assert set(plan) == {"a", "b"}
