"""convert-opset: the same model in the words of another version of ONNX."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import defs

from onnxcomp.errors import UserError
from onnxcomp.ir import Model
from onnxcomp.optimization import optimize
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import newest_opset
from onnxcomp.verify import varies
from onnxcomp_passes.convert.convert_opset import ConvertOpset
from onnxcomp_passes.convert.opsets import lost_types
from onnxcomp_passes.convert.up import OLDEST, REVIEWED, UP
from tests.helpers.check import assert_refuses, assert_rewrites, assert_rolls_back, assert_same
from tests.helpers.drawn import OPERATORS, VARIANTS, draw_any
from tests.helpers.drawn.core import RUNTIME_ERRORS, RefusedError
from tests.helpers.judge import BAD, OUTCOMES, judge, references
from tests.helpers.numbers import RUNTIMES, assert_same_numbers, run
from tests.helpers.strategies import graphs
from tests.helpers.text import difference, model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any


def text(version: int, graph: str, ir_version: int = 8) -> str:
    return f'<ir_version: {ir_version}, opset_import: ["" : {version}]> {graph}'


# Opset before, graph before, opset after, graph after, runtimes that have the older form.
RAISED = {
    "axes of a reduction": (
        13, "g (float[2, 3] x) => (float[2, 1] y) { y = ReduceMean <axes = [1]> (x) }",
        18, "g (float[2, 3] x) => (float[2, 1] y) <int64[1] a = {1}> { y = ReduceMean (x, a) }",
    ),
    "a reduction over no axis is one over all": (
        13, "g (float[2, 3] x) => (float[1, 1] y) { y = ReduceMax <axes: ints = []> (x) }",
        18, "g (float[2, 3] x) => (float[1, 1] y) { y = ReduceMax (x) }",
    ),
    "axes of Squeeze, Unsqueeze and ReduceSum, shared": (
        11, "g (float[1, 3] x) => (float[1, 3] y, float[1] z) { a = Squeeze <axes = [0]> (x) "
            "y = Unsqueeze <axes = [0]> (a) z = ReduceSum <axes = [0], keepdims = 1> (a) }",
        13, "g (float[1, 3] x) => (float[1, 3] y, float[1] z) <int64[1] i = {0}> { a = Squeeze (x, i) "
            "y = Unsqueeze (a, i) z = ReduceSum <keepdims = 1> (a, i) }",
    ),
    "sizes of Split": (
        11, "g (float[4] x) => (float[1] y, float[3] z) { y, z = Split <split = [1, 3]> (x) }",
        18, "g (float[4] x) => (float[1] y, float[3] z) <int64[2] s = {1, 3}> { y, z = Split (x, s) }",
    ),
    "equal pieces": (
        13, "g (float[4] x) => (float[2] y, float[2] z) { y, z = Split (x) }",
        18, "g (float[4] x) => (float[2] y, float[2] z) { y, z = Split <num_outputs = 2> (x) }",
    ),
    "bounds of Clip": (
        10, "g (float[4] x) => (float[4] y) { y = Clip <min = -1.0, max = 1.0> (x) }",
        13, "g (float[4] x) => (float[4] y) <float l = {-1}, float h = {1}> { y = Clip (x, l, h) }",
    ),
    "one bound of Clip": (
        10, "g (float[4] x) => (float[4] y) { y = Clip <max = 1.0> (x) }",
        11, "g (float[4] x) => (float[4] y) <float h = {1}> { y = Clip (x, , h) }",
    ),
    "pads": (
        10, 'g (float[2] x) => (float[5] y) { y = Pad <mode = "constant", pads = [1, 2], value = 0.5> (x) }',
        11, 'g (float[2] x) => (float[5] y) <int64[2] p = {1, 2}, float v = {0.5}> '
            '{ y = Pad <mode = "constant"> (x, p, v) }',
    ),
    "ranges of Slice": (
        9, "g (float[4, 4] x) => (float[4, 2] y) { y = Slice <axes = [1], starts = [1], ends = [3]> (x) }",
        13, "g (float[4, 4] x) => (float[4, 2] y) <int64[1] s = {1}, int64[1] e = {3}> { y = Slice (x, s, e, s) }",
    ),
    "k of TopK": (
        9, "g (float[4] x) => (float[2] y, int64[2] i) { y, i = TopK <k = 2> (x) }",
        11, "g (float[4] x) => (float[2] y, int64[2] i) <int64[1] k = {2}> { y, i = TopK (x, k) }",
    ),
    "Upsample": (
        8, 'g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 6] y) '
           '{ y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 3.0]> (x) }',
        13, 'g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 6] y) <float[4] s = {1, 1, 2, 3}> { y = Resize '
            '<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , s) }',
    ),
    "Resize by scales alone": (
        10, 'g (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) <float[4] s = {1, 1, 0.5, 0.5}> '
            '{ y = Resize <mode = "linear"> (x, s) }',
        11, 'g (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) <float[4] s = {1, 1, 0.5, 0.5}, float[0] r = {}> '
            '{ y = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric"> (x, r, s) }',
    ),
    "empty operands of Resize": (
        11, 'g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[0] e = {}, int64[4] s = {1, 1, 4, 4}> '
            '{ y = Resize <mode = "nearest"> (x, e, e, s) }',
        13, 'g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[0] e = {}, int64[4] s = {1, 1, 4, 4}> '
            '{ y = Resize <mode = "nearest"> (x, , , s) }',
    ),
    "Softmax over the last axis": (
        11, "g (float[N, 4] x) => (float[N, 4] y) { y = Softmax (x) }",
        13, "g (float[N, 4] x) => (float[N, 4] y) { y = Softmax <axis = -1> (x) }",
    ),
    "Softmax over one axis that counts": (
        11, "g (float[2, 3, 1, 1] x) => (float[2, 3, 1, 1] y) { y = Softmax <axis = 1> (x) }",
        13, "g (float[2, 3, 1, 1] x) => (float[2, 3, 1, 1] y) { y = Softmax <axis = 1> (x) }",
    ),
    "Softmax over several axes": (
        11, "g (float[N, 3, M] x) => (float[N, 3, M] y) { a = LogSoftmax <axis = 1> (x) y = Neg (a) }",
        14, "g (float[N, 3, M] x) => (float[N, 3, M] y) { s = Shape (x) f = Flatten <axis = 1> (x) "
            "l = LogSoftmax <axis = -1> (f) a = Reshape <allowzero = 1> (l, s) y = Neg (a) }",
    ),
    "Softmax over several axes as an output": (
        11, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax <axis = 1> (x) }",
        13, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { s = Shape (x) f = Flatten <axis = 1> (x) "
            "l = Softmax <axis = -1> (f) y = Reshape (l, s) }",
    ),
    "Dropout": (
        9, "g (float[4] x) => (float[4] y) { y, m = Dropout <ratio = 0.3> (x) }",
        13, "g (float[4] x) => (float[4] y) { y = Dropout (x) }",
    ),
    "Scatter": (
        9, "g (float[3] x, float[1] u) => (float[3] y) <int64[1] i = {1}> { y = Scatter (x, i, u) }",
        11, "g (float[3] x, float[1] u) => (float[3] y) <int64[1] i = {1}> { y = ScatterElements (x, i, u) }",
    ),
    "where regions of RoiAlign begin": (
        10, "g (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) <float[1, 4] r = {0, 0, 3, 3}, int64[1] b = {0}> "
            "{ y = RoiAlign <output_height = 2, output_width = 2> (x, r, b) }",
        16, "g (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) <float[1, 4] r = {0, 0, 3, 3}, int64[1] b = {0}> "
            '{ y = RoiAlign <output_height = 2, output_width = 2, '
            'coordinate_transformation_mode = "output_half_pixel"> (x, r, b) }',
    ),
    "names of the modes of GridSample": (
        16, 'g (float[1, 1, 3, 3] x, float[1, 2, 2, 2] p) => (float[1, 1, 2, 2] y) '
            '{ y = GridSample <mode = "bicubic"> (x, p) }',
        20, 'g (float[1, 1, 3, 3] x, float[1, 2, 2, 2] p) => (float[1, 1, 2, 2] y) '
            '{ y = GridSample <mode = "cubic"> (x, p) }',
    ),
    "axis of DFT": (
        17, "g (float[1, 4, 1] x) => (float[1, 4, 2] y) { y = DFT (x) }",
        20, "g (float[1, 4, 1] x) => (float[1, 4, 2] y) <int64 a = {1}> { y = DFT (x, , a) }",
    ),
    "an operand that begins at an axis": (
        6, "g (float[2, 3, 4] x, float[3] b) => (float[2, 3, 4] y) "
           "{ a = Add <axis = 1, broadcast = 1> (x, b) y = Mul <broadcast = 1, axis = 2> (a, a4) }",
        7, "g (float[2, 3, 4] x, float[3] b) => (float[2, 3, 4] y) "
           "{ c = Unsqueeze <axes = [1]> (b) a = Add (x, c) y = Mul (a, a4) }",
    ),
}  # fmt: skip

# The reference evaluator has no kernels for these old forms, onnxruntime none for those of opset 6.
ONLY = {
    "Upsample": ("onnxruntime",),
    "Resize by scales alone": ("onnxruntime",),
    "Scatter": ("onnxruntime",),
    "k of TopK": ("onnxruntime",),
    "where regions of RoiAlign begin": ("onnxruntime",),
    "Softmax over several axes": ("onnxruntime",),
    "Softmax over several axes as an output": ("onnxruntime",),
    "names of the modes of GridSample": ("onnxruntime",),
    "an operand that begins at an axis": (),
}


@pytest.mark.parametrize("name", RAISED)
def test_raises(name: str) -> None:
    before, graph, version, after = RAISED[name]
    weights = "<float[4] a4 = {1, 2, 3, 4}>" if "a4" in graph else ""
    old = text(before, graph.replace(" {", f" {weights} {{", 1))
    new = text(version, after.replace(" {", f" {weights} {{", 1))
    assert_rewrites(
        ConvertOpset(version=version, verify=name not in ONLY or bool(ONLY[name])),
        before=old,
        after=new,
        runtimes=ONLY.get(name, RUNTIMES),
        full_check=name not in {"empty operands of Resize"},
    )


LOWERED = {
    "axes of a reduction": (
        18, "g (float[2, 3] x) => (float[2, 1] y) <int64[1] a = {1}> { y = ReduceMean (x, a) }",
        13, "g (float[2, 3] x) => (float[2, 1] y) <int64[1] a = {1}> { y = ReduceMean <axes = [1]> (x) }",
    ),
    "equal pieces": (
        18, "g (float[4] x) => (float[2] y, float[2] z) { y, z = Split <num_outputs = 2> (x) }",
        11, "g (float[4] x) => (float[2] y, float[2] z) { y, z = Split (x) }",
    ),
    "Softmax over the last axis": (
        13, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax (x) }",
        11, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax <axis = -1> (x) }",
    ),
    "a default that was the rule": (
        19, "g (float[4] x) => (float[2, 2] y) <int64[2] s = {2, 2}> { a = Cast <to = 1, saturate = 1> (x) "
            "y = Reshape <allowzero = 0> (a, s) }",
        13, "g (float[4] x) => (float[2, 2] y) <int64[2] s = {2, 2}> { a = Cast <to = 1> (x) y = Reshape (a, s) }",
    ),
    "a number as a tensor": (
        13, "g (float[4] x) => (float[4] y) { c = Constant <value_float = 2.0> () y = Mul (x, c) }",
        11, "g (float[4] x) => (float[4] y) { c = Constant <value = float {2.0}> () y = Mul (x, c) }",
    ),
    "operands of Resize": (
        13, 'g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] s = {1, 1, 2, 2}> '
            '{ y = Resize <mode = "nearest"> (x, , s) }',
        11, 'g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] s = {1, 1, 2, 2}, float[0] e = {}> '
            '{ y = Resize <mode = "nearest"> (x, e, s) }',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOWERED)
def test_lowers(name: str) -> None:
    before, graph, version, after = LOWERED[name]
    assert_rewrites(
        ConvertOpset(version=version), before=text(before, graph), after=text(version, after)
    )


def test_reaches_bodies_and_functions_and_leaves_other_domains_alone() -> None:
    assert_rewrites(
        ConvertOpset(version=18),
        before="""
            <ir_version: 8, opset_import: ["" : 13, "f" : 1, "ai.onnx.ml" : 2]>
            g (float[2, 3] x, bool c) => (float[2, 1] y) {
              a = f.mean (x)
              y = If (c) <
                then_branch = t () => (float[2, 1] p) { p = ReduceMax <axes = [1]> (x) },
                else_branch = e () => (float[2, 1] q) { q = Neg (a) }>
            }
            <domain: "f", opset_import: ["" : 15]>
            mean (v) => (w) { w = ReduceMean <axes = [1]> (v) }
        """,
        after="""
            <ir_version: 8, opset_import: ["" : 18, "f" : 1, "ai.onnx.ml" : 2]>
            g (float[2, 3] x, bool c) => (float[2, 1] y) {
              a = f.mean (x)
              y = If (c) <
                then_branch = t () => (float[2, 1] p) <int64[1] a1 = {1}> { p = ReduceMax (x, a1) },
                else_branch = e () => (float[2, 1] q) { q = Neg (a) }>
            }
            <domain: "f", opset_import: ["" : 18]>
            mean (v) => (w) { i = Constant <value = int64[1] {1}> () w = ReduceMean (v, i) }
        """,
    )


def test_everything_around_the_change_stays() -> None:
    proto = model(text(13, """
        g (float[N, 3] x, float[3] d = {1, 2, 3}) => (float[N, 1] y) <float[3] w = {1, 2, 3}, float[N, 3] a> {
          [one] a = Add (x, w)
          [two] b = Mul (a, d)
          [three] y = ReduceMean <axes = [1]> (b)
        }"""))  # fmt: skip
    proto.metadata_props.add(key="k", value="v")
    proto.producer_name, proto.doc_string, proto.graph.doc_string = "p", "d", "e"
    for node in proto.graph.node:
        node.doc_string = f"about {node.name}"
        node.metadata_props.add(key="n", value=node.name)
    got = Pipeline((ConvertOpset(version=18),)).run(proto).model.to_proto()
    expected = Model.load(proto).to_proto()
    expected.opset_import[0].version = 18
    del expected.graph.node[2].attribute[:]
    expected.graph.node[2].input.append("y_axes")
    made = [tensor for tensor in got.graph.initializer if tensor.name == "y_axes"]
    expected.graph.initializer.extend(made)
    assert difference(expected, got) == ""
    assert [node.name for node in got.graph.node] == ["one", "two", "three"]
    assert got.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


def test_weights_are_neither_copied_nor_read() -> None:
    proto = model(
        text(13, "g (float[2, 64] x) => (float[2, 64] y) <float[64, 64] w> { y = MatMul (x, w) }")
    )
    source = Model.load(proto)
    tensor = source.graph.initializers["w"].const_value
    result = Pipeline((ConvertOpset(version=20, verify=False),)).run(source).model
    assert result.graph.initializers["w"].const_value is tensor


def test_external_data_stays_outside(tmp_path: Path) -> None:
    proto = model(
        text(13, "g (float[2, 64] x) => (float[2, 64] y) <float[64, 64] w> { y = MatMul (x, w) }")
    )
    path = tmp_path / "m.onnx"
    before = onnx.ModelProto.FromString(proto.SerializeToString())
    onnx.save(proto, path, save_as_external_data=True, location="w.data", size_threshold=0)
    made = Pipeline((ConvertOpset(version=20),)).run(path).model
    made.save(tmp_path / "n.onnx")
    assert (tmp_path / "n.onnx.data").stat().st_size == 64 * 64 * 4
    assert_same(before, onnx.load(tmp_path / "n.onnx"), runtimes=("onnxruntime",))


def test_the_format_becomes_the_one_of_the_opset_but_weights_never_become_defaults() -> None:
    graph = "g (float[2] x) => (float[2] y) { y = Relu (x) }"
    for before, after in ((3, 3), (7, 9), (10, 10)):
        made = Pipeline((ConvertOpset(version=20),)).run(model(text(13, graph, before))).model
        assert made.ir_version == after


REFUSED = {
    "what is not there yet": (20, "g (float[2] x) => (float[2] y) { y = Gelu (x) }", 18, 'Gelu "y": it came with'),
    "another axis": (
        13, "g (float[2, 3] x) => (float[2, 3] y) { y = Softmax <axis = 0> (x) }", 11, "another axis"),
    "training": (
        9, "g (float[2, 3] x, float[3] s) => (float[2, 3] y, float[3] a, float[3] b, float[3] c, float[3] d) "
        "{ y, a, b, c, d = BatchNormalization (x, s, s, s, s) }", 14, "training"),
    "every place by itself": (
        8, "g (float[2, 3] x, float[3] s) => (float[2, 3] y) "
        "{ y = BatchNormalization <spatial = 0> (x, s, s, s, s) }", 9, "spatial"),
    "a mask": (
        10, "g (float[2] x) => (float[2] y, bool[2] m) { y, m = Dropout (x) }", 12, "mask"),
    "rounding when shrinking": (
        10, "g (float[1, 1, 5, 5] x) => (float[1, 1, 3, 3] y) <float[4] s = {1, 1, 0.7, 0.7}> "
        "{ y = Resize (x, s) }", 11, "shrink"),
    "scales that are computed": (
        10, "g (float[1, 1, 5, 5] x, float[4] s) => (float[1, 1, A, B] y) { y = Resize (x, s) }", 11, "shrink"),
    "a mode that is gone": (
        11, 'g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[0] r = {}, float[4] s = {1, 1, 2, 2}> '
        '{ y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn"> (x, r, s) }', 13, "is gone"),
    "indices that may be negative": (
        9, "g (int64[2] x) => (float[2, 3] y) <int64 d = {3}, float[2] v = {0, 1}> { y = OneHot (x, d, v) }",
        11, "negative"),
    "axes that are computed": (
        13, "g (float[1, 2] x, int64[1] a) => (float[2] y) { y = Squeeze (x, a) }", 11, "computed"),
    "nothing reduced": (
        18, "g (float[2] x) => (float[2] y) { y = ReduceSum <noop_with_empty_axes = 1> (x) }", 11, "noop"),
    "a type that is not there": (
        13, "g (bfloat16[2] x) => (bfloat16[2] y) { y = Abs (x) }", 12, "bfloat16"),
    "operands of two types": (
        13, "g (float[2] x, double[2] n) => (float[2] y) { y = Pow (x, n) }", 11, "one type"),
    "an attribute that is not there": (
        15, "g (float[2, 3] x) => (int64[1] y) { y = Shape <start = 1> (x) }", 13, "start"),
    "too old to lower": (13, "g (float[2] x) => (float[2] y) { y = Abs (x) }", 10, "where lowering ends"),
    "too old to raise": (5, "g (float[2] x) => (float[2] y) { y = Abs (x) }", 13, "where raising begins"),
    "unknown": (13, "g (float[2] x) => (float[2] y) { y = Abs (x) }", 99, "not known here"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    before, graph, version, why = REFUSED[name]
    with pytest.raises(UserError, match="cannot convert") as caught:
        Pipeline((ConvertOpset(version=version),)).run(model(text(before, graph)))
    assert why in caught.value.message
    assert "\n" not in caught.value.message


def test_an_attribute_that_the_caller_sets_is_refused() -> None:
    proto = model("""
        <ir_version: 8, opset_import: ["" : 13, "f" : 1]>
        g (float[2, 3] x) => (float[2, 1] y) { y = f.mean <a = [1]> (x) }
        <domain: "f", opset_import: ["" : 13]>
        mean <a> (v) => (w) { w = ReduceMean <axes: ints = @a> (v) }
    """)
    with pytest.raises(UserError, match="set by the caller"):
        Pipeline((ConvertOpset(version=18),)).run(proto)


def test_without_a_version_it_goes_as_far_as_it_can() -> None:
    plain = model(text(13, "g (float[2] x) => (float[2] y) { y = Relu (x) }"))
    assert Pipeline((ConvertOpset(),)).run(plain).model.opset == newest_opset()
    graph = "g (int64[2] x) => (float[2, 3] y) <int64 d = {3}, float[2] v = {0, 1}> { y = OneHot (x, d, v) }"
    result = Pipeline((ConvertOpset(),)).run(model(text(9, graph)))
    assert result.model.opset == 10
    assert [(found.code, found.where.name) for found in result.diagnostics] == [("OPS101", "y")]
    tossed = model(text(13, "g (float[2] x) => (float[2] y) { y = RandomUniformLike (x) }"))
    assert Pipeline((ConvertOpset(),)).run(tossed).model.opset == 21  # the last one that runs
    with pytest.raises(UserError, match="cannot load"):
        optimize(tossed, opset=22)


def test_without_a_version_a_model_that_cannot_be_raised_stays() -> None:
    graph = "g (float[2] x) => (float[2] y) { y = Affine <alpha = 1.0, beta = 0.0> (x) }"
    assert_refuses(
        ConvertOpset(),
        text(5, graph.replace("Affine <alpha = 1.0, beta = 0.0>", "Abs")),
        code="OPS101",
    )


def test_a_model_of_other_domains_has_nothing_to_convert() -> None:
    graph = "g (float[2] x) => (float[2] y) { y = ai.onnx.ml.Binarizer (x) }"
    assert_refuses(
        ConvertOpset(), f'<ir_version: 8, opset_import: ["ai.onnx.ml" : 2]> {graph}', code="OPS102"
    )


def test_other_numbers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UP, ("Softmax", 13), lambda site: None)
    graph = "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax (x) }"
    with pytest.raises(UserError, match="not compute the same"):
        Pipeline((ConvertOpset(version=13),)).run(model(text(11, graph)))


def test_what_the_standard_does_not_allow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UP, ("ReduceMean", 18), lambda site: None)
    graph = "g (float[2, 3] x) => (float[2, 1] y) { y = ReduceMean <axes = [1]> (x) }"
    with pytest.raises(UserError, match="would not be valid"):
        Pipeline((ConvertOpset(version=18, verify=False),)).run(model(text(13, graph)))


def test_optimize_uses_what_the_newer_opset_has() -> None:
    graph = """
        g (float[2, 8] x) => (float[2, 8] y) <float two = {2}, float eps = {0.00001}, float[8] s, float[8] b> {
          m = ReduceMean <axes = [-1]> (x)
          d = Sub (x, m)
          q = Pow (d, two)
          v = ReduceMean <axes = [-1]> (q)
          e = Add (v, eps)
          r = Sqrt (e)
          n = Div (d, r)
          t = Mul (n, s)
          y = Add (t, b)
        }"""
    source = model(text(13, graph))
    kept, raised = optimize(source).model, optimize(source, opset=17).model
    assert kept.opset == 13
    assert "LayerNormalization" not in {node.op_type for node in kept.nodes()}
    assert [node.op_type for node in raised.nodes()] == ["LayerNormalization"]
    assert_same(source, raised.to_proto(), rtol=1e-4, atol=1e-5)


# -- the whole standard --------------------------------------------------------------------------------


def test_every_change_that_a_schema_shows_was_looked_at() -> None:
    """A new release of onnx that changes an operator visibly fails here."""
    assert defs.onnx_opset_version() <= REVIEWED, "look at the new opset, then raise REVIEWED"
    missing = []
    for name, old, new in _steps():
        removed = set(old.attributes) - set(new.attributes)
        shared = set(old.attributes) & set(new.attributes)
        changed = [k for k in shared if _default(old, k) != _default(new, k)]
        needed = [each.option for each in new.inputs[: len(old.inputs)]]
        before = [each.option for each in old.inputs]
        grown = [
            b
            for a, b in zip(before, needed, strict=False)
            if a != b and b == defs.OpSchema.FormalParameterOption.Single
        ]
        if (removed or changed or grown or new.deprecated) and (name, new.since_version) not in UP:
            missing.append((name, new.since_version))
    assert missing == []


def test_types_that_an_operator_loses_are_few() -> None:
    found = {
        name
        for name, old, new in _steps()
        if any(lost_types(name, old.since_version, new.since_version)[0])
    }
    assert "Erf" in found
    assert len(found) < 8


def _steps() -> list[tuple[str, defs.OpSchema, defs.OpSchema]]:
    by_name: dict[str, list[defs.OpSchema]] = {}
    for schema in defs.get_all_schemas_with_history():
        if not schema.domain:
            by_name.setdefault(schema.name, []).append(schema)
    found = []
    for name, schemas in by_name.items():
        ordered = sorted(schemas, key=lambda each: each.since_version)
        found += [(name, old, new) for old, new in pairwise(ordered) if new.since_version > OLDEST]
    return found


def _default(schema: defs.OpSchema, name: str) -> object:
    default = schema.attributes[name].default_value
    return onnx.helper.get_attribute_value(default) if default.name else None


# -- properties ----------------------------------------------------------------------------------------


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(drawn=graphs(), version=st.integers(13, 26))
def test_whatever_is_converted_computes_the_same_there_and_back(drawn: str, version: int) -> None:
    source, rewrite = model(drawn), Pipeline((ConvertOpset(version=version),))
    try:
        there = rewrite.run(source).model.to_proto()
    except UserError:
        return
    onnx.checker.check_model(there, full_check=True)
    assert not rewrite.run(there).changed
    assert_rolls_back(ConvertOpset(version=version), source)
    back = Pipeline((ConvertOpset(version=13),)).run(there).model.to_proto()
    if not varies(Model.load(source)):
        assert_same(source, there, runtimes=("onnxruntime",), rtol=0, atol=0)
        assert_same(source, back, runtimes=("onnxruntime",), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 20])
@pytest.mark.parametrize("version", [13, 21])
def test_whatever_operators_are_drawn_compute_the_same(opset: int, version: int) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(25):
        try:
            drawn = draw_any(seed, 4, OPERATORS[(7 * seed + opset) % len(OPERATORS)], opset)
            known = references(drawn.proto, {kind: drawn.feeds(kind) for kind in VARIANTS})
        except RefusedError:
            continue
        except RUNTIME_ERRORS:
            continue
        verdict = judge(drawn.proto, f"convert-opset{{version={version}}}", known)
        assert verdict.outcome in {"refused", *OUTCOMES} - (BAD - {"refused"}), (seed, verdict)
        outcomes[verdict.outcome] += 1
    assert outcomes["exact"] + outcomes["unchanged"] >= 8, outcomes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the suite's own arithmetic
def test_the_whole_backend_suite_keeps_its_outputs() -> None:
    from onnx.backend.test.case.node import collect_testcases

    counts: Counter[str] = Counter()
    for case in collect_testcases(None):
        source, data = case.model, case.data_sets
        if source is None or data is None:
            continue
        version = max((each.version for each in source.opset_import if not each.domain), default=0)
        for target in (13, 18, 28) if version else ():
            counts[_kept(source, data[0][0], target)] += 1
    assert counts["same"] > 3000, counts


def _kept(source: onnx.ModelProto, inputs: Sequence[Any], target: int) -> str:
    rewrite = Pipeline((ConvertOpset(version=target, verify=False),))
    try:
        made = rewrite.run(source).model.to_proto()
    except UserError:
        return "refused"
    if varies(Model.load(source)):
        return "not run"
    feeds = {
        info.name: onnx.numpy_helper.to_array(value)
        if isinstance(value, onnx.TensorProto)
        else value
        for info, value in zip(source.graph.input, inputs, strict=False)
    }
    # The reference evaluator has one form of most operators and takes old nodes for new ones.
    for runtime in RUNTIMES if target == REVIEWED else ("onnxruntime",):
        try:
            run(source, feeds, runtime)
            run(made, feeds, runtime)
        except Exception:  # noqa: BLE001 - neither of them has everything
            continue
        assert_same_numbers(source, made, feeds, runtimes=(runtime,), rtol=1e-5, atol=1e-6)
        return "same"
    return "not run"
