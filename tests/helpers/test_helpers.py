"""The helpers must be able to fail: a check that passes everything checks nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from typing_extensions import override

from onnxcomp.ir.ops import is_op
from onnxcomp.passbase import Context, Pass
from tests.helpers.check import assert_refuses, assert_rewrites, assert_unchanged
from tests.helpers.text import difference, model

if TYPE_CHECKING:
    from onnxcomp.ir import ir

BEFORE = """
    g (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w> {
      a = Relu (x)
      b = Relu (a)
      y = MatMul (b, w)
    }
"""
AFTER = """
    g (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w> {
      a = Relu (x)
      y = MatMul (a, w)
    }
"""


class Toy(Pass):
    """Merges repeated Relu."""

    name: ClassVar[str] = "toy"

    wrong: bool = False
    """Whether to drop the first Relu as well."""

    @override
    def run(self, ctx: Context) -> None:
        for node in list(ctx.model.nodes()):
            if not is_op(node, "Relu"):
                continue
            if self.wrong or is_op(_maker(node), "Relu"):
                ctx.edit.replace(node.outputs[0], node.inputs[0])  # type: ignore[arg-type]
                ctx.edit.remove(node)
            else:
                ctx.skip("TOY101", node, "the first of its kind")


def _maker(node: ir.Node) -> ir.Node | None:
    value = node.inputs[0]
    return value.producer() if value else None


def test_a_right_rewrite_passes() -> None:
    outcome = assert_rewrites(Toy(), before=BEFORE, after=AFTER)
    assert outcome.stats["nodes removed"] == 1


def test_another_graph_than_expected_fails_with_a_diff() -> None:
    with pytest.raises(AssertionError, match=r"\n\+  %2 = Relu\(%1\)|\n-  %2 = Relu\(%1\)"):
        assert_rewrites(Toy(), before=BEFORE, after=BEFORE)


def test_other_numbers_fail() -> None:
    after = (
        BEFORE.replace("a = Relu (x)", "").replace("b = Relu (a)", "").replace("(b, w)", "(x, w)")
    )
    with pytest.raises(AssertionError, match="output y in reference"):
        assert_rewrites(Toy(wrong=True), before=BEFORE, after=after)


def test_a_change_where_none_is_wanted_fails() -> None:
    with pytest.raises(AssertionError, match="changed the graph"):
        assert_unchanged(Toy(), BEFORE)


def test_a_missing_reason_fails() -> None:
    assert_refuses(Toy(), AFTER.replace("a = Relu", "[r] a = Relu"), code="TOY101", at="r")
    with pytest.raises(AssertionError, match="TOY102"):
        assert_refuses(Toy(), AFTER, code="TOY102")


def test_weights_follow_their_name_whatever_the_order() -> None:
    first = model("g () => (float[3] y) <float[3] a, float[3] b> { y = Sub (a, b) }")
    second = model("g () => (float[3] y) <float[3] b, float[3] a> { y = Sub (a, b) }")
    assert not difference(first, second)
    arrays = {t.name: np.frombuffer(t.raw_data, np.float32) for t in first.graph.initializer}
    assert not np.array_equal(arrays["a"], arrays["b"])


def test_names_and_order_do_not_matter_but_edges_do() -> None:
    first = model("g (float[2] x) => (float[2] y) { a = Relu (x) b = Neg (x) y = Sub (a, b) }")
    second = model("g (float[2] x) => (float[2] y) { q = Neg (x) p = Relu (x) y = Sub (p, q) }")
    third = model("g (float[2] x) => (float[2] y) { q = Neg (x) p = Relu (x) y = Sub (q, p) }")
    assert not difference(first, second)
    assert "+  %1 = Neg(x)" in difference(first, third)
