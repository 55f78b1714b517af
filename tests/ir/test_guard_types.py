"""Types: contradictions are refused, declared shapes that cannot be are only reported."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxcomp.errors import ModelError
from onnxcomp.ir.structure import CODES
from onnxcomp.ir.typecheck import check_types, without_weights

HEAD = '<ir_version: 8, opset_import: ["" : 13, "f" : 1]>\n'


def refusal(text: str) -> str:
    with pytest.raises(ModelError) as caught:
        check_types(parser.parse_model(HEAD + text))
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("g (string[2] x) => (string[2] y) { [n] y = Add (x, x) }", 'Add "n": A typestr'),
        ("g (float[2] x, int64[2] z) => (float[2] y) { y = Add (x, z) }", "inconsistent type"),
        ("g (float[2] x) => (int64[2] y) { y = Neg (x) }", "elem type"),
        ("g (float[2,3] x, float[4,5] z) => (float[2,5] y) { [m] y = MatMul (x, z) }", '"m"'),
        (
            """g (float[2] x, bool c) => (float[2] y) {
              [outer] y = If (c) <then_branch = t () => (float[2] z) { [inner] z = Add (x, c) },
                                  else_branch = e () => (float[2] w) { w = Neg (x) }> }""",
            "inner",
        ),
        (
            """g (float[2] x, bool c) => (float[2] y) { [call] y = f.foo (x, c) }
            <domain: "f", opset_import: ["" : 13]> foo (a, b) => (c) { c = Add (a, b) }""",
            'foo "call"',
        ),
    ],
)
def test_contradictions(text: str, said: str) -> None:
    assert said in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (float[3] y) { y = Neg (x) }",
        "g (float[2] x) => (float[2,2] y) { y = Neg (x) }",
        "g (float[2] x) => (float[2] y) <float[7] q> { q = Abs (x) y = Neg (q) }",
        """g (float[2] x, bool c) => (float[2] y) {
          y = If (c) <then_branch = t () => (float[3] z) { z = Neg (x) },
                      else_branch = e () => (float[2] w) { w = Neg (x) }> }""",
    ],
)
def test_declared_shapes_are_reported(text: str) -> None:
    findings = check_types(parser.parse_model(HEAD + text))
    assert [each.code for each in findings] == ["MDL106"]
    assert {each.code for each in findings} <= set(CODES)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (float[2] y) { y = Neg (x) }",
        "g (float x) => (float y) { q = f.custom (x) y = Add (q, x) }",
        "g (float[2,3] x, float[3] s) => (float[2,3] y) { y = LayerNormalization (x, s) }",
    ],
)
def test_accepts(text: str) -> None:
    assert check_types(parser.parse_model(HEAD + text)) == ()


def test_io_without_shape_and_sparse_initializers_are_fine() -> None:
    model = parser.parse_model(HEAD + "g (float[2] x) => (float[2] y) { y = Add (x, s) }")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    sparse = model.graph.sparse_initializer.add(dims=[2])
    sparse.values.CopyFrom(helper.make_tensor("s", TensorProto.FLOAT, [1], [3.0]))
    sparse.indices.CopyFrom(helper.make_tensor("s_at", TensorProto.INT64, [1], [1]))
    assert check_types(model) == ()


def test_a_copy_without_weights() -> None:
    generator = np.random.default_rng(0)
    model = parser.parse_model(
        HEAD
        + """g (float[64] x, bool c) => (float[64] y) { y = If (c) <
          then_branch = t () => (float[64] z) { z = Add (x, w) },
          else_branch = e () => (float[64] z) { k = Constant () z = Add (x, k) }> }"""
    )
    model.metadata_props.add(key="k", value="v")
    large = numpy_helper.from_array(generator.normal(size=512).astype(np.float32), "w")
    small = numpy_helper.from_array(np.array([3], np.int64), "s")
    model.graph.initializer.extend([large, small])
    constant = model.graph.node[0].attribute[1].g.node[0]
    constant.attribute.append(helper.make_attribute("value", large))
    before = model.SerializeToString()

    copy = without_weights(model)

    assert model.SerializeToString() == before
    assert copy.ByteSize() < 1000
    stub, kept = copy.graph.initializer
    assert (stub.name, stub.data_type, list(stub.dims)) == ("w", TensorProto.FLOAT, [512])
    assert kept == small
    assert copy.metadata_props == model.metadata_props
    assert copy.opset_import == model.opset_import
    assert copy.graph.node[0].attribute[0] == model.graph.node[0].attribute[0]


def test_weights_that_are_elsewhere_are_not_looked_for() -> None:
    model = parser.parse_model(HEAD + "g (float[2] x) => (float[2] y) { y = Add (x, w) }")
    tensor = TensorProto(name="w", dims=[2], data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../nowhere")
    model.graph.initializer.append(tensor)
    assert check_types(model) == ()
    assert without_weights(model).graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
