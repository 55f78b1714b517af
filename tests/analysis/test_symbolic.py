"""Expressions of sizes: their normal form, and that they come true."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import ShapeMap, Shapes
from onnxcomp.analysis.symbolic import dims, vectors
from onnxcomp.analysis.symbolic.dims import Item, size
from onnxcomp.errors import ModelError, UserError
from onnxcomp.ir import Model, ir
from onnxcomp.runtime import Session
from tests.helpers.sizing import (
    Sizing,
    UndefinedError,
    breaks_the_standard,
    broadcast,
    check,
    divided,
    drawn_feeds,
    evaluate,
)
from tests.helpers.text import model

if TYPE_CHECKING:
    import onnx

N, M, K = size("N"), size("M"), size("K")

FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "add": (dims.add, lambda a, b: a + b),
    "subtract": (dims.subtract, lambda a, b: a - b),
    "multiply": (dims.multiply, lambda a, b: a * b),
    "quotient": (dims.quotient, lambda a, b: divided([a, b])),
    "maximum": (dims.maximum, max),
    "minimum": (dims.minimum, min),
    "join": (dims.join, lambda a, b: broadcast([a, b])),
    "copied": (dims.copied, lambda a, b: a or b),
    "modulo": (vectors.modulo, lambda a, b: a - b * divided([a, b])),
}
LEAVES = st.one_of(st.integers(-3, 5), st.sampled_from([N, M, K]))
TREES = st.recursive(
    LEAVES, lambda inner: st.tuples(st.sampled_from(sorted(FUNCTIONS)), inner, inner), max_leaves=8
)


def both_ways(tree: Any, sizes: dict[str, int]) -> tuple[Item, int]:
    """The expression of a tree, and its value worked out step by step."""
    if not isinstance(tree, tuple):
        return tree, evaluate(tree, sizes)
    symbolic, plain = FUNCTIONS[tree[0]]
    (left, a), (right, b) = both_ways(tree[1], sizes), both_ways(tree[2], sizes)
    if tree[0] in {"join", "copied"} and (a < 0 or b < 0):
        raise UndefinedError
    if tree[0] in {"join", "copied"} and not (
        dims.is_nonnegative(left) and dims.is_nonnegative(right)
    ):
        raise UndefinedError  # they are about sizes
    return symbolic(left, right), plain(a, b)


@settings(max_examples=400)
@given(TREES, st.tuples(*[st.integers(0, 6)] * 3))
def test_an_expression_is_worth_what_it_was_made_of(tree: Any, numbers: tuple[int, ...]) -> None:
    sizes = dict(zip("NMK", numbers, strict=True))
    try:
        item, expected = both_ways(tree, sizes)
    except UndefinedError:
        assume(False)
        return
    if item is not None:
        assert evaluate(item, sizes) == expected
        if dims.is_nonnegative(item):
            assert expected >= 0
        if dims.is_positive(item):
            assert expected > 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (dims.add(N, M), dims.add(M, N)),
        (dims.multiply(dims.add(N, 1), 2), dims.add(dims.add(N, N), 2)),
        (dims.quotient(dims.multiply(N, 8), 2), dims.multiply(N, 4)),
        (dims.quotient(dims.product((N, M, 6)), dims.product((2, M))), dims.multiply(3, N)),
        (dims.subtract(dims.add(N, 2), N), 2),
        (dims.maximum(dims.add(N, 1), N), dims.add(N, 1)),
        (dims.minimum(dims.minimum(N, M), K), dims.minimum(M, dims.minimum(K, N))),
        (dims.join(dims.join(N, M), N), dims.join(M, N)),
        (dims.join(N, 1), N),
        (dims.join(N, 7), 7),
        (dims.copied(0, N), N),
        (dims.copied(N, dims.multiply(N, M)), N),
        (dims.quotient(dims.add(N, 1), 2), dims.quotient(dims.add(1, N), 2)),
    ],
)
def test_equal_expressions_have_one_form(one: Item, other: Item) -> None:
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (N, M),
        (dims.join(N, M), N),
        (dims.copied(N, M), N),
        (dims.quotient(N, 2), dims.quotient(dims.add(N, 1), 2)),
        (dims.multiply(dims.quotient(N, 2), 2), N),
        (dims.maximum(dims.subtract(N, 1), 0), dims.subtract(N, 1)),
    ],
)
def test_expressions_that_may_differ_are_not_one(one: Item, other: Item) -> None:
    assert one != other


@pytest.mark.parametrize(
    ("operator", "left", "right", "found"),
    [
        ("Equal", N, N, 1),
        ("Equal", N, M, None),
        ("Equal", N, 1, None),
        ("Equal", N, -1, 0),
        ("Equal", dims.add(N, 1), N, 0),
        ("Greater", N, -1, 1),
        ("Greater", N, 0, None),
        ("GreaterOrEqual", N, 0, 1),
        ("Less", N, dims.add(N, 1), 1),
        ("Less", N, M, None),
        ("LessOrEqual", dims.add(N, 1), N, 0),
    ],
)
def test_comparisons_hold_for_every_size(
    operator: str, left: Item, right: Item, found: Item
) -> None:
    assert vectors.compare(operator, left, right) == found


def test_expressions_that_grow_are_given_up() -> None:
    item: Item = dims.add(N, M)
    for _ in range(20):
        item = dims.multiply(item, item)
    assert item is None
    item = N
    for step in range(200):
        item = dims.quotient(dims.add(item, step), 2)
    assert item is None


def test_products_need_not_fit_32_bits() -> None:
    product = dims.multiply(N, M)
    assert vectors.fits(product, ir.DataType.INT64)
    assert not vectors.fits(product, ir.DataType.INT32)
    assert vectors.fits(dims.add(N, M), ir.DataType.INT32)


# ---------------------------------------------------------------- through models


def shapes_of(source: Any) -> tuple[Model, ShapeMap]:
    loaded = Model.load(source)
    return loaded, Facts(loaded).get(Shapes())


def shape_of(text: str, name: str) -> Any:
    loaded, shapes = shapes_of(model(text))
    return next(
        shapes.shape(value)
        for node in loaded.nodes()
        for value in node.outputs
        if value.name == name
    )


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("y = Concat <axis = 1> (x, x)", ("N", "2*M", 4)),
        ("y = Reshape (x, flat)", ("M*N", 4)),
        ("a = Flatten <axis = 1> (x) y = Neg (a)", ("N", "4*M")),
        ("y = Slice (x, one, big, one)", ("N", "max(-1 + M, 0)", 4)),
        ("y = Tile (x, three)", ("3*N", "3*M", 12)),
        ("y = Add (x, z)", ("join(L, N)", "M", 4)),
        ("s = Shape (x) y = ConstantOfShape (s)", ("N", "M", 4)),
        ("y = MaxPool <kernel_shape = [2], strides = [2]> (x)", ("N", "M", 2)),
        ("t = Transpose <perm = [0, 2, 1]> (x) y = Conv (t, w)", ("N", 2, "-2 + M")),
    ],
)
def test_dimensions_are_followed_as_expressions(nodes: str, expected: Any) -> None:
    found = shape_of(
        f"""
            g (float[N, M, 4] x, float[L, 1, 4] z) => (float[?] y) <int64[2] flat = {{-1, 4}},
             int64[1] one = {{1}}, int64[1] big = {{9223372036854775807}},
             int64[3] three = {{3, 3, 3}}, float[2, 4, 3] w> {{ {nodes} }}
        """,
        "y",
    )
    assert found == expected


def test_symbols_that_inputs_share_or_that_are_no_names_say_nothing() -> None:
    source = model(
        """
            g (float[N, A] x, float[N, B] y, float[C] z) => (float[?, ?] r) {
              a = Neg (x)
              b = Neg (y)
              c = Neg (z)
              r = Add (x, y)
            }
        """
    )
    source.graph.input[2].type.tensor_type.shape.dim[0].dim_param = "2*A"
    loaded, shapes = shapes_of(source)
    found = {value.name: shapes.shape(value) for node in loaded.nodes() for value in node.outputs}
    a, b, c = found["a"], found["b"], found["c"]
    assert a is not None
    assert b is not None
    assert a[0] != b[0]
    assert (a[1], b[1]) == ("A", "B")
    assert c != ("2*A",)
    assert shapes.shape(loaded.graph.inputs[0]) == a


def test_what_depends_on_data_has_a_size_of_its_own() -> None:
    loaded, shapes = shapes_of(
        model("g (float[N] x) => (int64[?, ?] q) { p = NonZero (x) q = Neg (p) r = NonZero (x) }")
    )
    first, second, third = [shapes.shape(node.outputs[0]) for node in loaded.nodes()]
    assert first == second
    assert first is not None
    assert first[0] == 1
    assert third != first  # nobody proved that


def test_declared_shapes_inside_and_of_outputs_are_not_believed() -> None:
    source = model("g (float[N, 4] x) => (float[N] y) { a = Neg (x) y = Exp (a) }")
    info = source.graph.value_info.add()
    info.CopyFrom(source.graph.output[0])
    info.name = "a"
    loaded, shapes = shapes_of(source)
    assert [shapes.shape(node.outputs[0]) for node in loaded.nodes()] == [("N", 4)] * 2


def runs(source: onnx.ModelProto, seed: int, count: int) -> list[tuple[Any, Any]]:
    """Feeds that a model takes, with what it makes of them."""
    rng, found = np.random.default_rng(seed), []
    try:
        session = Session.open(source, optimization="disable", threads=1)
    except UserError:
        return []
    with session:
        for feeds in [drawn_feeds(rng) for _ in range(count)]:
            try:
                found.append((feeds, session.run(feeds)))
            except UserError:
                continue
    return found


def is_valid(source: onnx.ModelProto) -> bool:
    try:
        Model.load(source)
    except ModelError:
        return False
    return len(runs(source, 0, 10)) > 3


@pytest.mark.parametrize("seed", range(40))
def test_sizes_come_true_in_the_runtime(seed: int) -> None:
    source = Sizing(seed).model(10, is_valid)
    loaded, shapes = shapes_of(source)
    graph = loaded.graph
    values = {value.name: value for node in graph for value in node.outputs}
    accepted = runs(source, 0, 20)
    assert accepted
    for feeds, found in accepted:
        if breaks_the_standard(source, feeds | found):
            continue
        sizes: dict[str, int] = {}
        for value in graph.inputs:
            _assert_fits(shapes, value, feeds[value.name or ""], sizes)
        for name, array in found.items():
            _assert_fits(shapes, values[name], array, sizes)


def _assert_fits(shapes: ShapeMap, value: Any, array: np.ndarray, sizes: dict[str, int]) -> None:
    items = shapes.sizes(value)
    if items is not None:
        told = f"{value.name}: {shapes.shape(value)} but {array.shape} with {sizes}"
        assert len(items) == array.ndim, told
        for item, actual in zip(items, array.shape, strict=True):
            assert check(item, actual, sizes), told
    vector = shapes.vector(value)
    if vector is not None and array.dtype.kind in "ib":
        for item, number in zip(vector.items, array.reshape(-1), strict=True):
            if item is not None:
                told = f"{value.name}: {item} but {number} with {sizes}"
                assert check(item, int(number), sizes), told


def test_what_a_loop_carries_is_as_large_as_every_round_leaves_it() -> None:
    """One state keeps its sizes, one grows along an axis, one gets another rank."""
    found_in = Model.load(
        model(
            """g (int64 n, bool c, float[2, 8] x, float[N, 8] z) => (float[a, b] y, float[d, e] u, float[f, g] t)
            <int64[1] first = {0}> {
              y, u, t, all = Loop (n, c, x, x, z) <
                body = b (int64 i, bool go, float[p, q] h, float[r, s] k, float m) =>
                         (bool on, float[p2, q2] h2, float[r2, s2] k2, float m2, float[p3, q3] o) {
                  on = Identity (go)
                  h2 = Tanh (h)
                  k2 = Concat <axis = 0> (k, h)
                  m2 = Unsqueeze (m, first)
                  o = Relu (h2)
                }>
            }"""
        )
    )
    shapes = Facts(found_in).get(Shapes())
    assert shapes.shape(found_in.graph.outputs[0]) == (2, 8)
    grown = shapes.shape(found_in.graph.outputs[1])
    assert grown is not None
    assert not isinstance(grown[0], int)
    assert grown[1] == 8
    loop = next(iter(found_in.graph))
    assert (shapes.shape(loop.outputs[3]) or ())[1:] == (2, 8)
    assert shapes.rank(loop.outputs[2]) is None


def test_branches_that_agree_on_some_sizes() -> None:
    found_in = Model.load(
        model(
            """g (bool c, float[2, 8] x, float[N, 8] z) => (float[a, b] y) {
              y = If (c) <
                then_branch = one () => (float[d, e] t) { t = Relu (x) },
                else_branch = other () => (float[f, g] e) { e = Relu (z) }
              >
            }"""
        )
    )
    (first, second) = Facts(found_in).get(Shapes()).shape(found_in.graph.outputs[0]) or ()
    assert not isinstance(first, int)
    assert second == 8
