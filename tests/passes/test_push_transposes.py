"""push-transposes: pairs cancel however far they are apart, and nothing larger is turned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from onnxcomp_passes.simplify.push_transposes import PushTransposes
from tests.helpers.check import assert_holds, assert_rewrites, assert_rolls_back, assert_unchanged
from tests.helpers.layouts import layout_graphs
from tests.helpers.numbers import RUNTIMES
from tests.helpers.text import model

if TYPE_CHECKING:
    import onnx

TURN, BACK = "Transpose <perm = [0, 2, 3, 1]>", "Transpose <perm = [0, 3, 1, 2]>"
SETTINGS = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def graph(body: str, more: str = "", out: str = "float[N, P, Q, R] y", opset: int = 18) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 2, 6, 8] x) => ({out}) <float s = {{0.5}}{more}> {{ {body} }}"""


def between(body: str, more: str = "", out: str = "float[N, P, Q, R] y", opset: int = 18) -> str:
    """Operators between a Transpose to channels last (`t`) and one back (of `u`)."""
    return graph(f"t = {TURN} (x) {body} y = {BACK} (u)", more, out, opset)


# What stands between two Transposes with channels last, and what is left with channels first; constants
# before, and those that come with the rewrite.
CANCELLED = [
    ("u = Relu (t)", "y = Relu (x)", "", ""),
    ("a = Sigmoid (t) u = Mul (t, a)", "a = Sigmoid (x) y = Mul (x, a)", "", ""),
    ("u = Add (t, b)", "y = Add (x, B)", ", float[2] b = {1, 2}",
     ", float[1, 2, 1, 1] B = {1, 2}"),
    ("u = Sub (b, t)", "y = Sub (B, x)", ", float[8, 2] b = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}",
     ", float[1, 2, 1, 8] B = {0,2,4,6,8,10,12,14,1,3,5,7,9,11,13,15}"),
    ("u = Mul (t, s)", "y = Mul (x, s)", "", ""),
    ("u = Clip (t, s, h)", "y = Clip (x, s, h)", ", float h = {1}", ""),
    ("u = Concat <axis = 3> (t, t)", "y = Concat <axis = 1> (x, x)", "", ""),
    ("u = Concat <axis = -1> (t, t)", "y = Concat <axis = 1> (x, x)", "", ""),
    ("u = Pad (t, p)", "y = Pad (x, P)", ", int64[8] p = {0, 1, 2, 0, 0, 3, 4, 0}",
     ", int64[8] P = {0, 0, 1, 2, 0, 0, 3, 4}"),
    ("u = Pad (t, p, s, a)", "y = Pad (x, p, s, A)",
     ", int64[4] p = {1, 2, 3, 4}, int64[2] a = {1, -2}", ", int64[2] A = {2, 3}"),
    ("u = Slice (t, b, e, a)", "y = Slice (x, b, e, A)",
     ", int64[2] b = {1, 0}, int64[2] e = {4, 1}, int64[2] a = {1, -1}", ", int64[2] A = {2, 1}"),
    ("u = Slice (t, b, e)", "y = Slice (x, b, e, A)",
     ", int64[2] b = {0, 1}, int64[2] e = {9, 4}", ", int64[2] A = {0, 2}"),
    ("u = ReduceMax (t, a)", "y = ReduceMax (x, A)", ", int64[2] a = {1, 2}",
     ", int64[2] A = {2, 3}"),
    ("u = CumSum (t, a)", "y = CumSum (x, A)", ", int64 a = {-1}", ", int64 A = {1}"),
    ("u = Tile (t, r)", "y = Tile (x, R)", ", int64[4] r = {1, 2, 1, 3}",
     ", int64[4] R = {1, 3, 2, 1}"),
    ("u = Gather <axis = 3> (t, i)", "y = Gather <axis = 1> (x, i)", ", int64[3] i = {1, 0, 1}", ""),
    ('u = Resize <mode = "linear"> (t, , f)', 'y = Resize <mode = "linear"> (x, , F)',
     ", float[4] f = {1, 2, 2, 1}", ", float[4] F = {1, 1, 2, 2}"),
    ("q = QuantizeLinear <axis = 3> (t, f, z) u = DequantizeLinear <axis = 3> (q, f, z)",
     "q = QuantizeLinear <axis = 1> (x, f, z) y = DequantizeLinear <axis = 1> (q, f, z)",
     ", float[2] f = {0.5, 0.25}, int8[2] z = {1, 2}", ""),
    ("l = Less (t, s) u = Where (l, s, t)", "l = Less (x, s) y = Where (l, s, x)", "", ""),
    ("i = ArgMax <axis = 3> (t) u = Cast <to = 1> (i)",
     "i = ArgMax <axis = 1> (x) y = Cast <to = 1> (i)", "", ""),
    ("a, b = Split <axis = 3> (t, i) u = Concat <axis = 3> (b, a)",
     "a, b = Split <axis = 1> (x, i) y = Concat <axis = 1> (b, a)", ", int64[2] i = {1, 1}", ""),
    ("a = Unsqueeze (t, i) b = Neg (a) u = Squeeze (b, i)",
     "a = Unsqueeze (x, I) b = Neg (a) y = Squeeze (b, I)", ", int64[1] i = {0}",
     ", int64[1] I = {0}"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "after", "weights", "more"), CANCELLED)
def test_a_pair_cancels_around_what_works_in_either_order(
    body: str, after: str, weights: str, more: str
) -> None:
    unknown = "Resize" in body or "Quantize" in body  # to the reference evaluator, of this opset
    runtimes = ("onnxruntime",) if unknown else RUNTIMES
    assert_rewrites(
        PushTransposes(),
        before=between(body, weights),
        after=graph(after, weights + more),
        runtimes=runtimes,
    )


# Operators that stay, and with them both Transposes.
LEFT = [
    # Along any dimension but the last, onnxruntime turns the tensor itself.
    ("u = Softmax <axis = 3> (t)", ""),
    ("u = LayerNormalization <axis = -1> (t, b)", ", float[2] b = {1, 2}"),
    ("u = Add (t, v)", ""),
    ("u = Pad (t, k)", ""),
    # onnxruntime interpolates over the last dimensions only.
    ('a = Resize <mode = "linear"> (t, , f) u = Relu (a)', ", float[4] f = {1, 1, 2, 1.5}"),
    ("n = Shape (t) r = Reshape (t, w) u = Reshape (r, n)", ", int64[1] w = {-1}"),
]


@pytest.mark.parametrize(("body", "weights"), LEFT)
def test_what_needs_its_order_keeps_both(body: str, weights: str) -> None:
    text = between(body, weights).replace(
        "float[N, 2, 6, 8] x", "float[N, 2, 6, 8] x, float[8, 2] v, int64[8] k", 1
    )
    assert_unchanged(PushTransposes(), text)


def test_a_reduction_without_its_dimensions_ends_it() -> None:
    assert_rewrites(
        PushTransposes(),
        before=graph(
            f"t = {TURN} (x) a = Relu (t) y = ReduceMean <keepdims = 0> (a, i)",
            ", int64[2] i = {1, 2}",
            "float[N, 2] y",
        ),
        after=graph(
            "a = Relu (x) y = ReduceMean <keepdims = 0> (a, I)",
            ", int64[2] i = {1, 2}, int64[2] I = {2, 3}",
            "float[N, 2] y",
        ),
    )


def test_the_transpose_moves_to_where_fewer_elements_are() -> None:
    assert_rewrites(
        PushTransposes(),
        before=graph(f"a = {TURN} (x) b = Relu (a) y = ReduceMax (b, i)", ", int64[1] i = {1}"),
        after=graph(
            f"b = Relu (x) c = ReduceMax (b, I) y = {TURN} (c)",
            ", int64[1] i = {1}, int64[1] I = {2}",
        ),
    )


def test_bytes_are_turned_rather_than_floats() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
        g (uint8[N, 2, 6, 8] x) => (float[N, 6, 8, 2] y) {{ {body} }}"""
    assert_rewrites(
        PushTransposes(),
        before=text.format(body=f"a = Cast <to = 1> (x) b = Relu (a) y = {TURN} (b)"),
        after=text.format(body=f"t = {TURN} (x) a = Cast <to = 1> (t) y = Relu (a)"),
    )


@pytest.mark.parametrize(
    ("body", "after", "more"),
    [
        (f"c = Conv (x, w) t = {TURN} (c) y = Add (t, b)",
         f"c = Conv (x, w) d = Add (c, B) y = {TURN} (d)", ", float[1, 3, 1, 1] B = {1, 2, 3}"),
        (f"c = Conv (x, w) t = {TURN} (c) y = Relu (t)",
         f"c = Conv (x, w) d = Relu (c) y = {TURN} (d)", ""),
        (f"a = {TURN} (x) m = Mul (a, v) t = {BACK} (m) y = Conv (t, w)",
         "m = Mul (x, V) y = Conv (m, w)", ", float[1, 2, 1, 1] V = {4, 5}"),
    ],
)  # fmt: skip
def test_what_can_become_part_of_a_convolution_stands_next_to_it(
    body: str, after: str, more: str
) -> None:
    weights = ", float[3, 2, 1, 1] w, float[3] b = {1, 2, 3}, float[2] v = {4, 5}"
    assert_rewrites(
        PushTransposes(), before=graph(body, weights), after=graph(after, weights + more)
    )


def test_never_to_where_more_elements_are() -> None:
    assert_unchanged(
        PushTransposes(), graph(f"a = {TURN} (x) y = Tile (a, r)", ", int64[4] r = {1, 1, 2, 1}")
    )


def test_one_transpose_for_both_inputs_that_have_one() -> None:
    assert_rewrites(
        PushTransposes(),
        before=graph(f"a = {TURN} (x) n = Neg (x) b = {TURN} (n) y = Mul (a, b)"),
        after=graph(f"a = {TURN} (x) n = Neg (a) y = Mul (a, n)"),
    )


def test_readers_of_both_orders_share_one_transpose() -> None:
    """What is read in the old order too keeps one Transpose; the operators between move all the same."""
    assert_rewrites(
        PushTransposes(),
        before=graph(
            f"t = {TURN} (x) a = Relu (t) b = {BACK} (a) y = Neg (b) z = Identity (a)",
            out="float[N, 2, 6, 8] y, float[N, 6, 8, 2] z",
        ),
        after=graph(
            f"a = Relu (x) y = Neg (a) b = {TURN} (a) z = Identity (b)",
            out="float[N, 2, 6, 8] y, float[N, 6, 8, 2] z",
        ),
    )


@pytest.mark.parametrize("flat", ["Flatten (a)", "Reshape (a, f)"])
@pytest.mark.parametrize("product", ["MatMul", "Gemm", "Gemm <transB = 1>"])
def test_a_transpose_before_a_dense_layer_goes_into_its_rows(flat: str, product: str) -> None:
    shape = "3, 96" if "trans" in product else "96, 3"
    got = assert_holds(
        PushTransposes(),
        model(
            graph(
                f"t = {TURN} (x) a = Relu (t) r = {flat} y = {product} (r, w)",
                f", int64[2] f = {{-1, 96}}, float[{shape}] w",
                "float[N, 3] y",
            )
        ),
        rtol=1e-5,
        atol=1e-5,
    )
    assert [node.op_type for node in got.graph.node][1:] == [flat.split()[0], product.split()[0]]


def test_a_weight_that_others_read_keeps_its_rows() -> None:
    assert_unchanged(
        PushTransposes(),
        graph(
            f"t = {TURN} (x) r = Flatten (t) y = MatMul (r, w) n = Neg (w) z = MatMul (r, n)",
            ", float[96, 64] w",
            "float[N, 64] y, float[N, 64] z",
        ),
    )


def test_merged_dimensions_follow_as_one() -> None:
    """The two last Transposes are of rank 3: the height and the width became one."""
    assert_rewrites(
        PushTransposes(),
        before=graph(
            f"t = {TURN} (x) r = Reshape (t, f) a = Relu (r) y = Transpose <perm = [0, 2, 1]> (a)",
            ", int64[3] f = {0, 48, 2}",
            "float[N, 2, 48] y",
        ),
        after=graph(
            "r = Reshape (x, F) y = Relu (r)",
            ", int64[3] f = {0, 48, 2}, int64[3] F = {-1, 2, 48}",
            "float[N, 2, 48] y",
        ),
    )


def test_sizes_are_read_from_the_turned_tensor() -> None:
    """A Shape does not keep a Transpose alive."""
    assert_rewrites(
        PushTransposes(),
        before=graph(
            f"t = {TURN} (x) n = Shape (t) a = Relu (t) y = {BACK} (a)",
            out="float[N, 2, 6, 8] y, int64[4] n",
        ),
        after=graph(
            "m = Shape (x) n = Gather (m, i) y = Relu (x)",
            ", int64[4] i = {0, 2, 3, 1}",
            "float[N, 2, 6, 8] y, int64[4] n",
        ),
    )


def test_bodies_read_what_they_did() -> None:
    """A tensor that a branch reads keeps its order there; the pair outside cancels."""
    got = assert_holds(
        PushTransposes(),
        graph(
            f"""t = {TURN} (x) a = Relu (t) y = {BACK} (a)
            z = If (c) <then_branch = one () => (float[N, 6, 8, 2] p) {{ p = Neg (a) }},
                        else_branch = two () => (float[N, 6, 8, 2] q) {{ q = Abs (a) }}>""",
            ", bool c = {1}",
            "float[N, 2, 6, 8] y, float[N, 6, 8, 2] z",
        ),
    )
    assert _transposes(got) == 1


@SETTINGS
@given(text=layout_graphs())
def test_whatever_is_turned_stays_the_same(text: str) -> None:
    before = model(text)
    after = assert_holds(PushTransposes(), text, runtimes=("onnxruntime",), rtol=1e-4, atol=1e-4)
    assert_rolls_back(PushTransposes(), text)
    assert _transposes(after) <= _transposes(before)


def _transposes(proto: onnx.ModelProto) -> int:
    return sum(node.op_type == "Transpose" for node in proto.graph.node)
