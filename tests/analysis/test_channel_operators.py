"""Every operator: how many units of the layer `w` can go, and that removing them harms nobody else."""

from __future__ import annotations

import pytest
from onnx import defs

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.channels.table import BARRIERS, RULES
from onnxcomp.analysis.facts import Facts
from onnxcomp.ir import Model
from tests.helpers import text
from tests.helpers.removing import assert_removable

ORT = '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>'
IMAGE = "g (float[2, 3, 6, 6] x) => (float[a, b, c, d] y)"
ROWS = "g (float[2, 5, 3] x) => (float[a, b, c] y)"


def image(body: str, weights: str = "", reads: int = 8, made: int = 8) -> str:
    """A convolution makes `p`, `body` makes `q` of it, a convolution reads that."""
    return f"""{IMAGE} <float[{made}, 3, 1, 1] w, float[2, {reads}, 1, 1] v{weights}> {{
        p = Conv (x, w)
        {body}
        y = Conv (q, v)
    }}"""


def rows(body: str, weights: str = "", reads: int = 8, made: int = 8) -> str:
    """The same with matrices: the last axis is the channel."""
    return f"""{ROWS} <float[3, {made}] w, float[{reads}, 2] v{weights}> {{
        p = MatMul (x, w)
        {body}
        y = MatMul (q, v)
    }}"""


CASES: dict[str, tuple[int, str]] = {
    "activations": (8, image("a = Relu (p)  b = HardSwish (a)  c = Gelu (b)  q = Clip (c)")),
    "cast": (8, image("a = Cast <to = 11> (p)  q = Cast <to = 1> (a)")),
    "broadcast from the right": (8, rows("q = Mul (p, s)", ", float[8] s")),
    "broadcast of one": (8, rows("q = Add (p, s)", ", float[1, 5, 1] s")),
    "two channels against one": (
        8,
        image("a = Conv (x, u)  q = Mul (a, p)", ", float[1, 3, 1, 1] u"),
    ),
    "where": (8, rows("c = Greater (p, s)  q = Where (c, p, s)", ", float[8] s")),
    "power of": (8, rows("a = Abs (p)  q = Pow (a, s)", ", float[8] s")),
    "slopes": (8, image("q = PRelu (p, s)", ", float[8, 1, 1] s")),
    "pools": (
        8,
        image(
            "a = MaxPool <kernel_shape = [2, 2]> (p)  b = AveragePool <kernel_shape = [2, 2]> (a) "
            "q = GlobalAveragePool (b)"
        ),
    ),
    "resized": (8, image("q = Resize (p, , s)", ", float[4] s = {1.0, 1.0, 2.0, 2.0}")),
    "resized to sizes": (
        8,
        image("q = Resize (p, , , s)", ", int64[4] s = {2, 8, 4, 4}"),
    ),
    "resized along named axes": (
        8,
        image(
            "q = Resize <axes = [2, 3]> (p, , , s)",
            ", int64[2] s = {4, 4}",
        ),
    ),
    "padded in space": (8, image("q = Pad (p, s)", ", int64[8] s = {0, 0, 1, 1, 0, 0, 1, 1}")),
    "padded channels": (
        8,
        image("q = Pad (p, s)", ", int64[8] s = {0, 2, 0, 0, 0, 3, 0, 0}", reads=13),
    ),
    "padded channels of a shortcut": (
        8,
        image(
            "a = Conv (p, u)  b = Pad (p, s)  q = Add (a, b)",
            ", int64[8] s = {0, 2, 0, 0, 0, 3, 0, 0}, float[13, 8, 1, 1] u",
            reads=13,
        ),
    ),
    "concatenated": (
        8,
        image("a = Conv (x, u)  q = Concat <axis = -3> (a, p)", ", float[4, 3, 1, 1] u", reads=12),
    ),
    "split evenly": (
        4,
        image(
            "a, b = Split <axis = 1, num_outputs = 2> (p)  c = Mul (a, b)  q = Concat <axis = 1> (c, b)"
        ),
    ),
    "split unevenly": (
        6,
        image("a, q = Split <axis = 1> (p, s)", ", int64[2] s = {2, 6}", reads=6),
    ),
    "sliced": (
        4,
        image(
            "q = Slice (p, a, b, c, d)",
            ", int64[1] a = {1}, int64[1] b = {9}, int64[1] c = {1}, int64[1] d = {2}",
            reads=4,
        ),
    ),
    "sliced backwards": (
        4,
        image(
            "q = Slice (p, a, b, c, d)",
            ", int64[1] a = {-2}, int64[1] b = {-9223372036854775807}, int64[1] c = {-3}, int64[1] d = {-2}",
            reads=4,
        ),
    ),
    "picked": (
        # The last one comes twice, which makes it a group of its own, and of one.
        7,
        image(
            "q = Gather <axis = 1> (p, s)", ", int64[9] s = {7, 6, 5, 4, 3, 2, 1, 0, -1}", reads=9
        ),
    ),
    "picked by element": (
        8,
        rows(
            "q = GatherElements <axis = 1> (p, s)",
            ", int64[2, 3, 8] s = {" + ", ".join(["1, 0, 4, 2"] * 12) + "}",
        ),
    ),
    "picked by position": (
        8,
        rows(
            "q = GatherND <batch_dims = 1> (p, s)", ", int64[2, 4, 1] s = {0, 1, 2, 3, 4, 3, 2, 1}"
        ),
    ),
    "written by element": (
        8,
        rows(
            "q = ScatterElements <axis = 1> (p, s, u)",
            ", float[2, 1, 8] u, int64[2, 1, 8] s = {" + ", ".join(["1, 0, 4, 2"] * 4) + "}",
        ),
    ),
    "written by position": (
        8,
        rows(
            "q = ScatterND (p, s, u)",
            ", float[2, 8] u, int64[2, 2] s = {0, 1, 1, 3}",
        ),
    ),
    "flattened": (
        8,
        f"""{IMAGE.replace("a, b, c, d", "a, b")} <float[8, 3, 1, 1] w, float[288, 2] v> {{
        p = Conv (x, w)
        f = Flatten (p)
        y = Gemm (f, v)
    }}""",
    ),
    "reshaped with 0 and -1": (8, rows("q = Reshape (p, s)", ", int64[3] s = {0, -1, 8}")),
    "shuffled": (
        4,
        image(
            "a = Reshape (p, s)  b = Transpose <perm = [0, 2, 1, 3, 4]> (a)  q = Reshape (b, t)",
            ", int64[5] s = {0, 2, -1, 6, 6}, int64[4] t = {0, 8, 6, 6}",
        ),
    ),
    "a shape that is computed": (
        8,
        rows(
            "s = Shape (x)  n = Slice (s, zero, one)  t = Concat <axis = 0> (n, rest)  q = Reshape (p, t)",
            ", int64[1] zero = {0}, int64[1] one = {1}, int64[2] rest = {-1, 8}",
        ).replace("float[2, 5, 3] x", "float[N, 5, 3] x"),
    ),
    "a shape whose channels are computed": (
        8,
        rows(
            "s = Shape (p)  n = Gather (s, zero)  c = Gather (s, two)  t = Concat <axis = 0> (n, five, c)  q = Reshape (p, t)",
            ", int64[1] zero = {0}, int64[1] two = {2}, int64[1] five = {5}",
        ).replace("float[2, 5, 3] x", "float[N, 5, 3] x"),
    ),
    "a shape with arithmetic": (
        4,
        rows(
            "s = Shape (x)  n = Gather (s, zero)  m = Mul (n, five)  t = Concat <axis = 0> (m, rest)  a = Reshape (p, t)"
            "  b = Transpose <perm = [0, 2, 1]> (a)  u = Concat <axis = 0> (n, five, eight)  q = Reshape (b, u)",
            ", int64[1] zero = {0}, int64[1] five = {5}, int64[2] rest = {2, 4}, int64[1] eight = {8}",
        ).replace("float[2, 5, 3] x", "float[N, 5, 3] x"),
    ),
    "a size that is calculated with": (
        0,
        rows(
            "s = Shape (p)  c = Gather (s, two)  f = Cast <to = 1> (c)  q = Div (p, f)",
            ", int64 two = {2}",
        ),
    ),
    "expanded like another": (
        8,
        rows(
            "s = Shape (p)  a = Expand (u, s)  q = Add (p, a)",
            ", float[8] u",
        ).replace("float[2, 5, 3] x", "float[N, 5, 3] x"),
    ),
    "expanded from one": (
        8,
        rows("a = Expand (u, s)  q = Add (p, a)", ", float[1] u, int64[3] s = {2, 1, 8}"),
    ),
    "filled": (8, rows("a = ConstantOfShape (s)  q = Add (p, a)", ", int64[2] s = {5, 8}")),
    "tiled from one": (
        8,
        rows("a = Tile (u, s)  q = Add (p, a)", ", float[1, 1] u, int64[2] s = {5, 8}"),
    ),
    "tiled": (8, rows("q = Tile (p, s)", ", int64[3] s = {1, 1, 2}", reads=16)),
    "squeezed": (
        8,
        image(
            "a = ReduceMean (p, s)  b = Squeeze (a, s)  c = Unsqueeze (b, s)  q = Sigmoid (c)",
            ", int64[2] s = {2, 3}",
        ),
    ),
    "squeezed by size": (
        8,
        rows("a = Unsqueeze (p, s)  b = Squeeze (a)  q = Sigmoid (b)", ", int64[1] s = {2}"),
    ),
    "reduced over space": (
        8,
        image("a = ReduceMax <keepdims = 0> (p, s)  q = Unsqueeze (a, s)", ", int64[2] s = {2, 3}"),
    ),
    "reduced over channels": (
        8,
        image("a = ReduceMean (p, s)  q = Sub (p, a)", ", int64[1] s = {1}"),
    ),
    "softmax over time": (8, rows("q = Softmax <axis = 1> (p)")),
    "cumulated over time": (8, rows("q = CumSum (p, s)", ", int64 s = {1}")),
    "largest in time": (8, rows("q, i = TopK <axis = 1> (p, s)", ", int64[1] s = {2}")),
    "triangle": (
        4,
        rows(
            "a = Reshape (p, s)  b = Transpose <perm = [0, 3, 1, 2]> (a)  c = Trilu (b)  d = Transpose <perm = [0, 2, 3, 1]> (c)  q = Reshape (d, t)",
            ", int64[4] s = {0, 0, 2, 4}, int64[3] t = {0, 0, 8}",
        ),
    ),
    "one way or the other": (
        8,
        f"""{ROWS} <float[3, 8] w, float[8, 2] v, bool c = {{1}}> {{
            p = MatMul (x, w)
            q = If (c) <then_branch = one () => (t) {{ t = Relu (p) }}, else_branch = other () => (e) {{ e = Neg (p) }}>
            y = MatMul (q, v)
        }}""",
    ),
    "batch normalization": (
        8,
        image(
            "q = BatchNormalization (p, s, s, s, t)",
            ", float[8] s, float[8] t = {1, 1, 2, 2, 3, 3, 4, 4}",
        ),
    ),
    "instance normalization": (8, image("q = InstanceNormalization (p, s, s)", ", float[8] s")),
    "group normalization": (
        2,
        image("q = GroupNormalization <num_groups = 2> (p, s, s)", ", float[8] s"),
    ),
    "group normalization as exported": (
        2,
        image(
            "a = Reshape (p, s)  b = InstanceNormalization (a, u, u)  c = Reshape (b, t)  q = Mul (c, z)",
            ", int64[3] s = {0, 2, -1}, int64[4] t = {2, 8, 6, 6}, float[2] u, float[8, 1, 1] z",
        ),
    ),
    "layer normalization": (8, rows("q = LayerNormalization (p, s, s)", ", float[8] s")),
    "local response": (8, image("q = LRN <size = 3> (p)")),
    "depth to space": (2, image("q = DepthToSpace <blocksize = 2> (p)", reads=2)),
    "space to depth": (8, image("q = SpaceToDepth <blocksize = 2> (p)", reads=32)),
    "sampled on a grid": (8, image("q = GridSample (p, s)", ", float[2, 3, 3, 2] s")),
    "regions": (
        8,
        image("q = RoiAlign (p, s, t)", ", float[1, 4] s = {0.0, 0.0, 3.0, 3.0}, int64[1] t = {1}"),
    ),
    "grouped": (4, image("q = Conv <group = 2> (p, u)", ", float[8, 4, 1, 1] u")),
    "depthwise": (8, image("q = Conv <group = 8> (p, u)", ", float[16, 1, 1, 1] u", reads=16)),
    "transposed in groups": (
        4,
        image("q = ConvTranspose <group = 2> (p, u)", ", float[8, 3, 2, 2] u", reads=6),
    ),
    "einsum": (8, rows('q = Einsum <equation = "abc,cd->abd"> (p, u)', ", float[8, 8] u")),
    "weights by way of": (
        8,
        f"""{ROWS} <float[8, 3] w, float16[8, 2] v> {{
            t = Transpose <perm = [1, 0]> (w)
            p = MatMul (x, t)
            u = Cast <to = 1> (v)
            y = MatMul (p, u)
        }}""",
    ),
    "twice the same weights": (
        8,
        f"""{ROWS} <float[3, 8] w, float[8, 8] u, float[8, 2] v> {{
            p = MatMul (x, w)
            q = MatMul (p, u)
            r = MatMul (q, u)
            y = MatMul (r, v)
        }}""",
    ),
    "the same weights read in another order": (
        4,
        f"""{ROWS} <float[3, 8] w, float[8, 8] u, float[8, 2] v, int64[8] s = {{4, 5, 6, 7, 0, 1, 2, 3}}> {{
            p = MatMul (x, w)
            q = MatMul (p, u)
            o = Gather <axis = 2> (q, s)
            a = Add (o, p)
            r = MatMul (a, u)
            b = Add (r, p)
            y = MatMul (b, v)
        }}""",
    ),
    "all pairs": (
        0,
        f"""{ROWS} <float[3, 4] w, float[16, 2] v, int64[3] s = {{2, 1, 16}}> {{
            p = MatMul (x, w)
            t = Transpose <perm = [0, 2, 1]> (p)
            m = MatMul (t, p)
            q = Reshape (m, s)
            y = MatMul (q, v)
        }}""",
    ),
    "quantized weights": (
        8,
        rows(
            "a = DequantizeLinear <axis = 1> (u, s)  q = MatMul (p, a)",
            ", int8[8, 8] u, float[8] s",
        ),
    ),
    "quantized in blocks": (
        2,
        rows(
            "a = DequantizeLinear <axis = 0, block_size = 4> (u, s)  q = MatMul (p, a)",
            ", int8[8, 8] u, float[2, 8] s",
        ),
    ),
    "quantized activations": (
        8,
        image(
            "a = QuantizeLinear <axis = 1> (p, s, z)  q = DequantizeLinear <axis = 1> (a, s, z)",
            ", float[8] s = {0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1}, uint8[8] z",
        ),
    ),
    "integers": (
        8,
        f"""{ROWS} <float[3, 8] w, uint8[8, 4] u, int8[4, 8] k, float s = {{0.2}}, uint8 z = {{3}}, uint8[4] zc, float[4, 2] v> {{
            p = MatMul (x, w)
            a = QuantizeLinear (p, s, z)
            b = MatMulInteger (a, u, z, zc)
            q = Cast <to = 1> (b)
            y = MatMul (q, v)
        }}""",
    ),
    "convolved integers": (
        8,
        image(
            "a = QuantizeLinear (p, s, z)  b = ConvInteger (a, u, z)  q = Cast <to = 1> (b)",
            ", uint8[8, 8, 1, 1] u, float s = {0.2}, uint8 z = {3}",
        ),
    ),
    "measured": (
        8,
        rows(
            "a, s, z = DynamicQuantizeLinear (p)  b = MatMulInteger (a, u, z)  q = Cast <to = 1> (b)",
            ", uint8[8, 8] u",
        ),
    ),
    "quantized convolution": (
        8,
        image(
            "a = QuantizeLinear (p, s, z)  b = QLinearConv (a, s, z, u, us, uz, s, z, bias)  q = DequantizeLinear (b, s, z)",
            ", int8[8, 8, 1, 1] u, float s = {0.2}, uint8 z = {3}, float[8] us = {0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1}, "
            "int8[8] uz = {0, 0, 0, 0, 0, 0, 0, 0}, int32[8] bias",
        ),
    ),
    "quantized product": (
        8,
        rows(
            "a = QuantizeLinear (p, s, z)  b = QLinearMatMul (a, s, z, u, s, z, s, z)  q = DequantizeLinear (b, s, z)",
            ", uint8[8, 8] u, float s = {0.2}, uint8 z = {3}",
        ),
    ),
    "lstm with all it can have": (
        8,
        """g (float[4, 2, 3] x, int32[2] n) => (float[4, 2, 2] y, float[2, 2, 2] z)
        <float[2, 32, 3] w, float[2, 32, 8] r, float[2, 64] b, float[2, 2, 8] h, float[2, 2, 8] c, float[2, 24] o,
         float[16, 2] v, float[8, 2] u, int64[3] s = {0, 0, 16}> {
            p, i, j = LSTM <hidden_size = 8, direction = "bidirectional"> (x, w, r, b, n, h, c, o)
            t = Transpose <perm = [0, 2, 1, 3]> (p)
            q = Reshape (t, s)
            y = MatMul (q, v)
            z = MatMul (j, u)
        }""",
    ),
    "recurrent layers in a row": (
        8,
        """g (float[4, N, 3] x) => (float[4, N, 2] y)
        <float[1, 24, 3] w, float[1, 24, 8] r, float[1, 6, 8] w2, float[1, 6, 6] r2, float[6, 2] v, int64[1] one = {1},
         int64[1] n = {1}, int64[1] first = {1}, int64[1] last = {6}> {
            sizes = Shape (x)
            batch = Gather (sizes, n)
            state = Concat <axis = 0> (first, batch, last)
            h = ConstantOfShape (state)
            p, i = GRU <hidden_size = 8> (x, w, r)
            q = Squeeze (p, one)
            a, b = RNN <hidden_size = 6> (q, w2, r2, , , h)
            c = Squeeze (a, one)
            y = MatMul (c, v)
        }""",
    ),
    "every row of a table": (
        8,
        """g (int64[2, 5] x) => (float[2, 5, 2] y) <float[9, 8] w, float[8, 2] v> {
            p = Gather (w, x)
            y = MatMul (p, v)
        }""",
    ),
    "skip layer normalization": (
        8,
        ORT + rows("q, , , a = com.microsoft.SkipLayerNormalization (p, p, s, s)", ", float[8] s"),
    ),
    "bias and activation": (
        8,
        ORT
        + rows(
            "a = com.microsoft.BiasGelu (p, s)  b = com.microsoft.QuickGelu (a)  q = com.microsoft.FastGelu (b, s)",
            ", float[8] s",
        ),
    ),
    "fused product": (
        8,
        ORT + rows("q = com.microsoft.FusedMatMul <transB = 1> (p, u)", ", float[8, 8] u"),
    ),
    "fused convolution": (
        8,
        ORT
        + image(
            'q = com.microsoft.FusedConv <activation = "Relu"> (p, u, b)',
            ", float[8, 8, 1, 1] u, float[8] b",
        ),
    ),
    "nothing is known of it": (
        0,
        '<ir_version: 10, opset_import: ["" : 17, "my.own" : 1]>' + rows("q = my.own.Relu (p)"),
    ),
}
QUANTIZED = ", float s = {0.2}, uint8 z = {3}"
CASES |= {
    "sums and products of integers": (
        8,
        ORT
        + image(
            "a = QuantizeLinear (p, s, z)  b = com.microsoft.QLinearSigmoid (a, s, z, s, z)"
            "  c = com.microsoft.QLinearMul (a, s, z, b, s, z, s, z)  d = com.microsoft.QLinearAdd (a, s, z, c, s, z, s, z)"
            "  e = com.microsoft.QLinearLeakyRelu (d, s, z, s, z)  q = DequantizeLinear (e, s, z)",
            QUANTIZED,
        ),
    ),
    "pooled and joined integers": (
        8,
        ORT
        + image(
            "a = QuantizeLinear (p, s, z)"
            "  b = com.microsoft.QLinearAveragePool <kernel_shape = [3, 3]> (a, s, z, s, z)"
            "  c = com.microsoft.QLinearGlobalAveragePool (b, s, z, s, z)"
            "  d = com.microsoft.QLinearConcat <axis = 1> (s, z, c, s, z, c, s, z)  q = DequantizeLinear (d, s, z)",
            QUANTIZED,
            reads=16,
        ),
    ),
    "softmax of integers": (
        8,
        ORT
        + rows(
            "a = QuantizeLinear (p, s, z)  b = com.microsoft.QLinearSoftmax <axis = 1, opset = 13> (a, s, z, s, z)"
            "  q = DequantizeLinear (b, s, z)",
            QUANTIZED,
        ),
    ),
    "a product of matrices of integers": (
        8,
        f"""{ORT} g (float[5, 3] x) => (float[a, b] y)
        <float[3, 8] w, int8[6, 8] u, float[6] us, int8[6] uz = {{0, 0, 0, 0, 0, 0}}, int32[6] c, float[6, 2] v{QUANTIZED}> {{
            p = MatMul (x, w)
            a = QuantizeLinear (p, s, z)
            b = com.microsoft.QGemm <transB = 1> (a, s, z, u, us, uz, c, s, z)
            q = DequantizeLinear (b, s, z)
            y = MatMul (q, v)
        }}""",
    ),
    "quantized as it comes": (
        8,
        ORT
        + rows(
            "q = com.microsoft.DynamicQuantizeMatMul (p, u, us, uz, b)",
            ", uint8[8, 8] u, float[8] us, uint8[8] uz, float[8] b",
        ),
    ),
    "a recurrent layer that is quantized as it comes": (
        8,
        f"""{ORT} g (float[4, 2, 3] x) => (float[a, b, c, d] y)
        <float[3, 6] e, int8[1, 6, 32] w, int8[1, 8, 32] r, float[1, 64] b, float[1] s = {{0.1}}, int8[1] z = {{0}}, float[8, 2] v> {{
            p = MatMul (x, e)
            q = com.microsoft.DynamicQuantizeLSTM <hidden_size = 8> (p, w, r, b, , , , , s, z, s, z)
            y = MatMul (q, v)
        }}""",
    ),
    "an embedding in one": (
        8,
        f"""{ORT} g (int32[2, 5] x) => (float[a, b, c] y)
        <float[9, 8] w, float[5, 8] o, float[8] g, float[8] b, float[8, 2] v> {{
            q, m = com.microsoft.EmbedLayerNormalization (x, , w, o, , g, b)
            y = MatMul (q, v)
        }}""",
    ),
}
OLD = '<ir_version: 6, opset_import: ["" : 11]>'
CASES |= {
    "split by attribute": (
        6,
        OLD + image("a, q = Split <axis = 1, split = [2, 6]> (p)", reads=6),
    ),
    "sliced by attributes": (
        4,
        '<ir_version: 6, opset_import: ["" : 9]>'
        + image("q = Slice <starts = [1], ends = [5], axes = [1]> (p)", reads=4),
    ),
    "padded by attribute": (
        8,
        '<ir_version: 6, opset_import: ["" : 10]>'
        + image("q = Pad <pads = [0, 2, 0, 0, 0, 1, 0, 0]> (p)", reads=11),
    ),
    "squeezed and reduced by attributes": (
        8,
        OLD
        + image(
            "a = ReduceSum <axes = [2, 3], keepdims = 1> (p)  b = Squeeze <axes = [2, 3]> (a)"
            "  q = Unsqueeze <axes = [2, 3]> (b)"
        ),
    ),
    "a softmax of rows": (
        8,
        OLD + image("a = Softmax <axis = 2> (p)  b = Softmax (p)  q = Add (a, b)"),
    ),
    "a softmax of rows that are no channels": (8, OLD + image("q = Softmax <axis = 2> (p)")),
    "a dropout and its mask": (8, OLD + image("q, m = Dropout (p)")),
    "resized by scales": (
        8,
        '<ir_version: 6, opset_import: ["" : 10]>'
        + image("q = Resize (p, s)", ", float[4] s = {1.0, 1.0, 2.0, 2.0}"),
    ),
    "an open batch and open space": (
        4,
        image(
            "a = Reshape (p, s)  b = ReduceMax <keepdims = 0> (a, three)  c = Unsqueeze (b, three)"
            "  q = Reshape (c, t)",
            ", int64[4] s = {0, 2, 4, -1}, int64[1] three = {3}, int64[4] t = {0, 8, 1, 1}",
        ).replace("float[2, 3, 6, 6] x", "float[N, 3, H, W] x"),
    ),
    "an open length": (
        8,
        rows(
            "a = Reshape (p, s)  b = Transpose <perm = [0, 2, 1, 3]> (a)  c = Transpose <perm = [0, 2, 1, 3]> (b)"
            "  q = Reshape (c, t)",
            ", int64[4] s = {0, -1, 2, 8}, int64[3] t = {0, 0, -1}",
            reads=16,
            made=16,
        ).replace("float[2, 5, 3] x", "float[N, T, 3] x"),
    ),
}
RUNS = [name for name in CASES if name != "nothing is known of it"]


def units_of(graph: str, weight: str = "w", prefer: str = "large") -> int:
    """Returns how many units of a weight can go, at most of one group."""
    model = Model.load(text.model(graph))
    groups = Facts(model).get(Channels(prefer)).groups  # type: ignore[arg-type]
    return max(
        (
            group.units
            for group in groups
            for member in group.members
            if member.value.name == weight
        ),
        default=0,
    )


@pytest.mark.parametrize("name", CASES)
def test_units(name: str) -> None:
    units, graph = CASES[name]
    assert units_of(graph) == units


@pytest.mark.parametrize("prefer", ["large", "outer", "inner"])
@pytest.mark.parametrize("name", RUNS)
def test_removing_is_masking(name: str, prefer: str) -> None:
    for seed in range(2 if prefer == "large" else 1):
        assert_removable(text.model(CASES[name][1]), prefer=prefer, seed=seed)  # type: ignore[arg-type]


def test_channels_whose_number_is_not_known_stay() -> None:
    model = Model.load(
        text.model(
            """g (float[2, 3] x, float[3, K] w) => (float[2, 4] y) <float[8, 4] v, int64[2] s = {2, 8}> {
              p = MatMul (x, w)
              q = Reshape (p, s)
              y = MatMul (q, v)
            }"""
        )
    )
    found = Facts(model).get(Channels())
    reasons = {(b.value.name, b.axis): b.reason for b in found.barriers()}
    assert not found.groups
    assert reasons["v", 0] == "it is reshaped together with a size that is not known (Reshape)"


def test_every_operator_has_a_rule_or_a_reason() -> None:
    """An operator that a new version of ONNX brings must not slip in: decide what it does to channels."""
    newest = {schema.name: schema for schema in defs.get_all_schemas() if not schema.domain}
    known = {name for name, schema in newest.items() if not schema.deprecated}
    assert known <= RULES.keys() | BARRIERS.keys()
    assert not RULES.keys() & BARRIERS.keys()
