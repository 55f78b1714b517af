"""simplify-sequences: elements are read where they come from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp_passes.simplify.simplify_sequences import SimplifySequences
from tests.helpers.check import assert_holds, assert_refuses, assert_rewrites, assert_unchanged

SEQUENCES = SimplifySequences()
PLACES = "int64 zero = {0}, int64 one = {1}, int64 last = {-1}, int64 three = {3}"


def _graph(lines: str, outputs: str = "float[2] y", more: str = "") -> str:
    return f"""
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[2] a, float[2] b, float[2] c, int64 n, float[3, 2] m) => ({outputs}) <{PLACES}{more}> {{
          {lines}
        }}
    """


@pytest.mark.parametrize(
    ("lines", "element"),
    [
        ("s = SequenceConstruct (a, b) e = SequenceAt (s, last)", "b"),
        ("r = SequenceConstruct (a) s = SequenceInsert (r, b) e = SequenceAt (s, one)", "b"),
        (
            "r = SequenceConstruct (a, b) s = SequenceInsert (r, c, zero) e = SequenceAt (s, zero)",
            "c",
        ),
        (
            "r = SequenceConstruct (a, b) s = SequenceInsert (r, c, last) e = SequenceAt (s, one)",
            "c",
        ),
        ("r = SequenceConstruct (a, b, c) s = SequenceErase (r, one) e = SequenceAt (s, one)", "c"),
        ("r = SequenceConstruct (a, b, c) s = SequenceErase (r) e = SequenceAt (s, last)", "b"),
        (
            "q = SequenceEmpty <dtype = 1> () r = SequenceInsert (q, a) s = SequenceInsert (r, b, zero) "
            "e = SequenceAt (s, zero)",
            "b",
        ),
    ],
)
def test_reads_an_element_where_it_comes_from(lines: str, element: str) -> None:
    made = lines[: lines.rindex("e = ")]
    assert_rewrites(
        SEQUENCES,
        before=_graph(f"{lines} y = Neg (e)"),
        after=_graph(f"{made} y = Neg ({element})"),
    )


def test_joins_elements_without_the_sequence_and_knows_their_number() -> None:
    assert_rewrites(
        SEQUENCES,
        before=_graph(
            "s = SequenceConstruct (a, b) y = ConcatFromSequence <axis = -1> (s) k = SequenceLength (s)",
            "float[4] y, int64 k",
        ),
        after=_graph(
            "s = SequenceConstruct (a, b) y = Concat <axis = -1> (a, b) k = Constant <value = int64 {2}> ()",
            "float[4] y, int64 k",
        ),
    )


def test_a_row_of_a_tensor_that_was_split_is_gathered() -> None:
    assert_rewrites(
        SEQUENCES,
        before=_graph(
            "s = SplitToSequence <axis = 1, keepdims = 0> (m) e = SequenceAt (s, last) y = Neg (e)",
            "float[3] y",
        ),
        after=_graph(
            "s = SplitToSequence <axis = 1, keepdims = 0> (m) "
            "e = Gather <axis = 1> (m, last) y = Neg (e)",
            "float[3] y",
        ),
    )


def test_optional_values_that_are_there() -> None:
    assert_rewrites(
        SEQUENCES,
        before=_graph(
            "o = Optional (a) e = OptionalGetElement (o) y = Neg (e) h = OptionalHasElement (o)",
            "float[2] y, bool h",
        ),
        after=_graph(
            "o = Optional (a) y = Neg (a) h = Constant <value = bool {1}> ()", "float[2] y, bool h"
        ),
        runtimes=("onnxruntime",),  # the reference makes a list of an optional value
    )


def test_an_element_from_outside_of_a_body() -> None:
    assert_rewrites(
        SEQUENCES,
        before=_graph("""
            s = SequenceConstruct (a, b)
            t = SequenceInsert (s, c)
            q = Greater (n, one)
            y = If (q) <
              then_branch = t () => (float[2] p) { e = SequenceAt (t, last) p = Neg (e) },
              else_branch = e () => (float[2] r) { r = SequenceAt (t, zero) }>
        """),
        after=_graph("""
            s = SequenceConstruct (a, b)
            t = SequenceInsert (s, c)
            q = Greater (n, one)
            y = If (q) <
              then_branch = t () => (float[2] p) { p = Neg (c) },
              else_branch = e () => (float[2] r) { r = Identity (a) }>
        """),
    )


@pytest.mark.parametrize(
    "lines",
    [
        "s = SequenceConstruct (a, b) y = SequenceAt (s, n)",
        "r = SequenceConstruct (a, b) s = SequenceInsert (r, c, n) y = SequenceAt (s, zero)",
        "s = SequenceConstruct (a, b) y = SequenceAt (s, three)",
        "r = SequenceConstruct (a) s = SequenceInsert (r, c, three) y = SequenceAt (s, zero)",
        "s = SplitToSequence <keepdims = 1> (m) y = SequenceAt (s, zero)",
        "s = SplitToSequence <keepdims = 0> (m, one) y = SequenceAt (s, zero)",
        "s = SequenceConstruct (a, b) y = ConcatFromSequence <axis = 0, new_axis = 1> (s)",
        "o = SequenceConstruct (a) p = Optional (o) q = OptionalGetElement (p) y = SequenceAt (q, n)",
    ],
)
def test_keeps_what_is_not_known(lines: str) -> None:
    if "Optional" in lines:
        after = lines.replace("(q, n)", "(o, n)").replace("q = OptionalGetElement (p) ", "")
        assert_rewrites(SEQUENCES, before=_graph(lines), after=_graph(after), runtimes=())
    else:
        assert_unchanged(SEQUENCES, _graph(lines))


def test_says_that_the_place_is_not_constant() -> None:
    graph = _graph("s = SequenceConstruct (a, b) y = SequenceAt (s, n)")
    assert_refuses(SEQUENCES, graph, code="SEQ101")


@given(
    st.lists(
        st.tuples(st.sampled_from(["insert", "erase"]), st.integers(-3, 3), st.booleans()),
        max_size=5,
    ),
    st.integers(-3, 3),
)
@settings(max_examples=60, deadline=None)
def test_any_way_to_put_a_sequence_together(steps: list[tuple[str, int, bool]], place: int) -> None:
    """Steps out of bounds are left out, so that the model runs."""
    lines, constants, size, name = ["s0 = SequenceConstruct (a, b)"], "", 2, "s0"
    for number, (kind, position, given_position) in enumerate(steps):
        if given_position and not -size <= position <= size - (kind == "erase"):
            continue
        if kind == "erase" and size == 1:
            continue
        constants += f", int64 k{number} = {{{position}}}"
        more = f", k{number}" if given_position else ""
        new = f"s{number + 1}"
        value = ", c" if kind == "insert" else ""
        operator = "SequenceInsert" if kind == "insert" else "SequenceErase"
        lines.append(f"{new} = {operator} ({name}{value}{more})")
        size += 1 if kind == "insert" else -1
        name = new
    place = max(-size, min(place, size - 1))
    constants += f", int64 place = {{{place}}}"
    lines.append(
        f"e = SequenceAt ({name}, place) y = Neg (e) z = ConcatFromSequence <axis = 0> ({name})"
    )
    graph = _graph(" ".join(lines), "float[2] y, float[?] z", constants)
    # The reference puts what is inserted at the end in front.
    assert_holds(SEQUENCES, graph, rtol=0, atol=0, runtimes=("onnxruntime",))
