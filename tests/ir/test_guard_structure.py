"""Structure: what has no meaning is refused with its place, what only needs tidying is reported."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, parser

from onnxcomp.errors import ModelError
from onnxcomp.ir import Model
from onnxcomp.ir.structure import CODES, check_structure

HEAD = '<ir_version: 8, opset_import: ["" : 13, "f" : 1, "com.microsoft" : 1]>\n'


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(HEAD + text)


def small() -> onnx.ModelProto:
    return model("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { [n] y = Add (x, w) }")


def refusal(broken: onnx.ModelProto | str) -> str:
    with pytest.raises(ModelError) as caught:
        check_structure(model(broken) if isinstance(broken, str) else broken)
    text = str(caught.value)
    assert "\n" not in text
    return text


def codes(valid: onnx.ModelProto | str) -> list[str]:
    structure = check_structure(model(valid) if isinstance(valid, str) else valid)
    assert {each.code for each in structure.diagnostics} <= set(CODES)
    return [each.code for each in structure.diagnostics]


# -- valid models are left in peace


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (float[2] y) { y = Neg (x) }",
        "g (float[2] x) => (float[2] x) { }",
        "g () => (float[2] w) <float[2] w = {1, 2}> { }",
        "g (float[2] x) => (float[2] y, float[2] y) { y = Neg (x) }",
        "g (float[2] x, float[2] unused) => (float[2] y, float[2] z) { y = Neg (x) z = Abs (y) }",
        "g (float[2] x) => (float[2] y) <float[2] y = {1, 2}> { }",
        "g (float[2] x) => (float[2] y) { y = com.microsoft.Anything (x) }",
        "g (float[2] x) => (float[2] y) { y = f.custom (x) }",
        "g (float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] s = {1,1,2,2}> "
        "{ y = Resize (x, , s) }",
        "g (float[2] x) => (float[2] y) { y, = Dropout (x) }",
    ],
)
def test_accepts(text: str) -> None:
    assert codes(text) == []


def test_a_body_captures_and_hides() -> None:
    assert (
        codes("""g (float[2] x, bool c) => (float[2] y) {
          n = Constant <value_int = 2> ()
          w = Neg (x)
          y = Loop (n, c, x) <body = b (int64 i, bool cc, float[2] x) => (bool c2, float[2] o)
            <float[2] w = {5, 6}> {
              c2 = Identity (c)
              o = If (cc) <then_branch = t () => (float[2] z) { z = Add (x, w) },
                           else_branch = e () => (float[2] z) { z = Identity (x) }>
            }>
        }""")
        == []
    )


def test_a_body_defines_what_is_named_outside_later() -> None:
    assert (
        codes("""g (float[2] x, bool c) => (float[2] y) {
          q = If (c) <then_branch = t () => (float[2] z) { w = Neg (x) z = Neg (w) },
                      else_branch = e () => (float[2] z) { z = Identity (x) }>
          w = Abs (q)
          y = Neg (w)
        }""")
        == []
    )


def test_an_overridable_initializer_and_a_sparse_one() -> None:
    proto = small()
    proto.graph.input.add().CopyFrom(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    proto.graph.node[0].input[0] = "s"
    sparse = proto.graph.sparse_initializer.add(dims=[2])
    sparse.values.CopyFrom(helper.make_tensor("s", TensorProto.FLOAT, [1], [3.0]))
    sparse.indices.CopyFrom(helper.make_tensor("s_at", TensorProto.INT64, [1], [1]))
    assert codes(proto) == ["MDL107"]
    sparse.indices.int64_data[0] = 2
    assert "outside of its shape" in refusal(proto)


# -- findings


def test_unsorted_nodes_are_reported() -> None:
    structure = check_structure(model("g (float[2] x) => (float[2] y) { y = Neg (w) w = Abs (x) }"))
    assert structure.needs_sort
    assert [each.code for each in structure.diagnostics] == ["MDL101"]


def test_a_body_that_reads_what_comes_later_outside_is_reported() -> None:
    assert codes("""g (float[2] x, bool c) => (float[2] y) {
      y = If (c) <then_branch = t () => (float[2] z) { z = Neg (w) },
                  else_branch = e () => (float[2] z) { z = Identity (x) }>
      w = Neg (x)
    }""") == ["MDL101"]


def test_an_unsorted_body_is_reported() -> None:
    assert codes("""g (float[2] x, bool c) => (float[2] y) {
      y = If (c) <then_branch = t () => (float[2] z) { z = Neg (w) w = Abs (x) },
                  else_branch = e () => (float[2] z) { z = Identity (x) }>
    }""") == ["MDL101"]


def test_two_nodes_of_one_name_are_reported() -> None:
    text = "g (float[2] x) => (float[2] y) { [n] a = Neg (x) [n] y = Neg (a) }"
    structure = check_structure(model(text))
    assert structure.duplicate_node_names
    assert codes(text) == ["MDL102"]


def test_operators_that_only_onnxruntime_has_are_reported() -> None:
    text = "g (float[2] x, float[2] s) => (float[2] y) { y = SimplifiedLayerNormalization (x, s) }"
    assert codes(text) == ["MDL103"]
    assert codes(text.replace("Simplified", "")) == ["MDL103"]


def test_weights_that_are_inputs_are_reported_where_callers_may_replace_them() -> None:
    text = "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Add (x, w) }"
    assert codes(text) == ["MDL107"]
    proto = model(text)
    proto.ir_version = 3
    assert codes(proto) == []


def test_operators_of_the_runtime_need_no_import() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu (x) }")
    del proto.opset_import[1:]
    structure = check_structure(proto)
    assert structure.undeclared == {"com.microsoft"}
    assert [each.code for each in structure.diagnostics] == ["MDL108"]
    loaded = Model.load(proto)
    assert loaded.opset_imports == {"": 13, "com.microsoft": 1}
    assert len(proto.opset_import) == 1, "the caller's model was changed"
    proto.graph.node[0].domain = "ai.onnx.ml"
    assert "whose version is not stated" in refusal(proto)


def test_negative_declared_dimensions_and_a_missing_name_are_reported() -> None:
    proto = small()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    proto.graph.name = ""
    assert codes(proto) == ["MDL105", "MDL104"]


# -- names


def test_dangling_inputs() -> None:
    said = refusal("g (float[2] x) => (float[2] y) { [n] y = Add (x, gone) }")
    assert 'Add "n"' in said
    assert '"gone" (input 1)' in said


def test_names_of_a_sibling_body_are_not_visible() -> None:
    assert '"q"' in refusal("""g (float[2] x, bool c) => (float[2] y) {
      y = If (c) <then_branch = t () => (float[2] z) { z = Identity (q) },
                  else_branch = e () => (float[2] z2) { q = Neg (x) z2 = Identity (q) }>
    }""")


def test_functions_do_not_see_the_graph() -> None:
    assert '"x"' in refusal("""g (float[2] x) => (float[2] y) { y = f.foo (x) }
      <domain: "f", opset_import: ["" : 13]> foo (a) => (b) { b = Add (a, x) }""")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("g (float[2] x) => (float[2] y) { y = Neg (x) y = Abs (x) }", "also an output of Neg"),
        ("g (float[2] x) => (float[2] x) { x = Neg (x) }", "also an input"),
        ("g (float[2] x) => (float[2] w) <float[2] w={1,2}> { w = Neg (x) }", "or initializer"),
        ("g (float[2] x) => (float[1] y) { y, y = Split (x) }", "another of its outputs"),
        ("g (float[2] x, float[2] x) => (float[2] y) { y = Neg (x) }", "two inputs"),
        ("g (float[2] x) => (float[2] q) { y = Neg (x) }", 'output "q"'),
        ("g (float[2] x) => () { y = Neg (x) }", "has no outputs"),
        ("g () => () { }", "empty"),
    ],
)
def test_definitions(text: str, said: str) -> None:
    assert said in refusal(text)


def test_an_output_that_hides_an_outer_value() -> None:
    assert "also a value outside" in refusal("""g (float[2] x, bool c) => (float[2] y) {
      y = If (c) <then_branch = t () => (float[2] z) { x = Relu (x) z = Neg (x) },
                  else_branch = e () => (float[2] z) { z = Identity (x) }>
    }""")


def test_a_body_that_returns_an_outer_value() -> None:
    assert "from outside" in refusal("""g (float[2] x, bool c) => (float[2] y) {
      y = If (c) <then_branch = t () => (float[2] x) { },
                  else_branch = e () => (float[2] z) { z = Identity (x) }>
    }""")


def test_two_initializers_of_one_name_and_one_without() -> None:
    proto = small()
    proto.graph.initializer.append(proto.graph.initializer[0])
    assert 'two initializers of the graph are named "w"' in refusal(proto)
    proto.graph.initializer[1].name = ""
    assert "has no name" in refusal(proto)


# -- cycles


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "g (float[2] x) => (float[2] y) { [n] y = Add (x, y) }",
            'cycle of 1 node through Add "n"',
        ),
        (
            "g (float[2] x) => (float[2] y) "
            "{ [a] p = Add (x, q) [b] q = Neg (p) [c] y = Neg (q) [d] z = Neg (y) }",
            "cycle of 2 nodes",
        ),
        (
            """g (float[2] x, bool c) => (float[2] y) {
              [if] y = If (c) <then_branch = t () => (float[2] z) { z = Neg (w) },
                               else_branch = e () => (float[2] z) { z = Identity (x) }>
              [back] w = Neg (y)
            }""",
            "cycle of 2 nodes",
        ),
        (
            """g (float[2] x, bool c) => (float[2] y) {
              [if] y = If (c) <then_branch = t () => (float[2] z) { z = Neg (y) },
                               else_branch = e () => (float[2] z) { z = Identity (x) }>
            }""",
            "cycle of 1 node",
        ),
        (
            """g (float[2] x, bool c) => (float[2] y) {
              y = If (c) <then_branch = t () => (float[2] z) { [in] z = Add (w, x) w = Neg (z) },
                          else_branch = e () => (float[2] z) { z = Identity (x) }>
            }""",
            "a body of If",
        ),
    ],
)
def test_cycles_name_a_node_on_them(text: str, said: str) -> None:
    assert said in refusal(text)


def test_a_long_cycle_does_not_recurse() -> None:
    graph = onnx.GraphProto(name="g")
    for index in range(5000):
        graph.node.add(op_type="Neg", input=[f"v{index}"], output=[f"v{(index + 1) % 5000}"])
    graph.output.append(helper.make_tensor_value_info("v0", TensorProto.FLOAT, [2]))
    opsets = [helper.make_opsetid("", 13)]
    proto = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    assert "cycle of 5000 nodes" in refusal(proto)


# -- versions


@pytest.mark.parametrize(
    ("domain", "version", "said"),
    [
        ("", 9999, "opset 9999"),
        ("", 0, "opset 0"),
        ("", -1, "opset -1"),
        ("ai.onnx.ml", 99, "ai.onnx.ml"),
    ],
)
def test_versions_that_do_not_exist(domain: str, version: int, said: str) -> None:
    proto = small()
    del proto.opset_import[:]
    proto.opset_import.add(domain=domain, version=version)
    assert said in refusal(proto)


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_one_domain_with_two_versions(domain: str) -> None:
    proto = small()
    proto.opset_import.add(domain=domain, version=12)
    assert "twice" in refusal(proto)
    proto.opset_import[-1].version = 13
    assert codes(proto) == []


def test_a_domain_without_a_version() -> None:
    proto = small()
    proto.graph.node[0].domain = "other"
    assert '"other"' in refusal(proto)
    del proto.opset_import[:]
    assert "which opset" in refusal(proto)


def test_both_spellings_of_the_main_domain() -> None:
    proto = small()
    proto.graph.node[0].domain = "ai.onnx"
    assert codes(proto) == []
    proto.opset_import[0].domain = "ai.onnx"
    proto.graph.node[0].domain = ""
    assert codes(proto) == []


@pytest.mark.parametrize(("version", "said"), [(0, "IR version"), (99, "IR version 99")])
def test_ir_versions(version: int, said: str) -> None:
    proto = small()
    proto.ir_version = version
    assert said in refusal(proto)


# -- operators


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("y = Nonsense (x)", "does not exist in opset 13"),
        ("y = Gelu (x)", "it came with 20"),
        ("y = Scatter (x, x, x)", "deprecated"),
        ("y = Neg (x, x)", "has 2 inputs, it takes 1"),
        ("y = Add (x)", "has 1 inputs, it takes 2"),
        ("y, z = Neg (x)", "has 2 outputs"),
        ("y = Concat <axis = 0> ()", "at least 1"),
        ("y = Add (, x)", "lacks its input 0"),
        ("y = Relu <foo = 1> (x)", "attribute foo"),
        ("y = Softmax <axis = 1.5> (x)", "is FLOAT, not INT"),
        ("y = Cast (x)", "lacks its attribute to"),
        ('y = MaxPool <kernel_shape = [1], auto_pad = "FOO"> (x)', "SAME_UPPER"),
        ('y = Pad <mode = "bar"> (x, p)', "constant, edge"),
        ("y = Softmax <axis : int = @axis> (x)", "is not in one"),
    ],
)
def test_operators(node: str, said: str) -> None:
    text = f"g (float[2] x, int64[2] p) => (float[2] y) {{ {node} }}"
    assert said in refusal(text)


def test_attributes_that_are_ambiguous() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Softmax <axis = 0> (x) }")
    attributes = proto.graph.node[0].attribute
    attributes[0].t.SetInParent()
    assert "two values" in refusal(proto)
    attributes[0].ClearField("t")
    attributes.append(attributes[0])
    assert "two attributes axis" in refusal(proto)
    attributes[1].name = ""
    assert "without a name" in refusal(proto)
    del attributes[1]
    attributes[0].type = AttributeProto.UNDEFINED
    assert "no type" in refusal(proto)
    attributes[0].type = AttributeProto.TENSOR
    assert "no value" in refusal(proto)


def test_an_attribute_of_zero_may_be_left_out() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Softmax <axis = 0> (x) }")
    proto.graph.node[0].attribute[0].ClearField("i")
    assert codes(proto) == []


@pytest.mark.parametrize(
    ("branch", "said"),
    [
        ("t () => () { z = Neg (x) }", "has 0 outputs"),
        ("t () => (float[2] z, float[2] q) { z = Neg (x) q = Neg (z) }", "has 2 outputs"),
        ("t (float[2] i) => (float[2] z) { z = Neg (i) }", "has inputs"),
    ],
)
def test_branches(branch: str, said: str) -> None:
    assert said in refusal(f"""g (float[2] x, bool c) => (float[2] y) {{
      y = If (c) <then_branch = {branch},
                  else_branch = e () => (float[2] z) {{ z = Identity (x) }}>
    }}""")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("(int64 i, bool c) => (bool d, float[2] o) { d = Identity (c) o = Neg (x) }", "2 inputs"),
        ("(int64 i, bool c, float[2] k) => (bool d) { d = Identity (c) }", "1 outputs"),
    ],
)
def test_loops(body: str, said: str) -> None:
    assert said in refusal(f"""g (float[2] x, bool c) => (float[2] y) {{
      n = Constant <value_int = 2> ()
      y = Loop (n, c, x) <body = b {body}>
    }}""")


@pytest.mark.parametrize(
    ("count", "body", "said"),
    [
        (1, "(float s) => (float t) { t = Neg (s) }", "1 inputs"),
        (1, "(float s, float e) => (float t) { t = Add (s, e) }", "1 outputs"),
        (3, "(float s, float e) => (float t, float u) { t = Add (s, e) u = Neg (e) }", "scans 3"),
    ],
)
def test_scans(count: int, body: str, said: str) -> None:
    assert said in refusal(f"""g (float s, float[3] x) => (float y, float[3] z) {{
      y, z = Scan <num_scan_inputs = {count}, body = b {body}> (s, x)
    }}""")


# -- functions


FOO = '<domain: "f", opset_import: ["" : 13]> foo (a, b) => (c) { c = Add (a, b) }'


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("y = f.bar (x)", "not in the model"),
        ("y = f.foo (x)", 'needs "b" too'),
        ("y = f.foo (x, x, x)", "has 3 inputs"),
        ("y, z = f.foo (x, x)", "has 2 outputs"),
    ],
)
def test_calls(call: str, said: str) -> None:
    assert said in refusal(f"g (float[2] x) => (float[2] y) {{ {call} }} {FOO}")


def test_calls_that_are_right() -> None:
    text = "g (float[2] x) => (float[2] y) { y = f.foo (x, x) }"
    assert codes(text + FOO) == []
    optional = FOO.replace("Add (a, b)", "Clip (a, b)")
    assert codes(text.replace("(x, x)", "(x)") + optional) == []


def test_functions_that_are_not_well_defined() -> None:
    text = "g (float[2] x) => (float[2] y) { y = f.foo (x, x) }"
    assert "twice" in refusal(text + FOO + FOO)
    assert '"q"' in refusal(text + FOO.replace("Add (a, b)", "Add (a, q)"))
    assert 'output "c"' in refusal(text + FOO.replace("c = Add", "d = Add"))
    assert "not stated" in refusal(text + FOO.replace('"" : 13', '"q" : 13'))
    assert "two inputs" in refusal(text + FOO.replace("(a, b) =>", "(a, a) =>"))


def test_a_function_attribute_that_has_no_default() -> None:
    text = "g (float[2] x) => (float[2] y) { y = f.soft %s (x) }"
    soft = """<domain: "f", opset_import: ["" : 13]> soft <axis> (a) => (b)
      { b = Softmax <axis : int = @axis> (a) }"""
    assert "lacks its attribute axis" in refusal(text % "" + soft)
    assert codes(text % "<axis = 0>" + soft) == []


def test_a_function_with_the_name_of_a_standard_operator() -> None:
    text = "g (float[2] x) => (float[2] y) { y = Relu (x) }"
    function = '<domain: "%s", opset_import: ["" : 13]> Relu (a) => (b) { b = Neg (a) }'
    assert "readers disagree" in refusal(text + function % "")
    assert codes(text + function % "f") == []
    # In this opset the standard does not have it yet: no doubt which one is meant.
    assert codes((text + function % "").replace("Relu", "Gelu")) == []


# -- tensors


@pytest.mark.parametrize("kind", sorted(set(TensorProto.DataType.values()) - {0}))
@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_every_element_type_as_onnx_makes_it(kind: int, count: int) -> None:
    proto = small()
    values: list[Any] = [b"s"] * count if kind == TensorProto.STRING else [1] * count
    tensor = helper.make_tensor("extra", kind, [count], values)
    proto.graph.initializer.append(tensor)
    assert codes(proto) == []
    tensor.dims[0] = count + 9
    proto.graph.initializer[-1].CopyFrom(tensor)
    assert 'initializer "extra"' in refusal(proto)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dims": [-2]}, "negative dimension"),
        ({"dims": [3]}, "needs 3"),
        ({"dims": [1]}, "needs 1"),
        ({"dims": [2**40, 2**40]}, "needs 1,208,925"),
        ({"data_type": 77}, "element type 77"),
        ({"data_type": 0}, "UNDEFINED"),
        ({"data_type": 11}, "values"),
        ({"data_type": 8}, "values"),
        ({"raw_data": b"12345678"}, "two fields"),
        ({"raw_data": b"1234567"}, "7 bytes"),
        ({"double_data": [1.0]}, "double_data"),
        ({"data_location": 1}, "both"),
    ],
)
def test_broken_tensors(change: dict[str, Any], said: str) -> None:
    proto = small()
    fields: dict[str, Any] = {
        "name": "w",
        "data_type": 1,
        "dims": [2],
        "float_data": [1.0, 2.0],
    } | change
    proto.graph.initializer[0].CopyFrom(TensorProto(**fields))
    said_all = refusal(proto)
    assert said in said_all
    assert '"w"' in said_all


def test_a_broken_tensor_in_an_attribute_of_a_body() -> None:
    proto = model("""g (float[2] x, bool c) => (float[2] y) {
      y = If (c) <then_branch = t () => (float[2] z) { [k] z = Constant <value = float[2] {1, 2}> () },
                  else_branch = e () => (float[2] z) { z = Identity (x) }>
    }""")
    branch = proto.graph.node[0].attribute[0].g
    branch.node[0].attribute[0].t.dims[0] = 3
    assert 'attribute value of Constant "k"' in refusal(proto)


# -- the interface


def test_types_of_the_interface() -> None:
    proto = small()
    proto.graph.output[0].ClearField("type")
    assert codes(proto) == []
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert codes(proto) == []
    proto.graph.input[0].type.tensor_type.elem_type = 99
    assert "number 99" in refusal(proto)
    proto.graph.input[0].ClearField("type")
    assert 'input "x" has no type' in refusal(proto)


def test_names_are_printed_safely() -> None:
    proto = small()
    proto.graph.node[0].op_type = "Ad\x1b[31m\nd" + "x" * 10_000
    proto.graph.node[0].name = "%s\n\x1b[2J" + "y" * 10_000
    said = refusal(proto)
    assert "\x1b" not in said
    assert len(said) < 400


@pytest.mark.parametrize(
    "field",
    ["x", "w", "n", "Add", "g", "com.microsoft", "key", "value", "about", "dim", "meaning", "axes"],
)
def test_names_that_are_not_text(field: str) -> None:
    proto = small()
    proto.graph.node[0].doc_string = "about"
    proto.graph.metadata_props.add(key="key", value="value")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "dim"
    proto.graph.input[0].type.denotation = "meaning"
    proto.graph.node.add(op_type="Softmax", input=["y"], output=["axes"])
    assert codes(proto) == []
    data = proto.SerializeToString()
    length = bytes([len(field)])
    assert length + field.encode() in data
    broken = data.replace(length + field.encode(), length + b"\xff" * len(field))
    assert "not valid UTF-8" in refusal(onnx.ModelProto.FromString(broken))
