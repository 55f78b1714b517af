"""fold-constants: what is computed ahead of time, and what must be left alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcomp.errors import ModelError
from onnxcomp.ir import Model, ir
from onnxcomp.runtime import newest_opset
from onnxcomp_passes.simplify.fold_constants import FoldConstants
from onnxcomp_passes.simplify.folding.limits import Budget
from onnxcomp_passes.simplify.folding.waves import Wave, since_version
from tests.helpers.check import assert_refuses, assert_rewrites, assert_unchanged, run_pass
from tests.helpers.numbers import assert_same_numbers
from tests.helpers.text import model

FOLD = FoldConstants()


def test_computes_a_whole_expression_and_drops_its_nodes() -> None:
    outcome = assert_rewrites(
        FOLD,
        before="""
            g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 5}> {
              p = Add (a, b)
              q = Mul (p, p)
              y = Sub (x, q)
            }
        """,
        after="""
            g (float[2] x) => (float[2] y)
            <float[2] a = {1, 2}, float[2] b = {3, 5}, float[2] q = {16, 49}> { y = Sub (x, q) }
        """,
        atol=0,
        rtol=0,
    )
    assert outcome.stats["values folded"] == 1


@pytest.mark.parametrize("opset", [12, 17])
def test_computes_comparisons_that_inference_knows_nothing_of(opset: int) -> None:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    assert_rewrites(
        FOLD,
        before=f"""
            {header} g () => (bool[2] y) <int64[2] a = {{1, 2}}, int64 b = {{2}}> {{
              p = GreaterOrEqual (a, b)
              q = LessOrEqual (a, b)
              y = And (p, q)
            }}
        """,
        after=f"""
            {header} g () => (bool[2] y)
            <bool[2] y = {{0, 1}}, int64[2] a = {{1, 2}}, int64 b = {{2}}> {{}}
        """,
    )


@pytest.mark.parametrize("ahead", [1, 2])
def test_operators_that_did_not_change_are_computed_in_opsets_newer_than_the_runtime(
    ahead: int,
) -> None:
    version = newest_opset() + ahead
    source = model(
        f"""
            <ir_version: 10, opset_import: ["" : {version}]>
            g (float[N] x) => (float[N] y) <float[2] a, float[2] b> {{
              c = Add (a, b)
              d = ReduceSum <keepdims = 0> (c)
              y = Mul (x, d)
            }}
        """
    )
    if version > onnx.defs.onnx_opset_version():
        with pytest.raises(ModelError):
            run_pass(FOLD, source)
        return
    got, outcome = run_pass(FOLD, source)
    assert [node.op_type for node in got.graph.node] == ["Mul"]
    assert not outcome.diagnostics
    total = onnx.numpy_helper.to_array(source.graph.initializer[0]).astype(np.float32)
    total = total + onnx.numpy_helper.to_array(source.graph.initializer[1])
    made = [onnx.numpy_helper.to_array(t) for t in got.graph.initializer if t.name == "d"]
    np.testing.assert_allclose(made[0], total.sum(), rtol=1e-6)


def test_operators_that_changed_are_not_taken_for_older_ones() -> None:
    node = onnx.helper.make_node("Add", ["a", "b"], ["c"])
    loaded = ir.serde.deserialize_node(node)
    assert since_version(loaded, 21) == 14
    newest = onnx.defs.onnx_opset_version()
    assert since_version(loaded, newest + 1) == newest + 1
    wave = Wave(Budget(), 14, 13)
    source = Model.load(model("g () => (float[2] c) <float[2] a, float[2] b> { c = Add (a, b) }"))
    nodes = list(source.graph)
    assert wave.choose(nodes) == []
    assert Wave(Budget(), 14, 14).choose(nodes) == nodes
    assert Wave(Budget(), 15, 14).choose(nodes) == nodes


def test_lifts_constants_to_initializers_in_every_scope_but_functions() -> None:
    assert_rewrites(
        FOLD,
        before="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x, bool c) => (float[2] y) {
              a = Constant <value = float[2] {1, 2}> ()
              b = Constant <value_float = 3.0> ()
              p = Mul (x, a)
              q = If (c) <
                then_branch = t () => (float[2] r) {
                  d = Constant <value_floats = [5.0, 6.0]> () r = Add (p, d) },
                else_branch = e () => (float[2] s) { s = Constant <value = float[2] {7, 8}> () }>
              u = f.half (q)
              y = Add (u, b)
            }
            <domain: "f", opset_import: ["" : 21]>
            half (a) => (r) { h = Constant <value_float = 0.5> () r = Mul (a, h) }
        """,
        after="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x, bool c) => (float[2] y) <float[2] a = {1, 2}, float b = {3}> {
              p = Mul (x, a)
              q = If (c) <
                then_branch = t () => (float[2] r) <float[2] d = {5, 6}> { r = Add (p, d) },
                else_branch = e () => (float[2] s) { s = Constant <value = float[2] {7, 8}> () }>
              u = f.half (q)
              y = Add (u, b)
            }
            <domain: "f", opset_import: ["" : 21]>
            half (a) => (r) { h = Constant <value_float = 0.5> () r = Mul (a, h) }
        """,
    )


def test_folds_inside_functions_and_bodies() -> None:
    assert_rewrites(
        FOLD,
        before="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, -4}> {
              q = If (c) <
                then_branch = t () => (float[2] r) { d = Abs (w) r = Add (x, d) },
                else_branch = e () => (float[2] s) { s = Neg (w) }>
              y = f.half (q)
            }
            <domain: "f", opset_import: ["" : 21]>
            half (a) => (r) {
              h = Constant <value_float = 0.5> () k = Neg (h) r = Mul (a, k)
            }
        """,
        after="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, -4}> {
              q = If (c) <
                then_branch = t () => (float[2] r) <float[2] d = {1, 4}> { r = Add (x, d) },
                else_branch = e () => (float[2] s) { s = Constant <value = float[2] {-1, 4}> () }>
              y = f.half (q)
            }
            <domain: "f", opset_import: ["" : 21]>
            half (a) => (r) { k = Constant <value = float {-0.5}> () r = Mul (a, k) }
        """,
    )


def test_a_constant_output_keeps_its_name() -> None:
    assert_rewrites(
        FOLD,
        before="g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {"
        " z = Neg (w) a = Add (z, x) y = Exp (a) }",
        after="g (float[2] x) => (float[2] y, float[2] z)"
        " <float[2] w = {1, 2}, float[2] z = {-1, -2}> { a = Add (z, x) y = Exp (a) }",
    )


def test_files_of_ir_version_3_get_constant_nodes() -> None:
    assert_rewrites(
        FOLD,
        before="""
            <ir_version: 3, opset_import: ["" : 9]>
            g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { a = Neg (w) y = Add (x, a) }
        """,
        after="""
            <ir_version: 3, opset_import: ["" : 9]>
            g (float[2] x, float[2] w = {1, 2}) => (float[2] y) {
              a = Constant <value = float[2] {-1, -2}> ()
              y = Add (x, a)
            }
        """,
        feeds=[{"x": np.ones(2, np.float32)}],
    )


@pytest.mark.parametrize(
    "expression",
    [
        "RandomNormal <shape = [2]> ()",
        "RandomUniformLike <seed = 3.0> (a)",
        "Bernoulli (a)",
        "Dropout (a, half, yes)",
        "DequantizeLinear (i, half)",
        "acme.Relu (a)",
        "Relu (d)",
    ],
)
def test_leaves_alone_what_is_random_foreign_quantized_or_overridable(expression: str) -> None:
    assert_unchanged(
        FOLD,
        f"""
            <ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
            g (float[2] x, float[2] d = {{1, 2}}) => (float[2] y)
            <float[2] a = {{0.5, 1}}, float half = {{0.5}}, bool yes = {{1}}, int8[2] i = {{1, 2}}> {{
              p = {expression}
              y = Add (x, p)
            }}
        """,
    )


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("Div (low, minus)", "smallest integer"),
        ("Mod (low, minus)", "smallest integer"),
        ("Div (low, zero)", "by zero"),
        ("Mod (low, zero)", "by zero"),
        ("Cast <to = 7> (wide)", "cannot hold"),
        ("Cast <to = 7> (nan)", "cannot hold"),
        ('BitShift <direction = "LEFT"> (u, w)', "too many bits"),
    ],
)
def test_leaves_undefined_arithmetic_to_the_caller(expression: str, why: str) -> None:
    kind = "uint64" if "BitShift" in expression else "int64"
    graph = model(
        f"""
            g ({kind}[1] x) => ({kind}[1] y)
            <int64[1] low = {{-9223372036854775808}}, int64[1] minus = {{-1}}, int64[1] zero = {{0}},
             float[1] wide = {{1e30}}, float[1] nan = {{0}}, uint64[1] u = {{1}},
             uint64[1] w = {{64}}> {{
              [risky] p = {expression}
              y = Add (x, p)
            }}
        """
    )
    for tensor in graph.graph.initializer:
        if tensor.name == "nan":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan], np.float32), "nan"))
    outcome = assert_refuses(FOLD, graph, code="FLD101", at="risky")
    assert why in outcome.diagnostics[0].message


def test_folds_integer_division_that_is_defined_towards_zero() -> None:
    assert_rewrites(
        FOLD,
        before="g (int64[2] x) => (int64[2] y) <int64[2] a = {-7, 7}, int64[2] b = {2, -2}> {"
        " p = Div (a, b) y = Add (x, p) }",
        after="g (int64[2] x) => (int64[2] y)"
        " <int64[2] a = {-7, 7}, int64[2] b = {2, -2}, int64[2] p = {-3, -3}> { y = Add (x, p) }",
    )


@pytest.mark.parametrize(
    "bomb",
    [
        "ConstantOfShape (big)",
        "Expand (one, big)",
        "Tile (one, big)",
        "RandomUniform <shape = [8]> ()",
    ],
)
def test_does_not_blow_up_the_model(bomb: str) -> None:
    graph = f"""
        g (float[1, 1] x) => (float[100000, 1000] y)
        <int64[2] big = {{100000, 1000}}, float[1, 1] one = {{1}}> {{
          p = {bomb}
          y = Add (x, p)
        }}
    """
    assert_unchanged(FOLD, graph)


def test_a_table_of_positions_is_not_written_out() -> None:
    source = model(
        """
            g (float[N, 100000] x) => (float[N, 100000] y, int64 z)
            <int64 zero = {0}, int64 many = {100000}, int64 one = {1}, float[4, 25000] w> {
              p = Range (zero, many, one)
              f = Cast <to = 1> (p)
              y = Add (x, f)
              s = Size (w)
              z = Add (s, one)
            }
        """
    )
    got, outcome = run_pass(FOLD, source)
    assert [node.op_type for node in got.graph.node] == ["Range", "Cast", "Add"]
    assert got.ByteSize() < source.ByteSize() + 100
    assert [item.code for item in outcome.diagnostics] == ["FLD101"]
    total = next(t for t in got.graph.initializer if t.name == "z")
    assert onnx.numpy_helper.to_array(total) == 100001


def test_a_small_range_is_computed() -> None:
    got = folded(
        """
            g (float[N, 4] x) => (float[N, 4] y) <int64 zero = {0}, int64 one = {1}, int64 i = {1}> {
              s = Shape (x)
              n = Gather (s, i)
              p = Range (zero, n, one)
              f = Cast <to = 1> (p)
              y = Add (x, f)
            }
        """
    )
    assert operators(got) == ["Add"]


@pytest.mark.parametrize(("count", "grows"), [(6, True), (9, False)])
def test_the_model_grows_by_all_or_nothing_of_what_fits_the_budget(count: int, grows: bool) -> None:
    nodes = "".join(f"p{i} = Expand (w{i}, s) y{i} = Add (x, p{i})\n" for i in range(count))
    outputs = ", ".join(f"float[100, 100] y{i}" for i in range(count))
    weights = ", ".join(f"float[100, 1] w{i}" for i in range(count))
    source = model(
        f"g (float[100, 1] x) => ({outputs}) <{weights}, int64[2] s = {{100, 100}}> {{{nodes}}}"
    )
    got, outcome = run_pass(FOLD, source)
    assert outcome.changed == grows
    assert [item.code for item in outcome.diagnostics] == ([] if grows else ["FLD101"] * count)
    assert got.ByteSize() < source.ByteSize() + 256 * 1024


def test_a_chain_that_doubles_stops() -> None:
    nodes = "".join(f"p{i + 1} = Concat <axis = 0> (p{i}, p{i})\n" for i in range(40))
    graph = model(
        f"g (float[1] x) => (float[N] y) <float[8] p0> {{ {nodes} q = ReduceMax <keepdims = 1> (p40)"
        " y = Add (x, q) }"
    )
    got, outcome = run_pass(FOLD, graph)
    assert got.ByteSize() < graph.ByteSize() + 70_000
    assert outcome.diagnostics[0].code == "FLD101"


def test_slices_that_use_up_a_large_weight_are_folded_together() -> None:
    before = model(
        """
            g (float[N, 300] x) => (float[N, 100] y) <float[300, 300] w,
             int64[1] a = {0}, int64[1] b = {100}, int64[1] c = {200}, int64[1] d = {300},
             int64[1] one = {1}> {
              p = Slice (w, a, b, one) q = Slice (w, b, c, one) r = Slice (w, c, d, one)
              s = MatMul (x, p) t = MatMul (x, q) u = MatMul (x, r)
              v = Add (s, t) y = Add (u, v)
            }
        """
    )
    got, outcome = run_pass(FOLD, before)
    assert [node.op_type for node in got.graph.node] == ["MatMul"] * 3 + ["Add"] * 2
    assert not outcome.diagnostics


def test_a_large_weight_that_is_still_read_is_not_doubled() -> None:
    assert_refuses(
        FOLD,
        """
            g (float[300, 300] x) => (float[300, 300] y) <float[300, 300] w> {
              [flip] t = Transpose (w)
              p = MatMul (x, w)
              y = MatMul (p, t)
            }
        """,
        code="FLD101",
        at="flip",
    )


def test_what_the_runtime_cannot_compute_is_left_and_the_rest_folded() -> None:
    source = model(
        """
            g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, int64[1] far = {9}> {
              [bad] p = Gather (a, far)
              q = Neg (a)
              s = Add (x, q)
              y = Mul (s, p)
            }
        """
    )
    got, outcome = run_pass(FOLD, source)
    assert [node.op_type for node in got.graph.node] == ["Gather", "Add", "Mul"]
    assert [(item.code, item.where.name) for item in outcome.diagnostics] == [("FLD102", "bad")]


def test_shapes_of_known_dimensions_become_constants() -> None:
    assert_rewrites(
        FOLD,
        before="""
            g (float[N, 4, 8] x) => (int64[2] a, int64 b) <int64 one = {1}, int64[1] s = {1},
             int64[1] e = {3}> {
              h = Shape (x)
              p = Slice (h, s, e)
              a = Neg (p)
              q = Gather (h, one)
              b = Mul (q, one)
            }
        """,
        after="""
            g (float[N, 4, 8] x) => (int64[2] a, int64 b) <int64 one = {1}, int64[1] s = {1},
             int64[1] e = {3}, int64[2] p = {4, 8}, int64 q = {4}, int64[2] a = {-4, -8},
             int64 b = {4}> {}
        """,
    )


FLATTEN = """
    g (float[N, 4, 8] x) => (float[N, 32] y) <int64 zero = {0}, int64[1] ax = {0},
     int64[1] rest = {%s}> {
      s = Shape (x)
      n = Gather (s, zero)
      u = Unsqueeze (n, ax)
      t = Concat <axis = 0> (u, rest)
      y = Reshape (x, t)
    }
"""


def test_a_target_with_one_open_size_lets_it_be_inferred() -> None:
    got, outcome = run_pass(FOLD, model(FLATTEN % "32"))
    assert [node.op_type for node in got.graph.node] == ["Reshape"]
    assert outcome.stats["targets simplified"] == 1
    target = {t.name: t for t in got.graph.initializer}[got.graph.node[0].input[1]]
    assert onnx.numpy_helper.to_array(target).tolist() == [-1, 32]


def test_a_target_that_repeats_a_size_copies_it() -> None:
    got, _ = run_pass(FOLD, model(FLATTEN % "-1"))
    assert [node.op_type for node in got.graph.node] == ["Reshape"]
    target = {t.name: t for t in got.graph.initializer}[got.graph.node[0].input[1]]
    assert onnx.numpy_helper.to_array(target).tolist() == [0, -1]


@pytest.mark.parametrize(("size", "rest"), [(0, "32"), (1, "32"), (5, "32"), (1, "-1"), (5, "-1")])
def test_flattening_holds_for_every_batch(size: int, rest: str) -> None:
    source = model(FLATTEN % rest)
    got, _ = run_pass(FOLD, source)
    feeds = {"x": np.ones((size, 4, 8), np.float32)}
    assert_same_numbers(source, got, feeds)


def test_two_open_sizes_that_cannot_be_told_apart_stay() -> None:
    assert_unchanged(
        FOLD,
        """
            g (float[?, ?] x, int64[2] t) => (float[?, ?] y) <int64 zero = {0}, int64 one = {1}> {
              s = Shape (x)
              a = Gather <axis = 0> (t, zero)
              b = Gather <axis = 0> (t, one)
              ax = Shape <start = 0, end = 1> (t)
              u = Reshape (x, t)
              y = Neg (u)
            }
        """.replace("ax = Shape <start = 0, end = 1> (t)", ""),
    )


def test_a_known_zero_in_a_target_keeps_the_computed_target() -> None:
    assert_unchanged(
        FOLD,
        """
            g (float[N, 0, 3] x) => (float[?, ?, ?] y) <int64 z = {0}, int64[1] ax = {0},
             int64[2] none = {0, 4}> {
              s = Shape (x)
              n = Gather (s, z)
              u = Unsqueeze (n, ax)
              t = Concat <axis = 0> (u, none)
              y = Reshape <allowzero = 1> (x, t)
            }
        """,
    )


def test_a_symbol_that_two_inputs_share_is_not_taken_for_one_size() -> None:
    assert_unchanged(
        FOLD,
        """
            g (float[length] a, float[length] b) => (int64[1] y) {
              p = Shape (a)
              q = Shape (b)
              y = Sub (p, q)
            }
        """,
    )


def test_sizes_are_not_negative_so_a_where_over_them_is_decided() -> None:
    assert_rewrites(
        FOLD,
        before="""
            g (float[N, 1] x) => (float[N, 3] y) <int64[1] minus = {-1}, int64[1] one = {1},
             int64[2] target = {-1, 3}> {
              e = Equal (target, minus)
              w = Where (e, one, target)
              y = Expand (x, w)
            }
        """,
        after="""
            g (float[N, 1] x) => (float[N, 3] y) <int64[1] minus = {-1}, int64[1] one = {1},
             int64[2] target = {-1, 3}, int64[2] w = {1, 3}> { y = Expand (x, w) }
        """,
    )


def test_floating_point_keeps_its_bits() -> None:
    source = model("g (float[5] x) => (float[5] y) <float[5] a> { p = Mul (a, a) y = Mul (x, p) }")
    tricky = np.array([1e-42, -0.0, np.inf, -1e30, np.nan], np.float32)
    source.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(tricky, "a"))
    got, _ = run_pass(FOLD, source)
    folded = {t.name: onnx.numpy_helper.to_array(t) for t in got.graph.initializer}["p"]
    with np.errstate(all="ignore"):
        assert folded.tobytes() == (tricky * tricky).tobytes()


def test_half_precision_is_folded_in_half_precision() -> None:
    assert_rewrites(
        FOLD,
        before="g (float16[2] x) => (float16[2] y) <float16[2] a, float16[2] b>"
        " { p = Div (a, b) y = Add (x, p) }",
        after=_half_expected(),
        rtol=2e-3,  # onnxruntime computes chains of float16 in float32 and rounds once
    )


def _half_expected() -> onnx.ModelProto:
    expected = model(
        "g (float16[2] x) => (float16[2] y) <float16[2] a, float16[2] b, float16[2] p>"
        " { y = Add (x, p) }"
    )
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in expected.graph.initializer}
    quotient = (arrays["a"].astype(np.float32) / arrays["b"]).astype(np.float16)
    for tensor in expected.graph.initializer:
        if tensor.name == "p":
            tensor.CopyFrom(onnx.numpy_helper.from_array(quotient, "p"))
    return expected


def test_sizes_are_followed_through_operators_where_inference_only_says_unknown() -> None:
    # The second dimension of `b` is nothing that inference can name: 1 or the table's, whichever.
    assert_rewrites(
        FOLD,
        before="""
            g (float[N, S, 6] x, float[1, T, 6] table) => (float[?, ?, 2, 3] y)
            <float[6] scale, float[6, 6] w, int64[1] two = {2}, int64[1] rest = {-1},
             int64[1] zero = {0}, int64[1] one = {1}> {
              b = Add (x, table)
              m = MatMul (b, w)
              s = Mul (scale, m)
              shape = Shape (b)
              rows = Slice (shape, zero, one)
              columns = Slice (shape, one, two)
              t = Concat <axis = 0> (rows, columns, two, rest)
              y = Reshape (s, t)
            }
        """,
        after="""
            g (float[N, S, 6] x, float[1, T, 6] table) => (float[?, ?, 2, 3] y)
            <float[6] scale, float[6, 6] w, int64[1] two = {2}, int64[1] rest = {-1},
             int64[1] zero = {0}, int64[1] one = {1}, int64[4] t = {0, 0, 2, -1}> {
              b = Add (x, table)
              m = MatMul (b, w)
              s = Mul (scale, m)
              y = Reshape (s, t)
            }
        """,
        feeds=[
            {"x": np.ones((n, s, 6), np.float32), "table": np.ones((1, t, 6), np.float32)}
            for n, s, t in [(2, 3, 3), (1, 1, 4), (3, 5, 1)]
        ],
    )


def test_channels_of_a_convolution_are_known_whatever_its_input() -> None:
    assert_rewrites(
        FOLD,
        before="""
            g (float x) => (int64 y) <float[1, 2, 1] w, int64 one = {1}, int64[1] shape = {1}> {
              r = Identity (x)
              c = Conv (r, w)
              s = Shape (c)
              y = Gather (s, one)
            }
        """.replace("float x)", "float[?, 2, L] x)"),
        after="""
            g (float[?, 2, L] x) => (int64 y)
            <float[1, 2, 1] w, int64 one = {1}, int64[1] shape = {1}, int64 y = {1}> {}
        """,
    )


ATTENTION = """
    g (float[B, S, 8] x, bool[1, S] mask) => (float[?, ?, 8] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[2] heads = {2, 4},
     int64[1] merged = {-1}, int64[2] middle = {1, 2}, int64[1] second = {1}> {
      q = Tanh (x)
      shape = Shape (q)
      b = Gather (shape, zero)
      s = Gather (shape, one)
      b1 = Unsqueeze (b, first)
      s1 = Unsqueeze (s, first)
      split = Concat <axis = 0> (b1, s1, heads)
      together = Concat <axis = 0> (b1, s1, merged)
      p = Reshape (q, split)
      l = Transpose <perm = [0, 2, 1, 3]> (p)
      r = Transpose <perm = [0, 2, 3, 1]> (p)
      scores = MatMul (l, r)
      wide = Unsqueeze (mask, middle)
      f = Cast <to = 1> (wide)
      m = Add (scores, f)
      a = Softmax (m)
      o = MatMul (a, l)
      t = Transpose <perm = [0, 2, 1, 3]> (o)
      y = Reshape (t, together)
    }
"""


def test_an_attention_block_needs_no_shape_arithmetic() -> None:
    source = model(ATTENTION)
    got, _ = run_pass(FOLD, source)
    onnx.checker.check_model(got, full_check=True)
    assert not {"Shape", "Gather", "Concat"} & {node.op_type for node in got.graph.node}
    rng = np.random.default_rng(0)
    for batch, length in [(1, 1), (1, 5), (3, 1), (2, 4)]:
        feeds = {
            "x": rng.normal(size=(batch, length, 8)).astype(np.float32),
            "mask": rng.integers(0, 2, (1, length)).astype(bool),
        }
        assert_same_numbers(source, got, feeds, rtol=1e-6, atol=1e-6)


def test_a_batch_that_only_a_symbol_calls_equal_is_not_copied() -> None:
    # The runtime takes one sample and five masks: broadcasting makes five of it.
    source = model(ATTENTION.replace("bool[1, S]", "bool[B, S]"))
    got, _ = run_pass(FOLD, source)
    for batch, masks in [(1, 5), (2, 2)]:
        feeds = {
            "x": np.ones((batch, 3, 8), np.float32),
            "mask": np.ones((masks, 3), bool),
        }
        assert_same_numbers(source, got, feeds, runtimes=("onnxruntime",), rtol=1e-6, atol=1e-6)


def test_a_size_that_becomes_zero_copies_another_one_and_is_not_taken_for_equal() -> None:
    # With N = 0 the target reads [0, 4], which copies the 3 of `x`: the result has 3 rows, not N.
    source = model(
        """
            g (float[3, 4] x, float[N] empty) => (int64[1] y)
            <int64[1] four = {4}, int64[1] zero = {0}, int64[1] one = {1}> {
              n = Shape (empty)
              t = Concat <axis = 0> (n, four)
              r = Reshape (x, t)
              s = Shape (r)
              rows = Slice (s, zero, one)
              y = Sub (rows, n)
            }
        """
    )
    got, _ = run_pass(FOLD, source)
    for rows in (0, 3):
        feeds = {"x": np.ones((3, 4), np.float32), "empty": np.ones(rows, np.float32)}
        assert_same_numbers(source, got, feeds, runtimes=("onnxruntime",))


def folded(text: str) -> onnx.ModelProto:
    got, _ = run_pass(FOLD, model(text))
    onnx.checker.check_model(got, full_check=True)
    return got


def operators(got: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in got.graph.node]


VIEW = """
    g (float[N, M, 1, 4] x) => (float[?, ?, ?] y, float[?, ?, ?, ?, ?] z)
    <int64[1] two = {2}, int64[2] edge = {0, 1}, int64[1] last = {3}, int64[1] one = {1}> {
      s = Shape (x)
      front = Gather (s, edge)
      width = Gather (s, last)
      t = Concat <axis = 0> (front, width)
      a = Neg (x)
      y = Reshape (a, t)
      u = Concat <axis = 0> (front, one, one, width)
      z = Reshape (y, u)
    }
"""


def test_a_reshape_that_only_moves_ones_is_a_view() -> None:
    # Of a size of 0 that is not in its place, another one would be copied: then it is no view.
    text = VIEW.replace("Reshape (", "Reshape <allowzero = 1> (")
    got = folded(text)
    assert operators(got) == ["Neg", "Squeeze", "Unsqueeze"]
    for n, m in [(0, 2), (2, 0), (1, 1), (3, 2), (0, 0)]:
        feeds = {"x": np.ones((n, m, 1, 4), np.float32)}
        assert_same_numbers(model(text), got, feeds)


def test_views_before_opset_13_have_attributes() -> None:
    header = '<ir_version: 7, opset_import: ["" : 11]>'
    text = f"{header} {VIEW}"
    got = folded(text)
    assert operators(got) == ["Neg", "Squeeze", "Unsqueeze"]
    assert [attr.name for attr in got.graph.node[1].attribute] == ["axes"]
    assert_same_numbers(model(text), got, {"x": np.ones((2, 3, 1, 4), np.float32)})


def test_a_reshape_looks_through_another_one() -> None:
    text = """
        g (float[N, M] x, int64[K, 1] i) => (float[?, ?] y)
        <int64[2] flat = {-1, 1}, int64[1] line = {-1}> {
          a = Reshape (x, flat)
          b = Gather (a, i)
          c = Reshape (b, line)
          s = Shape (i)
          y = Reshape (c, s)
        }
    """
    got = folded(text)
    assert operators(got) == ["Reshape", "Gather", "Squeeze"]
    feeds = {"x": np.ones((2, 3), np.float32), "i": np.array([[1], [0], [5]])}
    assert_same_numbers(model(text), got, feeds)


def test_rows_of_everything_else_are_a_flatten_for_an_empty_batch_too() -> None:
    text = """
        g (float[N, M, 4] x) => (float[?, ?] y) <int64 zero = {0}, int64 one = {1}, int64 four = {4},
         int64[1] ax = {0}> {
          s = Shape (x)
          n = Gather (s, zero)
          m = Gather (s, one)
          k = Mul (m, four)
          n1 = Unsqueeze (n, ax)
          k1 = Unsqueeze (k, ax)
          t = Concat <axis = 0> (n1, k1)
          y = Reshape <allowzero = 1> (x, t)
        }
    """
    got = folded(text)
    assert operators(got) == ["Flatten"]
    for n, m in [(0, 2), (2, 0), (3, 2)]:
        feeds = {"x": np.ones((n, m, 4), np.float32)}
        assert_same_numbers(model(text), got, feeds, runtimes=("onnxruntime",))


def test_nothing_is_inferred_beside_a_dimension_of_0() -> None:
    text = """
        g (float[N, 0, 2] x, float[K] k) => (float[?, ?, ?] y) <int64[1] zero = {0}, int64[1] one = {1}> {
          n = Shape (k)
          t = Concat <axis = 0> (one, zero, n)
          a = Neg (x)
          y = Reshape (a, t)
        }
    """
    got = folded(text)
    for k in (2, 5):
        feeds = {"x": np.ones((3, 0, 2), np.float32), "k": np.ones(k, np.float32)}
        assert_same_numbers(model(text), got, feeds, runtimes=("onnxruntime",))


def test_a_size_beside_one_that_is_copied_is_inferred_only_where_it_is_what_is_left() -> None:
    text = """
        g (float[N, K] x, float[P] p) => (float[?, ?] y) <int64[1] zero = {0}> {
          s = Shape (p)
          t = Concat <axis = 0> (s, zero)
          a = Neg (x)
          y = Reshape (a, t)
        }
    """
    assert operators(folded(text)) == ["Shape", "Concat", "Neg", "Reshape"]
    for rows, columns in [(4, 0), (2, 3)]:
        feeds = {"x": np.ones((2, columns), np.float32), "p": np.ones(rows, np.float32)}
        assert_same_numbers(model(text), folded(text), feeds, runtimes=("onnxruntime",))


def test_sizes_that_are_equal_are_computed_once() -> None:
    text = """
        g (float[N, M] x, float[K] z) => (float[?] y) <int64 zero = {0}, int64 one = {1}, int64 two = {2}> {
          a = Neg (x)
          s = Shape (x)
          n = Gather (s, zero)
          d = Mul (n, two)
          t = Shape (a)
          m = Gather (t, zero)
          e = Add (m, m)
          q = Range (zero, d, one)
          r = Range (zero, e, one)
          f = Add (q, r)
          y = Cast <to = 1> (f)
        }
    """
    got = folded(text)
    assert operators(got).count("Shape") == 1
    assert operators(got).count("Gather") == 1
    assert operators(got).count("Mul") == 1
    for n in (0, 1, 3):
        feeds = {"x": np.ones((n, 2), np.float32), "z": np.ones(1, np.float32)}
        assert_same_numbers(model(text), got, feeds)


@pytest.mark.parametrize(
    ("arithmetic", "expected"),
    [
        ("k = Mul (m, four) r = Div (k, four)", [0, 0, 4]),
        ("k = Add (m, four) r = Sub (k, four)", [0, 0, 4]),
        ("k = Div (m, one) r = Mul (k, one)", [0, 0, 4]),
        ("k = Max (m, minus) r = Min (k, m)", [0, 0, 4]),
        ("k = Div (m, four) r = Mul (k, four)", None),
    ],
)
def test_arithmetic_on_sizes_cancels(arithmetic: str, expected: list[int] | None) -> None:
    text = f"""
        g (float[N, M, 2, 2] x) => (float[?, ?, ?] y) <int64 zero = {{0}}, int64 one = {{1}},
         int64 four = {{4}}, int64 minus = {{-1}}, int64[1] ax = {{0}}, int64[1] fours = {{4}}> {{
          s = Shape (x)
          n = Gather (s, zero)
          m = Gather (s, one)
          {arithmetic}
          n1 = Unsqueeze (n, ax)
          r1 = Unsqueeze (r, ax)
          t = Concat <axis = 0> (n1, r1, fours)
          y = Reshape (x, t)
        }}
    """
    got = folded(text)
    targets = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in got.graph.initializer}
    found = targets.get(got.graph.node[-1].input[1])
    assert found in (expected, [0, -1, 4])
    assert (operators(got) == ["Reshape"]) == (found is not None)
