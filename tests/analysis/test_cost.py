"""Arithmetic and traffic of nodes, against what counting by hand gives."""

from __future__ import annotations

import pytest

from onnxcomp.analysis.cost import Costs
from onnxcomp.analysis.facts import Facts
from onnxcomp.ir import Model
from tests.helpers import text

FOREIGN = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "my.own" : 1]>'


def flops_of(graph: str) -> dict[str, int | None]:
    """Returns the operations by operator of a graph in text."""
    model = Model.load(text.model(graph))
    return {node.op_type: cost.flops for node, cost in Facts(model).get(Costs()).items()}


@pytest.mark.parametrize(
    ("graph", "operator", "flops"),
    [
        # 2 * output elements * (channels per group * kernel)
        (
            "g (float[2, 4, 8, 8] x) => (float[2, 6, 6, 6] y) <float[6, 4, 3, 3] w> { y = Conv (x, w) }",
            "Conv",
            2 * (2 * 6 * 6 * 6) * (4 * 3 * 3),
        ),
        (
            "g (float[1, 4, 8, 8] x) => (float[1, 4, 6, 6] y) <float[4, 1, 3, 3] w> "
            "{ y = Conv <group = 4> (x, w) }",
            "Conv",
            2 * (4 * 6 * 6) * 9,
        ),
        (
            "g (float[1, 4, 5, 5] x) => (float[1, 6, 7, 7] y) <float[4, 6, 3, 3] w> "
            "{ y = ConvTranspose (x, w) }",
            "ConvTranspose",
            2 * (4 * 5 * 5) * (6 * 9),
        ),
        (
            "g (float[7, 3] x) => (float[7, 4] y) <float[3, 4] w> { y = MatMul (x, w) }",
            "MatMul",
            2 * 7 * 3 * 4,
        ),
        (
            "g (float[2, 5, 7, 3] x) => (float[2, 5, 7, 4] y) <float[3, 4] w> { y = MatMul (x, w) }",
            "MatMul",
            2 * 70 * 3 * 4,
        ),
        (
            "g (float[3, 7] x) => (float[7, 4] y) <float[4, 3] w> "
            "{ y = Gemm <transA = 1, transB = 1> (x, w) }",
            "Gemm",
            2 * 7 * 3 * 4,
        ),
        (
            "g (float[2, 3, 4] x, float[2, 4, 5] z) => (float[2, 3, 5] y) "
            '{ y = Einsum <equation = "bij,bjk->bik"> (x, z) }',
            "Einsum",
            2 * 2 * 3 * 4 * 5,
        ),
        # 4 gates, both directions, input and recurrent weights, every step
        (
            "g (float[10, 2, 3] x) => (float[10, 2, 2, 5] y) <float[2, 20, 3] w, float[2, 20, 5] r> "
            '{ y = LSTM <hidden_size = 5, direction = "bidirectional"> (x, w, r) }',
            "LSTM",
            10 * 2 * 2 * (2 * 20 * 3 + 2 * 20 * 5),
        ),
        (
            "g (float[10, 2, 3] x) => (float[10, 1, 2, 5] y) <float[1, 15, 3] w, float[1, 15, 5] r> "
            "{ y = GRU <hidden_size = 5> (x, w, r) }",
            "GRU",
            10 * 2 * 2 * (15 * 3 + 15 * 5),
        ),
        (
            "g (float[1, 3, 8, 8] x) => (float[1, 3, 4, 4] y) "
            "{ y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }",
            "MaxPool",
            3 * 4 * 4 * 4,
        ),
        ("g (float[6, 7] x) => (float[6, 7] y) { y = Relu (x) }", "Relu", 42),
        ("g (float[6, 1] x, float[1, 7] z) => (float[6, 7] y) { y = Add (x, z) }", "Add", 42),
        ("g (float[6, 7] x) => (float[6, 7] y) { y = Softmax (x) }", "Softmax", 5 * 42),
        ("g (float[6, 7] x) => (float[7, 6] y) { y = Transpose (x) }", "Transpose", 0),
        ("g (float[N, 7] x) => (float[N, 7] y) { y = Relu (x) }", "Relu", None),
    ],
)
def test_flops(graph: str, operator: str, flops: int | None) -> None:
    assert flops_of(graph)[operator] == flops


def test_flops_of_attention() -> None:
    graph = """
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[1, 2, 6, 4] q, float[1, 2, 9, 4] k, float[1, 2, 9, 5] v) => (float[1, 2, 6, 5] y)
        { y = Attention (q, k, v) }
    """
    heads, queries, keys = 2, 6, 9
    assert flops_of(graph)["Attention"] == 2 * heads * queries * keys * (4 + 5)


def test_foreign_operators_are_known_or_unknown() -> None:
    graph = f"""
        {FOREIGN}
        g (float[7, 3] x) => (float[7, 4] y, float[7, 3] z) <float[3, 4] w>
        {{ y = com.microsoft.FusedMatMul (x, w)  z = my.own.Relu (x) }}
    """
    # Shapes follow through the runtime's own operators, through those of others they do not.
    assert flops_of(graph) == {"FusedMatMul": 2 * 7 * 3 * 4, "Relu": None}


def test_an_operator_of_the_same_name_elsewhere_is_not_ours() -> None:
    graph = f"{FOREIGN} g (float[7, 3] x) => (float[7, 3] y) {{ y = my.own.Transpose (x) }}"
    assert flops_of(graph) == {"Transpose": None}


def test_bodies_count_once() -> None:
    graph = """
        g (bool c, float[4] x) => (float[4] y) {
          y = If (c) <
            then_branch = a () => (float[4] t) { t = Relu (x) },
            else_branch = b () => (float[4] e) { e = Neg (x) }
          >
        }
    """
    assert flops_of(graph) == {"If": 0, "Relu": 4, "Neg": 4}


def test_traffic_counts_elements_of_their_size() -> None:
    graph = "g (float16[2, 4] x) => (float16[2, 3] y) <float16[4, 3] w> { y = MatMul (x, w) }"
    model = Model.load(text.model(graph))
    (cost,) = Facts(model).get(Costs()).values()
    assert (cost.bytes_read, cost.bytes_written) == (2 * (8 + 12), 2 * 6)


def test_traffic_of_unknown_shapes_is_unknown() -> None:
    graph = "g (float[N] x) => (float[N] y) { y = Relu (x) }"
    (cost,) = Facts(Model.load(text.model(graph))).get(Costs()).values()
    assert (cost.flops, cost.bytes_read, cost.bytes_written) == (None, None, None)
