"""lower-einsum: equations as operators, and those that stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp_passes.simplify.lower_einsum import LowerEinsumPass
from tests.helpers.check import assert_holds, assert_refuses, assert_rewrites, assert_unchanged

EINSUM = LowerEinsumPass()
TIGHT: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}
SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 2, "f": 3, "i": 3, "j": 4, "k": 5}


def shape(letters: str, symbols: str = "") -> str:
    if not letters:
        return "float"
    return (
        f"float[{', '.join(one.upper() if one in symbols else str(SIZES[one]) for one in letters)}]"
    )


def graph(equation: str, constants: str = "", symbols: str = "", opset: int = 13) -> str:
    """An Einsum of its own; `constants` holds x or w or both, as weights."""
    left, _, result = equation.replace(" ", "").partition("->")
    names = dict(zip("xw", left.split(","), strict=False))
    inputs = ", ".join(f"{shape(t, symbols)} {n}" for n, t in names.items() if n not in constants)
    held = ", ".join(f"{shape(t)} {n}" for n, t in names.items() if n in constants)
    arguments = ", ".join(names)
    out = f"float[{', '.join('?' for _ in result)}]" if result else "float"
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({inputs}) => ({out} y) <{held}> {{ y = Einsum <equation = "{equation}"> ({arguments}) }}"""


def operators(text: str) -> str:
    got = assert_holds(EINSUM, text, **TIGHT)
    return " ".join(node.op_type for node in got.graph.node)


@pytest.mark.parametrize(
    ("equation", "constants", "left"),
    [
        ("ij->ji", "", "Transpose"),
        ("ij->i", "", "ReduceSum"),
        ("ijk->kj", "", "ReduceSum Transpose"),
        ("ij->", "", "ReduceSum"),
        ("ij->ij", "", "Identity"),
        ("ij,ij->ij", "", "Mul"),
        ("ij,ji->ij", "", "Transpose Mul"),
        ("ij,jk->ik", "", "MatMul"),
        ("ij,kj->ik", "", "Transpose MatMul"),
        ("ij,jk->ki", "", "MatMul Transpose"),
        ("ij , jk -> ik", "", "MatMul"),
        ("ij,j->i", "", "MatMul"),
        ("i,ij->j", "", "MatMul"),
        ("i,i->", "", "MatMul"),
        ("aij,ajk->aik", "", "MatMul"),
        ("abcd,abed->abce", "", "Transpose MatMul"),
        ("acbd,aebd->abce", "", "Transpose Transpose MatMul"),
        ("abc,cd->abd", "w", "MatMul"),
        ("cd,abc->abd", "x", "MatMul"),
        ("abc,cde->abde", "w", "Reshape MatMul Reshape"),
        ("abde,dec->abc", "w", "Reshape Reshape MatMul"),
        ("abde,cde->abc", "w", "Transpose Reshape Reshape MatMul"),
        ("abde,de->ab", "w", "Reshape Reshape MatMul"),
        ("abc,c->ab", "w", "MatMul"),
    ],
)
def test_writes_an_equation_as_operators(equation: str, constants: str, left: str) -> None:
    assert operators(graph(equation, constants)) == left


def test_the_graph_itself() -> None:
    assert_rewrites(
        EINSUM,
        before=graph("abc,cd->abd", "w", "ab"),
        after=graph("abc,cd->abd", "w", "ab").replace(
            'Einsum <equation = "abc,cd->abd">', "MatMul"
        ),
        **TIGHT,
    )


def test_batches_may_be_symbols() -> None:
    assert operators(graph("abc,cde->abde", "w", "ab")) == "Reshape MatMul Reshape"


def test_a_result_that_is_not_written() -> None:
    text = graph("ij,jk->ik").replace("ij,jk->ik", "ij,jk")
    assert operators(text) == "MatMul"
    assert operators(graph("ij->ji").replace("ij->ji", "ji")) == "Transpose"


@pytest.mark.parametrize(
    "text",
    [
        graph("ij->ji").replace('"ij->ji"', '"...ij->...ji"'),
        graph("ij->i").replace("ij->i", "ii->i").replace("[3, 4]", "[3, 3]"),
        graph("ij->i", opset=12),
        graph("ij,jk->ik").replace("float[", "int32["),
        graph("ij,jk->ik").replace("float[3, 4] x", "float[] x"),
    ],
)  # fmt: skip
def test_leaves_what_it_does_not_know(text: str) -> None:
    assert_unchanged(EINSUM, text)


@pytest.mark.parametrize(
    "text",
    [
        graph("i,j->ij"),
        graph("ai,aj->aij"),
        graph("ijk,j->i"),
        graph("abcd,acde->abe"),
        graph("abc,cde->abde"),
        graph("ij,jk->ik", "", "j"),
    ],
)
def test_says_why_an_equation_stays(text: str) -> None:
    assert_refuses(EINSUM, text, code="LEI101")


@given(
    first=st.text("abcde", min_size=0, max_size=4).map(lambda t: "".join(dict.fromkeys(t))),
    second=st.text("abcde", min_size=0, max_size=4).map(lambda t: "".join(dict.fromkeys(t))),
    keep=st.permutations("abcde"),
    count=st.integers(0, 5),
    constants=st.sampled_from(["", "w", "x"]),
)
def test_any_equation(first: str, second: str, keep: list[str], count: int, constants: str) -> None:
    letters = [one for one in keep if one in first + second]
    equation = f"{first},{second}->{''.join(letters[:count])}"
    text = graph(equation, constants)
    rng = np.random.default_rng(len(equation))
    feeds = {
        name: rng.normal(size=[SIZES[one] for one in term]).astype(np.float32)
        for name, term in (("x", first), ("w", second))
        if name not in constants
    }
    assert_holds(EINSUM, text, feeds=[feeds], runtimes=["reference"], **TIGHT)
