"""Sizes that are read with fewer operators (part of eliminate-identity)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp_passes.simplify.eliminate_identity import EliminateIdentity
from tests.helpers.check import assert_holds, assert_rewrites, assert_unchanged
from tests.helpers.text import model

ELIMINATE = EliminateIdentity()
OLD = '<ir_version: 8, opset_import: ["" : 13]>'


def test_an_element_with_its_axis_is_gathered_as_a_list() -> None:
    assert_rewrites(
        ELIMINATE,
        before="""
            g (float[N, 4] x) => (float[N, 1] y) <int64 i = {-1}, int64[1] axis = {1}> {
              a = Gather <axis = 1> (x, i)
              y = Unsqueeze (a, axis)
            }
        """,
        after="""
            g (float[N, 4] x) => (float[N, 1] y)
            <int64 i = {-1}, int64[1] axis = {1}, int64[1] y_index = {-1}> {
              y = Gather <axis = 1> (x, y_index)
            }
        """,
    )


def test_axes_as_an_attribute_go() -> None:
    assert_rewrites(
        ELIMINATE,
        before="""
            <ir_version: 7, opset_import: ["" : 12]>
            g (float[3, 4] x) => (float[1, 4] y) <int64 i = {1}> {
              a = Gather <axis = 0> (x, i)
              y = Unsqueeze <axes = [-2]> (a)
            }
        """,
        after="""
            <ir_version: 7, opset_import: ["" : 12]>
            g (float[3, 4] x) => (float[1, 4] y) <int64 i = {1}, int64[1] y_index = {1}> {
              y = Gather <axis = 0> (x, y_index)
            }
        """,
    )


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Gather <axis = 1> (x, i) y = Unsqueeze (a, first)",
        "a = Gather <axis = 0> (x, list) y = Unsqueeze (a, first)",
        "a = Gather <axis = 0> (x, j) y = Unsqueeze (a, first)",
        "a = Gather <axis = 0> (x, i) y = Unsqueeze (a, first) z = Neg (a)",
        "a = Gather <axis = 0> (x, i) y = Unsqueeze (a, both)",
    ],
    ids=["other axis", "a list", "index of the caller", "read elsewhere", "two axes"],
)
def test_other_elements_stay(nodes: str) -> None:
    outputs = "float y, float z" if "z =" in nodes else "float y"
    source = model(
        f"""
            g (float[3, 4] x, int64 j) => ({outputs}) <int64 i = {{1}}, int64[1] list = {{1}},
             int64[1] first = {{0}}, int64[2] both = {{0, 1}}> {{ {nodes} }}
        """
    )
    for info in source.graph.output:
        info.type.tensor_type.ClearField("shape")
    assert_unchanged(ELIMINATE, source)


@pytest.mark.parametrize(
    ("read", "start", "end"),
    [
        ("p = Gather (s, list)", 1, 2),
        ("p = Gather (s, last)", 2, 3),
        ("p = Gather (s, pair)", 1, 3),
        ("p = Slice (s, one, two)", 1, 2),
        ("p = Slice (s, one, far)", 1, 3),
        ("p = Slice (s, last, far)", 2, 3),
    ],
)
def test_a_part_of_a_shape_is_asked_for(read: str, start: int, end: int) -> None:
    constants = """<int64[1] list = {1}, int64[1] last = {-1}, int64[2] pair = {1, 2},
        int64[1] one = {1}, int64[1] two = {2}, int64[1] far = {9223372036854775807}>"""
    assert_rewrites(
        ELIMINATE,
        before=f"""
            g (float[N, M, 4] x) => (int64[{end - start}] y) {constants} {{
              s = Shape (x)
              {read}
              y = Neg (p)
            }}
        """,
        after=f"""
            g (float[N, M, 4] x) => (int64[{end - start}] y) {constants} {{
              p = Shape <start = {start}, end = {end}> (x)
              y = Neg (p)
            }}
        """,
    )


@pytest.mark.parametrize(
    ("header", "nodes"),
    [
        (OLD, "s = Shape (x) y = Gather (s, list)"),
        ("", "s = Shape (x) y = Gather (s, apart)"),
        ("", "s = Shape (x) y = Gather (s, missing)"),
        ("", "s = Shape (x) y = Gather (s, list) z = Neg (s)"),
        ("", "s = Shape <start = 1> (x) y = Gather (s, list)"),
        ("", "s = Shape (x) y = Slice (s, one, zero, zero, back)"),
        ("", "s = Shape (x) y = Gather (s, i)"),
    ],
    ids=[
        "old opset",
        "not neighbours",
        "no such place",
        "whole",
        "a part",
        "backwards",
        "caller's",
    ],
)
def test_other_parts_of_shapes_stay(header: str, nodes: str) -> None:
    outputs = "int64[?] y, int64[?] z" if "z =" in nodes else "int64[?] y"
    assert_unchanged(
        ELIMINATE,
        f"""
            {header}
            g (float[N, M, 4] x, int64[1] i) => ({outputs}) <int64[1] list = {{1}},
             int64[2] apart = {{2, 1}}, int64[1] missing = {{3}}, int64[1] one = {{1}},
             int64[1] zero = {{0}}, int64[1] back = {{-1}}> {{ {nodes} }}
        """,
    )


@given(st.integers(0, 3), st.integers(-3, 2), st.integers(0, 4), st.booleans())
def test_sizes_are_what_they_were(rows: int, index: int, end: int, as_slice: bool) -> None:
    read = "p = Slice (s, i, e)" if as_slice else "g0 = Gather (s, j) p = Unsqueeze (g0, z)"
    source = model(
        f"""
            g (float[N, M, 2] x) => (int64[?] y) <int64[1] i = {{{index}}}, int64[1] e = {{{end}}},
             int64 j = {{{index}}}, int64[1] z = {{0}}> {{
              s = Shape (x)
              {read}
              y = Neg (p)
            }}
        """
    )
    feeds = [{"x": np.ones((rows, m, 2), np.float32)} for m in (0, 1, 4)]
    assert_holds(ELIMINATE, source, feeds=feeds)
