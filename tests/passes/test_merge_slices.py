"""merge-slices: pieces cut and put together, to the bit."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp_passes.simplify.merge_slices import MergeSlices
from tests.helpers.check import assert_holds, assert_rewrites, assert_rolls_back, assert_unchanged

PASS = MergeSlices()
NUMBERS = "int64[1] a = {1}, " + ", ".join(f"int64[1] n{n} = {{{n}}}" for n in range(13))
FAR = ", int64[1] far = {9223372036854775807}, int64[1] m1 = {-1}, int64[1] m4 = {-4}"


def graph(body: str, weights: str = "", out: str = "float[N, P, 5] y", opset: int = 18) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 12, 5] x, float[N, 4, 5] z) => ({out}) <{NUMBERS}{FAR}{weights}> {{ {body} }}"""


THREE = "float[N, P, 5] y, float[N, Q, 5] u, float[N, R, 5] v"
MERGED = [
    # Slices that are all of it.
    ("y = Slice (x, n0, n4, a) u = Slice (x, n4, n6, a) v = Slice (x, n6, far, a)",
     "y, u, v = Split <axis = 1> (x, s)", ", int64[3] s = {4, 2, 6}", THREE),
    ("y = Slice (x, m4, far, a) u = Slice (x, n0, m4, a)",
     "u, y = Split <axis = 1> (x, s)", ", int64[2] s = {8, 4}", "float[N, P, 5] y, float[N, Q, 5] u"),
    # A slice of a slice.
    ("t = Slice (x, n2, n9, a) y = Slice (t, n1, n3, a)",
     "y = Slice (x, i, j, k)", ", int64[1] i = {3}, int64[1] j = {5}, int64[1] k = {1}", ""),
    ("t = Slice (x, n2, far, a) y = Slice (t, n1, far, a)",
     "y = Slice (x, i, j, k)", ", int64[1] i = {3}, int64[1] j = {12}, int64[1] k = {1}", ""),
    ("t = Slice (x, n1, n9, a, n2) y = Slice (t, m1, m4, a, m1)",
     "y = Slice (x, i, j, k, l)",
     ", int64[1] i = {7}, int64[1] j = {1}, int64[1] k = {1}, int64[1] l = {-2}", ""),
    # Neighbours.
    ("b = Slice (x, n2, n4, a) c = Slice (x, n4, n9, a) y = Concat <axis = 1> (b, c)",
     "y = Slice (x, i, j, k)", ", int64[1] i = {2}, int64[1] j = {9}, int64[1] k = {1}", ""),
    ("b = Slice (x, n2, n4, a) c = Slice (x, n4, n9, a) y = Concat <axis = -2> (b, c, z)",
     "t = Slice (x, i, j, k) y = Concat <axis = -2> (t, z)",
     ", int64[1] i = {2}, int64[1] j = {9}, int64[1] k = {1}", ""),
    ("b, c, d = Split <axis = 1> (x, s) y = Concat <axis = 1> (b, c)",
     "y = Slice (x, i, j, k)",
     ", int64[3] s = {4, 4, 4}, int64[1] i = {0}, int64[1] j = {8}, int64[1] k = {1}", ""),
    ("b, c, d = Split <axis = 1> (x, s) e = Concat <axis = 1> (b, c) f = Relu (e) y = Concat <axis = 1> (f, d)",
     "e, d = Split <axis = 1> (x, r) f = Relu (e) y = Concat <axis = 1> (f, d)",
     ", int64[3] s = {4, 4, 4}, int64[2] r = {8, 4}", ""),
    ("b, c, d = Split <axis = 1> (x, s) y = Concat <axis = 1> (z, b, c, d)",
     "y = Concat <axis = 1> (z, x)", ", int64[3] s = {4, 4, 4}", ""),
    # Seams.
    ("b = Relu (z) c = Concat <axis = 1> (b, x) y, u = Split <axis = 1> (c, s)",
     "y = Relu (z) u = Identity (x)", ", int64[2] s = {4, 12}", None),
    ("c = Concat <axis = 1> (z, x, z) d, e = Split <axis = 1> (c, s) f = Neg (d) y = Concat <axis = 1> (e, f)",
     "d = Concat <axis = 1> (z, x) f = Neg (d) y = Concat <axis = 1> (z, f)",
     ", int64[2] s = {16, 4}", ""),
    # One part of many.
    ("b, c, d = Split <axis = 1> (x, s) y = Relu (c)",
     "c = Slice (x, i, j, k) y = Relu (c)",
     ", int64[3] s = {4, 2, 6}, int64[1] i = {4}, int64[1] j = {6}, int64[1] k = {1}", ""),
    # Places.
    ("t = Gather <axis = 1> (x, i) y = Gather <axis = 1> (t, j)",
     "y = Gather <axis = 1> (x, k)",
     ", int64[3] i = {7, -1, 2}, int64[3] j = {2, 0, -1}, int64[3] k = {2, 7, 2}", ""),
    ("t = Slice (x, n2, n9, a, n2) y = Gather <axis = -2> (t, j)",
     "y = Gather <axis = -2> (x, k)", ", int64[2] j = {1, -1}, int64[2] k = {4, 8}", ""),
    # Paddings.
    ("t = Pad (x, p) y = Pad (t, q)", "y = Pad (x, r)",
     ", int64[6] p = {0, 1, 0, 0, 0, 2}, int64[6] q = {1, 1, 0, 0, 3, 0}, int64[6] r = {1, 2, 0, 0, 3, 2}",
     "float[M, P, Q] y"),
]  # fmt: skip


def used(weights: str, *bodies: str) -> str:
    """The declarations of those constants that a text mentions."""
    found = re.findall(r", \w+\[\d+\] (\w+) = \{[^}]*\}", weights)
    declared = re.findall(r", \w+\[\d+\] \w+ = \{[^}]*\}", weights)
    mentioned = set(re.findall(r"\w+", " ".join(bodies)))
    return "".join(line for name, line in zip(found, declared, strict=True) if name in mentioned)


@pytest.mark.parametrize(("body", "after", "weights", "out"), MERGED)
def test_pieces_merge(body: str, after: str, weights: str, out: str | None) -> None:
    if out is None:
        # An output that is an input needs a node of its own: nothing is won.
        assert_unchanged(PASS, graph(body, weights, "float[N, P, 5] y, float[N, Q, 5] u"))
        return
    wanted = (out,) if out else ()
    assert_rewrites(
        PASS,
        before=graph(body, used(weights, body), *wanted),
        after=graph(after, used(weights, body, after), *wanted),
        rtol=0,
        atol=0,
    )


LEFT = [
    # A gap, an overlap, other steps, another axis.
    ("y = Slice (x, n0, n4, a) u = Slice (x, n5, far, a)", "", 2),
    ("y = Slice (x, n0, n6, a) u = Slice (x, n5, far, a)", "", 2),
    ("y = Slice (x, n0, n12, a, n2) u = Slice (x, n1, n12, a, n2)", "", 2),
    # Pieces in another order, of different tensors, along another axis.
    ("b = Slice (x, n4, n9, a) c = Slice (x, n2, n4, a) y = Concat <axis = 1> (b, c)", "", 1),
    ("b = Slice (x, n2, n4, a) c = Slice (x, n4, n9, n2) d = Relu (c) y = Concat <axis = 2> (b, d)", "", 0),
    ("b, c, d = Split <axis = 1> (x, s) y = Concat <axis = 1> (b, d) u = Relu (c)",
     ", int64[3] s = {4, 4, 4}", 2),
    ("b, c, d = Split <axis = 1> (x, s) y = Concat <axis = 2> (b, c) u = Relu (d)",
     ", int64[3] s = {4, 4, 4}", 2),
    # Not at the seams; a Pad of other numbers; what somebody else reads.
    ("c = Concat <axis = 1> (z, x) y, u = Split <axis = 1> (c, s)", ", int64[2] s = {5, 11}", 2),
    ("t = Pad (x, p) y = Pad (t, p, o)", ", int64[6] p = {0, 1, 0, 0, 0, 2}, float o = {1}", 1),
    ('t = Pad <mode = "edge"> (x, p) y = Pad (t, p)', ", int64[6] p = {0, 1, 0, 0, 0, 2}", 1),
    ("t = Pad (x, p) y = Pad (t, q)",
     ", int64[6] p = {0, 1, 0, 0, 0, 2}, int64[6] q = {0, -2, 0, 0, 0, 0}", 1),
    ("t = Gather <axis = 1> (x, i) y = Gather <axis = 1> (t, i) u = Relu (t)",
     ", int64[3] i = {2, 1, 0}", 2),
    ("t = Gather <axis = 1> (x, i) y = Gather <axis = 2> (t, i)", ", int64[3] i = {2, 1, 0}", 1),
]  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "outputs"), LEFT)
def test_what_stays(body: str, weights: str, outputs: int) -> None:
    out = {0: "float[N, P, Q] y", 1: "float[N, P, Q] y", 2: "float[N, P, Q] y, float[N, R, S] u"}
    if not outputs:
        return
    assert_unchanged(PASS, graph(body, weights, out[outputs]))


@pytest.mark.parametrize(("inner", "gathered"), [(32, True), (31, False)])
def test_pieces_in_another_order_are_gathered_if_they_are_large(inner: int, gathered: bool) -> None:
    def text(body: str, more: str = "") -> str:
        return f"""<ir_version: 8, opset_import: ["" : 18]>
            g (float[N, 4, {inner}] x) => (float[N, 4, {inner}] y)
            <int64[2] s = {{1, 3}}{more}> {{ {body} }}"""

    before = text("a, b = Split <axis = 1> (x, s) y = Concat <axis = 1> (b, a)")
    if not gathered:
        assert_unchanged(PASS, before)
        return
    after = text("y = Gather <axis = 1> (x, i)", ", int64[4] i = {1, 2, 3, 0}")
    assert_rewrites(PASS, before=before, after=after, rtol=0, atol=0)


def test_a_piece_that_others_read_is_not_gathered() -> None:
    assert_unchanged(
        PASS,
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[N, 4, 64] x) => (float[N, 4, 64] y, float[N, 1, 64] z) <int64[2] s = {1, 3}>
        { a, b = Split <axis = 1> (x, s) y = Concat <axis = 1> (b, a) z = Relu (a) }""",
    )


def focus(places: str, conv: str = "y = Conv (c, w)", end: int = 99) -> str:
    """Slices of every second row and column, from the places given, joined as channels."""
    lines = " ".join(
        f"s{n} = Slice (x, {place}, e, a, two)" for n, place in enumerate(places.split())
    )
    joined = ", ".join(f"s{n}" for n in range(len(places.split())))
    starts = ", ".join(
        f"int64[2] {r}{c} = {{{'jk'.index(r)}, {'jk'.index(c)}}}" for r in "jk" for c in "jk"
    )
    return f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[N, 3, 6, 8] x) => (float[N, 5, P, Q] y) <{starts}, float[5, 12, 1, 1] w,
        int64[2] e = {{{end}, 99}}, int64[2] a = {{2, 3}}, int64[2] two = {{2, 2}}>
        {{ {lines} c = Concat <axis = 1> ({joined}) {conv} }}"""


@pytest.mark.parametrize("places", ["jj jk kj kk", "jj kj jk kk", "kk jk kj jj"])
def test_strided_slices_are_space_to_depth(places: str) -> None:
    got = assert_holds(PASS, focus(places), rtol=1e-6, atol=1e-6)
    assert [node.op_type for node in got.graph.node] == ["SpaceToDepth", "Conv"]


@pytest.mark.parametrize(
    "text",
    [
        focus("jj jk kj kj"),  # one place twice
        focus("jj kj jk kk", end=4),  # not to the end
        focus("jj kj jk kk", "d = Relu (c) y = Conv (d, w)"),
        focus("jj kj jk kk", "v = Neg (w) y = Conv (c, v)"),
    ],
    ids=["twice", "short", "other reader", "weight not constant"],
)
def test_what_is_no_space_to_depth(text: str) -> None:
    got = assert_holds(PASS, text, full_check=False)
    assert "SpaceToDepth" not in [node.op_type for node in got.graph.node]


def test_slices_of_an_unknown_size_are_no_split() -> None:
    assert_unchanged(
        PASS,
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[N, M] x) => (float[N, P] y, float[N, Q] u)
        <int64[1] zero = {0}, int64[1] four = {4}, int64[1] far = {99999999}, int64[1] a = {1}>
        { y = Slice (x, zero, four, a) u = Slice (x, four, far, a) }""",
    )


def test_before_opset_13_there_is_no_new_split() -> None:
    body = "y = Slice (x, n0, n4, a) u = Slice (x, n4, far, a)"
    out = "float[N, P, 5] y, float[N, Q, 5] u"
    assert_unchanged(PASS, graph(body, "", out, opset=12))


def test_slices_of_an_unknown_size_follow_each_other() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
        g (float[M] x) => (float[P] y) <int64[1] i = {{2}}, int64[1] j = {{9}}, int64[1] k = {{3}},
        int64[1] a = {{0}}{more}> {{ {body} }}"""
    assert_rewrites(
        PASS,
        before=text.format(body="t = Slice (x, i, j, a) y = Slice (t, i, k, a)", more=""),
        after=text.format(
            body="y = Slice (x, p, q, r)",
            more=", int64[1] p = {4}, int64[1] q = {5}, int64[1] r = {0}",
        ),
    )


@st.composite
def pieces(draw: st.DrawFn) -> str:
    """Draws cutting and joining along one axis, with neighbours in order more often than not."""
    values: dict[str, int] = {"x": 12, "z": 4}
    lines, weights = list[str](), list[str]()

    def constant(*numbers: int) -> str:
        name = f"k{len(weights)}"
        text = ", ".join(map(str, numbers))
        weights.append(f", int64[{len(numbers)}] {name} = {{{text}}}")
        return name

    for number in range(draw(st.integers(2, 9))):
        name, value = f"v{number}", draw(st.sampled_from(list(values)[-5:]))
        size = values[value]
        kind = draw(
            st.sampled_from(
                ["slice", "slice", "split", "concat", "concat", "gather", "pad", "relu"]
            )
        )
        if kind == "slice":
            start = draw(st.integers(0, size - 1))
            end = draw(st.sampled_from([size, draw(st.integers(start + 1, size))]))
            shown = draw(st.sampled_from([start, start - size]))
            lines.append(f"{name} = Slice ({value}, {constant(shown)}, {constant(end)}, a)")
            values[name] = end - start
        elif kind == "split" and size > 2:
            cuts = sorted(draw(st.sets(st.integers(1, size - 1), min_size=1, max_size=3)))
            sizes = [end - start for start, end in zip([0, *cuts], [*cuts, size], strict=True)]
            parts = [f"{name}_{part}" for part in range(len(sizes))]
            lines.append(f"{', '.join(parts)} = Split <axis = 1> ({value}, {constant(*sizes)})")
            values.update(zip(parts, sizes, strict=True))
        elif kind == "concat":
            first = draw(st.integers(0, len(values) - 1))
            picked = list(values)[first : first + draw(st.integers(2, 3))]
            lines.append(f"{name} = Concat <axis = 1> ({', '.join(picked)})")
            values[name] = sum(values[item] for item in picked)
        elif kind == "gather":
            places = draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=4))
            lines.append(f"{name} = Gather <axis = 1> ({value}, {constant(*places)})")
            values[name] = len(places)
        elif kind == "pad":
            before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            lines.append(f"{name} = Pad ({value}, {constant(0, before, 0, 0, after, 0)})")
            values[name] = size + before + after
        else:
            lines.append(f"{name} = Relu ({value})")
            values[name] = size
    made = [name for name in values if name not in "xz"]
    kept = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    out = ", ".join(f"float[N, {values[name]}, 5] {name}" for name in kept)
    return graph("\n".join(lines), "".join(weights), out)


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(text=pieces())
def test_whatever_is_cut_and_joined_stays_the_same(text: str) -> None:
    assert_holds(PASS, text, runtimes=("onnxruntime",), rtol=0, atol=0)
    assert_rolls_back(PASS, text)
