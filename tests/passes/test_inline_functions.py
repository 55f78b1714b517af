"""inline-functions: the nodes of a function in the place of its call."""

from __future__ import annotations

import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp.ir import Model, ir
from onnxcomp.optimization import optimize
from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.convert.inline_functions import InlineFunctions
from tests.helpers.check import (
    assert_holds,
    assert_refuses,
    assert_rewrites,
    assert_rolls_back,
    assert_same,
    assert_unchanged,
)
from tests.helpers.text import difference, model

INLINE = InlineFunctions()
HEAD = '<ir_version: 10, opset_import: ["" : 21, "f" : 1]>'


def test_nested_calls_with_weights_of_their_own() -> None:
    outcome = assert_rewrites(
        INLINE,
        before=f"""
            {HEAD}
            g (float[2] x) => (float[2] y) <float[2] w> {{
              a = f.outer (x, w)
              y = f.inner (a)
            }}
            <domain: "f", opset_import: ["" : 21]>
            inner (p) => (r) {{ c = Constant <value = float {{2}}> () r = Mul (p, c) }}
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            outer (p, q) => (r) {{ s = Add (p, q) r = f.inner (s) }}
        """,
        after="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x) => (float[2] y) <float[2] w> {
              s = Add (x, w)
              c1 = Constant <value = float {2}> ()
              a = Mul (s, c1)
              c2 = Constant <value = float {2}> ()
              y = Mul (a, c2)
            }
        """,
    )
    assert outcome.stats["calls inlined"] == 3
    assert outcome.stats["functions removed"] == 2


def test_attributes_come_from_the_call_else_from_the_function() -> None:
    assert_rewrites(
        INLINE,
        before="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) {
              y = f.outer <a = 0> (x)
              z = f.soft <axis = 1> (x)
            }
            <domain: "f", opset_import: ["" : 21]>
            soft <axis, alpha: float = 0.25> (p) => (r) {
              s = LeakyRelu <alpha: float = @alpha> (p)
              r = Softmax <axis: int = @axis> (s)
            }
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            outer <a: int = 1> (p) => (r) { r = f.soft <axis: int = @a, alpha = 0.5> (p) }
        """,
        after="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) {
              a = LeakyRelu <alpha = 0.5> (x)
              y = Softmax <axis = 0> (a)
              b = LeakyRelu <alpha = 0.25> (x)
              z = Softmax <axis = 1> (b)
            }
        """,
        runtimes=("onnxruntime",),  # the reference evaluator cannot hand references on
    )


def test_bodies_inside_functions_and_calls_inside_bodies() -> None:
    assert_rewrites(
        INLINE,
        before="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x, bool c) => (float[2] y) {
              y = If (c) <
                then_branch = t () => (float[2] p) { p = f.choose <low = 1.0> (x, c) },
                else_branch = e () => (float[2] q) { q = f.choose <low = 2.0> (x, c) }>
            }
            <domain: "f", opset_import: ["" : 21]>
            choose <low> (v, k) => (r) {
              two = Add (v, v)
              r = If (k) <
                then_branch = t () => (a) { m = Constant <value_float: float = @low> () a = Add (two, m) },
                else_branch = e () => (b) { m = Neg (two) b = Exp (m) }>
            }
        """,
        after="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x, bool c) => (float[2] y) {
              y = If (c) <
                then_branch = t () => (float[2] p) {
                  two = Add (x, x)
                  p = If (c) <
                    then_branch = t1 () => (a) { m = Constant <value_float = 1.0> () a = Add (two, m) },
                    else_branch = e1 () => (b) { m1 = Neg (two) b = Exp (m1) }>
                },
                else_branch = e () => (float[2] q) {
                  two2 = Add (x, x)
                  q = If (c) <
                    then_branch = t2 () => (a2) { m2 = Constant <value_float = 2.0> () a2 = Add (two2, m2) },
                    else_branch = e2 () => (b2) { m3 = Neg (two2) b2 = Exp (m3) }>
                }>
            }
        """,
        full_check=False,
    )


def test_a_graph_handed_to_a_function_as_an_attribute() -> None:
    # Type inference refuses a body that captures; what comes as an IR is not inferred.
    before = Model.load(ir.from_proto(_with_graph_attribute()))
    result = Pipeline((INLINE,)).run(before)
    assert [node.op_type for node in result.model.graph] == ["Exp", "If"]
    onnx.checker.check_model(result.model.to_proto(), full_check=True)


def _with_graph_attribute() -> onnx.ModelProto:
    proto = model("""
        <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[2] x, bool c) => (float[2] y) {
          h = Exp (x)
          y = If (c) <
            then_branch = t () => (float[2] p) { p = Neg (h) },
            else_branch = e () => (float[2] q) { q = Relu (h) }>
        }
        <domain: "f", opset_import: ["" : 21]>
        maybe <body> (v, k) => (r) {
          r = If (k) <
            then_branch = t () => (a) { a = Abs (v) },
            else_branch = e () => (b) { b = Relu (v) }>
        }
    """)
    call, inner = proto.graph.node[1], proto.functions[0].node[0]
    call.op_type, call.domain = "maybe", "f"
    call.input.insert(0, "x")
    given = next(attr for attr in call.attribute if attr.name == "then_branch")
    del call.attribute[:]
    call.attribute.add(name="body", type=onnx.AttributeProto.GRAPH, g=given.g)
    reference = next(attr for attr in inner.attribute if attr.name == "then_branch")
    reference.ClearField("g")
    reference.ref_attr_name = "body"
    return proto


def test_operands_that_a_call_leaves_out_stay_left_out() -> None:
    assert_rewrites(
        INLINE,
        before="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x) => (float[2] y, float[2] z) <float two = {2}> {
              y = f.bound (x, , two)
              z = f.bound (x)
            }
            <domain: "f", opset_import: ["" : 21]>
            bound (v, low, high) => (r) { r = Clip (v, low, high) }
        """,
        after="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x) => (float[2] y, float[2] z) <float two = {2}> {
              y = Clip (x, , two)
              z = Clip (x)
            }
        """,
        runtimes=("onnxruntime",),
    )


def test_a_function_that_hands_its_input_on() -> None:
    assert_rewrites(
        INLINE,
        before="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x) => (float[2] y, float[2] z) { y, z = f.copy (x) }
            <domain: "f", opset_import: ["" : 21]>
            copy (v) => (v, r) { r = Neg (v) }
        """,
        after="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x) => (float[2] y, float[2] z) { z = Neg (x) y = Identity (x) }
        """,
        runtimes=("reference",),  # onnxruntime refuses such a function
    )


def test_overloads_are_told_apart() -> None:
    proto = model("""
        <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[2] x) => (float[2] y) { a = f.act (x) y = f.act (a) }
        <domain: "f", opset_import: ["" : 21]>
        act (v) => (r) { r = Neg (v) }
        <domain: "f", opset_import: ["" : 21]>
        act (v) => (r) { r = Exp (v) }
    """)
    proto.functions[1].overload = proto.graph.node[1].overload = "other"
    got = Pipeline((INLINE,)).run(proto).model
    assert [node.op_type for node in got.graph] == ["Neg", "Exp"]


def test_names_say_where_nodes_came_from_and_results_keep_theirs() -> None:
    proto = model("""
        <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[2] x) => (float[2] y) { [first] a = f.act (x) [second] b = f.act (a) y = Neg (b) }
        <domain: "f", opset_import: ["" : 21]>
        act (v) => (r) { [exp] s = Exp (v) [neg] r = Neg (s) }
    """)
    proto.graph.node[0].metadata_props.add(key="from", value="layer 1")
    proto.functions[0].node[0].doc_string = "why"
    proto.functions[0].node[1].metadata_props.add(key="from", value="inside")
    got = Pipeline((INLINE,)).run(proto).model.to_proto()
    nodes = got.graph.node
    assert [node.name for node in nodes[:4]] == [
        "first/exp",
        "first/neg",
        "second/exp",
        "second/neg",
    ]
    assert [list(node.output) for node in nodes[:4]] == [["first/s"], ["a"], ["second/s"], ["b"]]
    assert nodes[0].doc_string == "why"
    assert [node.metadata_props[0].value for node in nodes[:2]] == ["layer 1", "inside"]


def test_a_function_of_an_older_opset_is_converted() -> None:
    before = model("""
        <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[2, 3] x) => (float[2, 1] y) { y = f.mean (x) }
        <domain: "f", opset_import: ["" : 15]>
        mean (v) => (r) { a = Exp (v) r = ReduceMean <axes = [1]> (a) }
    """)
    expected = model("""
        <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[2, 3] x) => (float[2, 1] y) {
          a = Exp (x)
          i = Constant <value = int64[1] {1}> ()
          y = ReduceMean (a, i)
        }
    """)
    got = Pipeline((INLINE,)).run(before).model.to_proto()
    assert difference(expected, got) == ""
    assert_rolls_back(INLINE, before)


def test_a_function_that_cannot_be_converted_stays() -> None:
    graph = """
        <ir_version: 10, opset_import: ["" : 13, "f" : 1]>
        g (float[2, 3] x) => (float[2, 3] y) { y = f.act (x) }
        <domain: "f", opset_import: ["" : 20]>
        act (v) => (r) { r = Gelu (v) }
    """
    found = assert_refuses(INLINE, graph, code="FUN103", at="")
    assert "Gelu" in found.diagnostics[0].message


def test_other_domains_in_another_version_stay() -> None:
    graph = """
        <ir_version: 10, opset_import: ["" : 21, "f" : 1, "ai.onnx.ml" : 3]>
        g (float[2] x) => (float[2] y) { a = f.act (x) y = ai.onnx.ml.Binarizer (a) }
        <domain: "f", opset_import: ["" : 21, "ai.onnx.ml" : 2]>
        act (v) => (r) { r = ai.onnx.ml.Binarizer (v) }
    """
    assert_refuses(INLINE, graph, code="FUN104")


def test_a_domain_that_only_the_function_uses_gets_declared() -> None:
    graph = """
        <ir_version: 10, opset_import: ["f" : 1]>
        g (float[2] x) => (float[2] y) { y = f.act (x) }
        <domain: "f", opset_import: ["" : 21, "ai.onnx.ml" : 2]>
        act (v) => (r) { s = Exp (v) r = ai.onnx.ml.Binarizer (s) }
    """
    got = Pipeline((INLINE,)).run(model(graph)).model
    assert got.opset_imports == {"f": 1, "": 21, "ai.onnx.ml": 2}
    assert_rolls_back(INLINE, model(graph))


def test_operators_of_a_runtime_stay_unless_named() -> None:
    graph = """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[2] x) => (float[2] y) { y = com.microsoft.QuickGelu (x) }
        <domain: "com.microsoft", opset_import: ["" : 21]>
        QuickGelu (v) => (r) { s = Sigmoid (v) r = Mul (v, s) }
    """
    assert_refuses(INLINE, graph, code="FUN101")
    named = InlineFunctions(only=("com.microsoft::*",))
    assert [n.op_type for n in Pipeline((named,)).run(model(graph)).model.graph] == [
        "Sigmoid",
        "Mul",
    ]


CHAIN = """
    <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
    g (float[2] x) => (float[2] y) { a = f.once (x) b = f.tiny (a) c = f.big (b) y = f.big (c) }
    <domain: "f", opset_import: ["" : 21]>
    once (v) => (r) { s = Exp (v) t = Abs (s) r = Neg (t) }
    <domain: "f", opset_import: ["" : 21]>
    tiny (v) => (r) { r = Relu (v) }
    <domain: "f", opset_import: ["" : 21, "f" : 1]>
    big (v) => (r) { s = Exp (v) t = f.tiny (s) u = Abs (t) r = Neg (u) }
"""


def functions(rewrite: InlineFunctions) -> tuple[set[str], int]:
    made = Pipeline((rewrite,)).run(model(CHAIN)).model
    assert_holds(rewrite, CHAIN)
    return {name for _, name, _ in made.core.functions}, sum(1 for _ in made.nodes())


def test_only_skip_and_shrink() -> None:
    assert functions(INLINE) == (set(), 12)
    assert functions(InlineFunctions(only=("once",))) == ({"tiny", "big"}, 11)
    assert functions(InlineFunctions(only=("f::*",), skip=("big", "tiny"))) == ({"tiny", "big"}, 11)
    assert functions(InlineFunctions(shrink=True)) == ({"big"}, 10)


def test_growth_is_bounded() -> None:
    doubling = "".join(
        f'<domain: "f", opset_import: ["" : 21, "f" : 1]> '
        f"d{i} (v) => (r) {{ s = f.d{i + 1} (v) r = f.d{i + 1} (s) }}"
        for i in reversed(range(16))
    )
    graph = f"""{HEAD}
        g (float[2] x) => (float[2] y) {{ y = f.d0 (x) }}
        <domain: "f", opset_import: ["" : 21]> d16 (v) => (r) {{ r = Neg (v) }} {doubling}"""
    result = Pipeline((InlineFunctions(max_nodes=1000),)).run(model(graph))
    assert sum(1 for _ in result.model.nodes()) <= 1000
    assert "FUN102" in {found.code for found in result.diagnostics}
    assert_same(model(graph), result.model.to_proto(), runtimes=("reference",))


def test_an_input_that_is_left_out_and_handed_on_keeps_the_call() -> None:
    proto = model("""
        <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[2] x) => (float[2] y) { a, b = f.act (x, x) y = Neg (a) }
        <domain: "f", opset_import: ["" : 21]>
        act (v, w) => (r, w) { r = Neg (v) }
    """)
    proto.graph.node[0].input.pop()
    found = Pipeline((INLINE,)).run(Model.load(ir.from_proto(proto)))
    assert [each.code for each in found.diagnostics] == ["FUN104"]
    assert not found.changed


def test_a_model_without_functions_stays() -> None:
    assert_unchanged(INLINE, "g (float[2] x) => (float[2] y) { y = Neg (x) }")


def test_weights_are_shared_not_copied() -> None:
    proto = model(f"""
        {HEAD}
        g (float[2, 64] x) => (float[2, 64] y) <float[64, 64] w> {{ y = f.mul (x, w) }}
        <domain: "f", opset_import: ["" : 21]> mul (a, b) => (r) {{ r = MatMul (a, b) }}
    """)
    source = Model.load(proto)
    tensor = source.graph.initializers["w"].const_value
    assert Pipeline((INLINE,)).run(source).model.graph.initializers["w"].const_value is tensor


# -- properties ----------------------------------------------------------------------------------------

_UNARY = ("Relu", "Neg", "Abs", "Tanh", "Identity")
_BINARY = ("Add", "Mul", "Max")


@st.composite
def programs(draw: st.DrawFn) -> str:
    """A model whose functions call earlier ones, with two inputs, one of them optional to pass twice."""
    texts = []
    for index in range(draw(st.integers(1, 4))):
        lines, names = _lines(draw, index, ["a", "b"])
        results = [draw(st.sampled_from(names[2:])), names[-1]]
        imports = '"" : 21, "f" : 1'
        texts.append(
            f'<domain: "f", opset_import: [{imports}]> '
            f"f{index} <k: float = 0.5> (a, b) => (r1, r2) {{ {' '.join(lines)} "
            f"r1 = Identity ({results[0]}) r2 = Neg ({results[1]}) }}"
        )
    lines, names = _lines(draw, len(texts), ["x", "z"])
    return (
        f"{HEAD} g (float[N] x, float[N] z) => (float[N] y) "
        f"{{ {' '.join(lines)} y = Abs ({names[-1]}) }} {' '.join(texts)}"
    )


def _lines(
    draw: st.DrawFn, callable_functions: int, names: list[str]
) -> tuple[list[str], list[str]]:
    lines = []
    for number in range(draw(st.integers(1, 4))):
        one, two = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        made = f"n{number}"
        kind = draw(st.sampled_from(["unary", "binary", "leaky", "call", "call"]))
        if kind == "call" and callable_functions:
            index = draw(st.integers(0, callable_functions - 1))
            given_k = draw(st.sampled_from(["", " <k = 0.25>"]))
            lines.append(f"{made}, {made}b = f.f{index}{given_k} ({one}, {two})")
            names.append(f"{made}b")
        elif kind == "leaky" and names[0] == "a":
            lines.append(f"{made} = LeakyRelu <alpha: float = @k> ({one})")
        elif kind == "binary":
            lines.append(f"{made} = {draw(st.sampled_from(_BINARY))} ({one}, {two})")
        else:
            lines.append(f"{made} = {draw(st.sampled_from(_UNARY))} ({one})")
        names.append(made)
    return lines, names


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(text=programs(), shrink=st.booleans())
def test_whatever_calls_whatever_computes_the_same(text: str, shrink: bool) -> None:
    rewrite = InlineFunctions(shrink=shrink)
    before = Model.load(model(text))
    got = assert_holds(rewrite, text, rtol=0, atol=0, runtimes=("onnxruntime",), full_check=False)
    assert_rolls_back(rewrite, text)
    if shrink:
        assert sum(1 for _ in Model.load(got).nodes()) <= sum(1 for _ in before.nodes())
    else:
        called = {node.op_identifier() for node in Model.load(got).nodes()}
        assert not called & set(before.core.functions)


def test_optimize_keeps_functions_unless_told_and_sees_through_them_then() -> None:
    graph = f"""
        {HEAD}
        g (float[2, 8] x) => (float[2, 8] y) <float[8] s, float[8] b> {{ y = f.norm (x, s, b) }}
        <domain: "f", opset_import: ["" : 21]>
        norm (x, s, b) => (y) {{
          i = Constant <value_ints = [-1]> ()
          two = Constant <value_float = 2.0> ()
          eps = Constant <value_float = 0.00001> ()
          m = ReduceMean (x, i)
          d = Sub (x, m)
          q = Pow (d, two)
          v = ReduceMean (q, i)
          e = Add (v, eps)
          r = Sqrt (e)
          n = Div (d, r)
          t = Mul (n, s)
          y = Add (t, b)
        }}"""
    kept = optimize(model(graph)).model
    assert [node.op_type for node in kept.graph] == ["norm"]
    flat = optimize(model(graph), inline_functions=True).model
    assert [node.op_type for node in flat.graph] == ["LayerNormalization"]
    assert not flat.core.functions
