"""Which channels belong together, on architectures small enough to count by hand."""

from __future__ import annotations

import pytest

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.channels.site import Roles, Site
from onnxcomp.analysis.channels.space import MAX_POSITIONS, Space, factorize
from onnxcomp.analysis.channels.table import rule_of
from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import Model
from tests.helpers import text


def groups_of(graph: str, prefer: str = "large") -> list[tuple[int, dict[str, int]]]:
    """Returns units and, for each axis of a weight, positions per unit, of each group."""
    model = Model.load(text.model(graph))
    channels = Facts(model).get(Channels(prefer))  # type: ignore[arg-type]
    return [
        (
            group.units,
            {
                f"{member.value.name}.{member.axis}": member.positions.shape[1]
                for member in group.members
                if member.value.is_initializer()
            },
        )
        for group in channels.groups
    ]


def reasons_of(graph: str) -> dict[str, str]:
    """Returns why axes are kept, by value and axis."""
    model = Model.load(text.model(graph))
    barriers = Facts(model).get(Channels()).barriers()
    return {f"{barrier.value.name}.{barrier.axis}": barrier.reason for barrier in barriers}


def test_filters_and_what_reads_them() -> None:
    found = groups_of(
        """g (float[1, 3, 8, 8] x) => (float[1, 5, 4, 4] y)
        <float[6, 3, 3, 3] w, float[6] b, float[5, 6, 3, 3] v> {
          a = Conv (x, w, b)
          r = Relu (a)
          y = Conv (r, v)
        }"""
    )
    assert found == [(6, {"w.0": 1, "b.0": 1, "v.1": 1})]


def test_residual_ties_both_branches() -> None:
    found = groups_of(
        """g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y)
        <float[6, 3, 1, 1] w, float[6, 6, 1, 1] u, float[5, 6, 1, 1] v> {
          a = Conv (x, w)
          r = Conv (a, u)
          s = Add (a, r)
          y = Conv (s, v)
        }"""
    )
    assert found == [(6, {"w.0": 1, "u.0": 1, "u.1": 1, "v.1": 1})]


def test_concat_keeps_its_parts_apart() -> None:
    found = groups_of(
        """g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y)
        <float[6, 3, 1, 1] w, float[4, 3, 1, 1] u, float[5, 10, 1, 1] v> {
          a = Conv (x, w)
          b = Conv (x, u)
          c = Concat <axis = 1> (a, b)
          y = Conv (c, v)
        }"""
    )
    assert found == [(6, {"w.0": 1, "v.1": 1}), (4, {"u.0": 1, "v.1": 1})]


def test_split_and_slice_take_parts() -> None:
    found = groups_of(
        """g (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y, float[1, 2, 8, 8] z)
        <float[6, 3, 1, 1] w, float[2, 2, 1, 1] u, float[2, 2, 1, 1] v, int64[2] parts = {2, 4},
         int64[1] start = {1}, int64[1] end = {4}, int64[1] axis = {1}, int64[1] step = {2}> {
          a = Conv (x, w)
          p, q = Split <axis = 1> (a, parts)
          s = Slice (q, start, end, axis, step)
          y = Conv (p, u)
          z = Conv (s, v)
        }"""
    )
    # The second part's positions 1 and 3 are read again, 0 and 2 by nobody.
    assert found == [(2, {"w.0": 1, "u.1": 1}), (2, {"w.0": 1}), (2, {"w.0": 1, "v.1": 1})]


def test_grouped_filters_lose_the_same_part_of_each_group() -> None:
    found = groups_of(
        """g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y)
        <float[8, 3, 1, 1] w, float[8, 4, 1, 1] u, float[5, 8, 1, 1] v> {
          a = Conv (x, w)
          b = Conv <group = 2> (a, u)
          y = Conv (b, v)
        }"""
    )
    assert found == [
        (4, {"w.0": 2, "u.1": 1}),
        (4, {"u.0": 2, "v.1": 2}),
    ]


def test_depthwise_filters_go_with_their_channel() -> None:
    found = groups_of(
        """g (float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y)
        <float[8, 3, 1, 1] w, float[8, 1, 3, 3] u, float[8] b, float[5, 8, 1, 1] v> {
          a = Conv (x, w)
          d = Conv <group = 8, pads = [1, 1, 1, 1]> (a, u, b)
          y = Conv (d, v)
        }"""
    )
    assert found == [(8, {"w.0": 1, "u.0": 1, "b.0": 1, "v.1": 1})]


def test_flatten_takes_a_run_of_features_for_a_channel() -> None:
    found = groups_of(
        """g (float[1, 3, 4, 4] x) => (float[1, 5] y)
        <float[6, 3, 1, 1] w, float[5, 96] v> {
          a = Conv (x, w)
          f = Flatten (a)
          y = Gemm <transB = 1> (f, v)
        }"""
    )
    assert found == [(6, {"w.0": 1, "v.1": 16})]


SHUFFLE = """g (float[1, 3, 4, 4] x) => (float[1, 5, 4, 4] y)
    <float[6, 3, 1, 1] w, float[5, 6, 1, 1] v, int64[5] apart = {1, 2, 3, 4, 4}, int64[4] whole = {1, 6, 4, 4}> {
      a = Conv (x, w)
      r = Reshape (a, apart)
      t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
      s = Reshape (t, whole)
      y = Conv (s, v)
    }"""


def test_shuffled_channels_are_cut_along_the_larger_factor() -> None:
    assert groups_of(SHUFFLE) == [(3, {"w.0": 2, "v.1": 2})]


def test_preferring_the_outer_factor_takes_groups() -> None:
    assert groups_of(SHUFFLE, "outer") == [(2, {"w.0": 3, "v.1": 3})]


ATTENTION = """g (float[1, 7, 8] x) => (float[1, 7, 8] y)
    <float[8, 12] q, float[8, 12] k, float[8, 12] v, float[12, 8] o,
     int64[4] apart = {1, 7, 3, 4}, int64[3] whole = {1, 7, 12}> {
      a = MatMul (x, q)
      b = MatMul (x, k)
      c = MatMul (x, v)
      ah = Reshape (a, apart)
      bh = Reshape (b, apart)
      ch = Reshape (c, apart)
      at = Transpose <perm = [0, 2, 1, 3]> (ah)
      bt = Transpose <perm = [0, 2, 3, 1]> (bh)
      ct = Transpose <perm = [0, 2, 1, 3]> (ch)
      s = MatMul (at, bt)
      p = Softmax (s)
      h = MatMul (p, ct)
      ht = Transpose <perm = [0, 2, 1, 3]> (h)
      hr = Reshape (ht, whole)
      y = MatMul (hr, o)
    }"""


def test_attention_inside_heads() -> None:
    assert groups_of(ATTENTION) == [(4, {"q.1": 3, "k.1": 3}), (4, {"v.1": 3, "o.0": 3})]


def test_attention_heads() -> None:
    assert groups_of(ATTENTION, "outer") == [(3, {"q.1": 4, "k.1": 4, "v.1": 4, "o.0": 4})]


def test_hidden_units_of_both_directions_and_all_gates() -> None:
    found = groups_of(
        """g (float[4, 1, 3] x) => (float[4, 1, 5] y)
        <float[2, 24, 3] w, float[2, 24, 6] r, float[2, 48] b, float[12, 5] v,
         int64[3] flat = {4, 1, 12}> {
          a, h, c = LSTM <hidden_size = 6, direction = "bidirectional"> (x, w, r, b)
          t = Transpose <perm = [0, 2, 1, 3]> (a)
          f = Reshape (t, flat)
          y = MatMul (f, v)
        }"""
    )
    assert found == [(6, {"w.1": 4, "r.1": 4, "r.2": 1, "b.1": 8, "v.0": 2})]


def test_what_a_branch_captures_is_tied_to_it() -> None:
    found = groups_of(
        """g (float[1, 3, 4, 4] x, bool c) => (float[1, 5, 4, 4] y)
        <float[6, 3, 1, 1] w, float[6, 6, 1, 1] u, float[5, 6, 1, 1] v> {
          a = Conv (x, w)
          b = If (c) <
            then_branch = one () => (t) { t = Conv (a, u) },
            else_branch = other () => (e) { e = Relu (a) }
          >
          y = Conv (b, v)
        }"""
    )
    assert found == [(6, {"w.0": 1, "u.0": 1, "u.1": 1, "v.1": 1})]


def test_a_softmax_mixes_what_it_runs_over() -> None:
    model = Model.load(
        text.model(
            """g (float[1, 4] x) => (float[1, 3] y) <float[4, 6] w, float[6, 3] v> {
              a = MatMul (x, w)
              s = Softmax (a)
              y = MatMul (s, v)
            }"""
        )
    )
    (group,) = Facts(model).get(Channels()).groups
    assert group.mixed == ("Softmax works over the whole axis",)


@pytest.mark.parametrize(
    ("body", "value", "reason"),
    [
        ("a = Conv (x, w)\n y = Foo <domain_ = 1> (a)", "w.0", "nothing is known of the operator"),
        ("y = Conv (x, w)", "w.0", "it is an output of the model"),
        ("a = Conv (x, w)\n y = CumSum (a, one)", "w.0", "its positions have an order"),
    ],
)
def test_reasons(body: str, value: str, reason: str) -> None:
    body = body.replace("Foo <domain_ = 1>", "mine.Foo")
    header = '<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>'
    found = reasons_of(
        f"""{header} g (float[1, 3, 4, 4] x) => (float[1, 6, 4, 4] y)
        <float[6, 3, 1, 1] w, int64 one = {{1}}> {{ {body} }}"""
    )
    assert found[value].startswith(reason)


def test_equal_weights_of_two_layers_lose_the_same() -> None:
    found = groups_of(
        """g (float[1, 6] x) => (float[1, 3] y) <float[6, 6] w, float[6, 3] v> {
          a = MatMul (x, w)
          b = MatMul (a, w)
          y = MatMul (b, v)
        }"""
    )
    # Its rows meet the model's input, its columns its own rows: nothing may go.
    assert found == []


@pytest.mark.parametrize(
    ("left", "right", "sizes"),
    [
        ((6, 4), (3, 8), (3, 2, 4)),
        ((12,), (3, 4), (3, 4)),
        ((2, 3, 4), (24,), (2, 3, 4)),
        ((5, 1, 4), (20,), (5, 4)),
        ((1,), (1, 1), ()),
    ],
)
def test_factors(left: tuple[int, ...], right: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    found = factorize(left, right)
    assert found is not None
    assert found.sizes == sizes


@pytest.mark.parametrize(("left", "right"), [((6, 4), (4, 6)), ((3, 4), (5, 2)), ((4,), (3,))])
def test_sizes_without_common_factors(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    assert factorize(left, right) is None


def test_layers_that_repeat_are_decided_once() -> None:
    """Each Reshape names factors of its own; all cut the same channels the same way."""
    layers = "".join(
        f"""
          r{i} = Reshape (a{i}, apart)
          t{i} = Transpose <perm = [0, 2, 1, 3, 4]> (r{i})
          s{i} = Reshape (t{i}, whole)
          c{i} = Conv (s{i}, u)
          a{i + 1} = Add (c{i}, a{i})"""
        for i in range(12)
    )
    graph = f"""g (float[1, 3, 2, 2] x) => (float[1, 5, 2, 2] y)
        <float[6, 3, 1, 1] w, float[6, 6, 1, 1] u, float[5, 6, 1, 1] v, int64[5] apart = {{1, 2, 3, 2, 2}},
         int64[4] whole = {{1, 6, 2, 2}}> {{
          a0 = Conv (x, w)
          {layers}
          y = Conv (a12, v)
        }}"""
    space = Space()
    roles = Roles()
    model = Model.load(text.model(graph))
    shapes = Facts(model).get(Shapes())
    for node in model.graph:
        site = Site(node, model.opset, space, shapes, roles)
        rule = rule_of(site)
        assert rule is not None
        rule(site)
    assert len(space.products) == 24
    space.unify()
    # Two ways to cut: before and after the channels were turned around.
    assert len(space.products) == 2
    assert groups_of(graph) == [(3, {"w.0": 2, "u.0": 2, "u.1": 2, "v.1": 2})]


def test_an_axis_that_is_too_long_to_be_followed_stays() -> None:
    graph = f"""g (float[1, 3] x) => (float[2, {2 * MAX_POSITIONS}] y)
        <float[3, 8] w, float[8, 1] v, int64[2] s = {{2, {2 * MAX_POSITIONS}}}> {{
          p = MatMul (x, w)
          q = MatMul (p, v)
          r = Expand (q, s)
          t = Relu (r)
          y = Neg (t)
        }}"""
    assert groups_of(graph) == [(8, {"w.1": 1, "v.0": 1})]
    reasons = reasons_of(
        graph.replace("y = Neg (t)", "u = Concat <axis = 1> (t, t)  z = Neg (u)  y = Neg (r)")
    )
    assert reasons["u.1"] == "it has more positions than are followed"
