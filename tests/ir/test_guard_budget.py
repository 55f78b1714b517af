"""Ceilings: bombs are counted, never run."""

from __future__ import annotations

import re
from dataclasses import fields

import onnx
import pytest
from onnx import AttributeProto, TensorProto, parser

from onnxcomp.errors import ModelError
from onnxcomp.ir.budget import Limits, check_budget

HEAD = '<ir_version: 9, opset_import: ["" : 13, "f" : 1]>\n'
IMPORTS = 'opset_import: ["" : 13, "f" : 1]'


def chain(count: int, calls: int) -> onnx.ModelProto:
    """Functions f0 … that each call the next one so many times."""
    text = HEAD + "g (float[2] x) => (float[2] y) { y = f.f0 (x) }\n"
    for index in range(count):
        body = "".join(f"v{i + 1} = f.f{index + 1} (v{i}) " for i in range(calls))
        body += f"b = Identity (v{calls})"
        text += f'<domain: "f", {IMPORTS}> f{index} (v0) => (b) {{ {body} }}\n'
    text += f'<domain: "f", {IMPORTS}> f{count} (a) => (b) {{ b = Neg (a) }}\n'
    return parser.parse_model(text)


def nest(depth: int) -> onnx.ModelProto:
    """An If in an If in an If."""
    model = onnx.ModelProto()
    graph = model.graph
    for _ in range(depth):
        node = graph.node.add(op_type="If")
        graph = node.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g
        graph.SetInParent()
    return model


def refusal(model: onnx.ModelProto, limits: Limits | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        check_budget(model, limits or Limits())
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.timeout(5)  # run instead of counted, this would take hours
def test_thirty_functions_that_each_call_the_next_twice() -> None:
    assert "--max-calls" in refusal(chain(30, 2))


def test_a_bomb_that_nobody_calls_is_one_too() -> None:
    model = chain(30, 2)
    model.graph.node[0].op_type = "f30"
    assert "is expanded" in refusal(model)


def test_numbers_beyond_any_integer() -> None:
    model = chain(60, 8)
    assert "more than 10^15" in refusal(model)


def test_a_long_chain_of_functions() -> None:
    assert "--max-function-depth" in refusal(chain(3000, 1))
    check_budget(chain(40, 1))
    check_budget(chain(80, 1), Limits(function_depth=100))


def test_few_calls_of_a_large_function() -> None:
    model = chain(1, 1000)
    check_budget(model, Limits(nodes=3000))
    assert "--max-nodes" in refusal(model, Limits(nodes=1500))


@pytest.mark.parametrize("loop", [1, 2, 9])
def test_functions_that_call_themselves(loop: int) -> None:
    text = HEAD + "g (float[2] x) => (float[2] y) { y = Neg (x) }\n"
    for index in range(loop):
        callee = f"f.f{(index + 1) % loop}"
        text += f'<domain: "f", {IMPORTS}> f{index} (a) => (b) {{ b = {callee} (a) }}\n'
    said = refusal(parser.parse_model(text))
    assert "calls itself" in said
    assert '"f0"' in said


def test_recursion_through_a_body() -> None:
    model = parser.parse_model(
        HEAD
        + f"""g (float[2] x) => (float[2] y) {{ y = f.f0 (x) }}
        <domain: "f", {IMPORTS}> f0 (a) => (b) {{
          c = Constant <value = bool {{1}}> ()
          b = If (c) <then_branch = t () => (p) {{ p = f.f0 (a) }},
                      else_branch = e () => (q) {{ q = Neg (a) }}>
        }}"""
    )
    assert "calls itself" in refusal(model)


def test_overloads_are_different_functions() -> None:
    model = chain(1, 1)
    model.functions[0].node[0].op_type = "f0"
    model.functions[0].node[0].overload = "other"
    other = model.functions.add(name="f0", domain="f", overload="other", input=["a"], output=["b"])
    other.node.add(op_type="Neg", input=["a"], output=["b"])
    check_budget(model)


def test_the_main_domain_has_two_spellings() -> None:
    model = chain(1, 1)
    model.functions[0].domain = ""
    model.functions[0].node[0].domain = "ai.onnx"
    model.functions[0].node[0].op_type = "f0"
    assert "calls itself" in refusal(model)


def test_deep_nesting() -> None:
    check_budget(nest(64))
    assert "--max-graph-depth" in refusal(nest(65))
    assert "--max-graph-depth" in refusal(nest(3000))


def test_nesting_hidden_in_functions_adds_up() -> None:
    body = """c = Constant <value = bool {1}> ()
      b = If (c) <then_branch = t () => (p) { p = f.%s (a) },
                  else_branch = e () => (q) { q = Neg (a) }>"""
    text = HEAD + "g (float[2] x) => (float[2] y) { y = f.f0 (x) }\n"
    for index in range(10):
        text += f'<domain: "f", {IMPORTS}> f{index} (a) => (b) {{ {body % f"f{index + 1}"} }}\n'
    text += f'<domain: "f", {IMPORTS}> f10 (a) => (b) {{ b = Neg (a) }}\n'
    model = parser.parse_model(text)
    check_budget(model, Limits(graph_depth=10))
    assert "--max-graph-depth" in refusal(model, Limits(graph_depth=9))


def test_nodes_of_bodies_count() -> None:
    model = nest(20)
    assert "20 nodes" in refusal(model, Limits(nodes=19))


@pytest.mark.parametrize("where", ["initializer", "input", "output", "value_info"])
def test_ranks(where: str) -> None:
    model = onnx.ModelProto()
    if where == "initializer":
        model.graph.initializer.add(name="w", dims=[1] * 65, data_type=TensorProto.FLOAT)
    else:
        value = getattr(model.graph, where).add(name="w")
        for _ in range(65):
            value.type.tensor_type.shape.dim.add()
    said = refusal(model)
    assert '"w"' in said
    assert "--max-rank" in said
    check_budget(model, Limits(rank=65))


def test_initializers_are_counted() -> None:
    model = onnx.ModelProto()
    for _ in range(5):
        model.graph.initializer.add()
    model.graph.sparse_initializer.add()
    check_budget(model, Limits(tensors=6))
    assert "--max-tensors" in refusal(model, Limits(tensors=5))


def test_every_limit_names_its_option() -> None:
    for field in fields(Limits):
        with pytest.raises(ModelError, match=re.escape(f"--max-{field.name.replace('_', '-')}")):
            Limits().hold(field.name, 10**9, "things")
