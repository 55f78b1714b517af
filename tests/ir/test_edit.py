"""Every change is counted and can be taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from onnxcomp.ir import Edit, Model, ir
from onnxcomp.ir.consistency import inconsistency

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = """
<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
g (float[N, 3] x, bool c) => (float[N, 3] y, float[N, 3] z)
<float[3] w = {1, 2, 3}, float[3] unused = {0, 0, 0}>
{
    a = Identity (x)
    [add] b = Add (a, w)
    [if] y = If (c) <then_branch = t () => (float[N, 3] p) { p = Mul (b, w) },
                     else_branch = e () => (float[N, 3] q) { q = Neg (a) }>
    [last] z = Identity (b)
}
<domain: "own", opset_import: ["" : 21]>
F (p) => (q) { q = Add (p, p) }
"""


def nodes_of(model: Model) -> dict[str, ir.Node]:
    return {node.name or node.op_type: node for node in model.nodes()}


def replace_inner(model: Model, edit: Edit) -> None:
    node = next(node for node in model.graph if node.op_type == "Identity")
    edit.replace(node.outputs[0], node.inputs[0])  # type: ignore[arg-type]
    edit.remove(node)


def replace_output(model: Model, edit: Edit) -> None:
    node = nodes_of(model)["last"]
    edit.replace(node.outputs[0], node.inputs[0])  # type: ignore[arg-type]
    edit.remove(node)


def alias_input(model: Model, edit: Edit) -> None:
    edit.replace(nodes_of(model)["last"].outputs[0], model.graph.inputs[0])


def remove_control_flow(model: Model, edit: Edit) -> None:
    node = nodes_of(model)["if"]
    edit.replace(node.outputs[0], nodes_of(model)["add"].outputs[0])
    edit.remove(node)


def insert_nodes(model: Model, edit: Edit) -> None:
    add = nodes_of(model)["add"]
    weight = edit.initializer(np.eye(3, dtype=np.float32), name="w", graph=model.graph)
    made = edit.insert("MatMul", [add.inputs[0], weight], before=add, like=add.inputs[0])
    edit.set_input(add, 0, made.outputs[0])
    edit.insert("Relu", [made.outputs[0]], after=made, outputs=["b"])
    edit.insert(
        "Clip", [made.outputs[0]], graph=model.graph, attributes={"axis": 1, "names": ["a"]}
    )


def change_things(model: Model, edit: Edit) -> None:
    add = nodes_of(model)["add"]
    edit.set_operator(add, "Mul")
    edit.set_attribute(add, "axis", 3)
    edit.set_attribute(add, "axis", [1, 2])
    edit.set_attribute(add, "axis", None)
    edit.set_input(add, 3, model.graph.inputs[0])
    edit.truncate_inputs(add, 2)
    edit.set_tensor(model.graph.initializers["w"], np.ones((3, 3), np.float64))
    edit.set_type(add.outputs[0], ir.DataType.FLOAT16, (1, "K", None))
    edit.forget_shape(add.outputs[0])
    edit.raise_opset(22)
    edit.import_domain("com.microsoft", 1)
    edit.require_ir_version(11)


def drop_things(model: Model, edit: Edit) -> None:
    edit.drop_initializer(model.graph.initializers["unused"])
    edit.remove_function(("own", "F", ""))


def constant_output(model: Model, edit: Edit) -> None:
    node = nodes_of(model)["last"]
    assert edit.output_as_constant(node.outputs[0], ir.tensor(np.zeros((2, 3), np.float32)))


def replace_everything(model: Model, edit: Edit) -> None:
    edit.replace_model(ir.from_proto(onnx.parser.parse_model(TEXT.replace("Neg", "Abs"))))


CHANGES = [
    replace_inner,
    replace_output,
    alias_input,
    remove_control_flow,
    insert_nodes,
    change_things,
    drop_things,
    constant_output,
    replace_everything,
]


@pytest.mark.parametrize("change", CHANGES)
def test_rollback_restores_every_byte(change: Callable[[Model, Edit], None]) -> None:
    model = Model.load(onnx.parser.parse_model(TEXT))
    before = model.to_proto().SerializeToString(deterministic=True)
    edit = Edit(model)
    edit.begin("test")
    change(model, edit)
    assert edit.changed
    assert model.to_proto().SerializeToString(deterministic=True) != before
    edit.rollback()
    assert not edit.changed
    assert model.to_proto().SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "change", [replace_inner, replace_output, alias_input, remove_control_flow, drop_things]
)
def test_changed_model_hangs_together(change: Callable[[Model, Edit], None]) -> None:
    model = Model.load(onnx.parser.parse_model(TEXT))
    edit = Edit(model)
    edit.begin("test")
    change(model, edit)
    assert inconsistency(model) == ""
    proto = model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    assert [info.name for info in proto.graph.output] == ["y", "z"]
    assert [info.name for info in proto.graph.input] == ["x", "c"]


def test_rollback_to_a_mark_keeps_what_came_before() -> None:
    model = Model.load(onnx.parser.parse_model(TEXT))
    edit = Edit(model)
    edit.begin()
    drop_things(model, edit)
    kept = model.to_proto().SerializeToString(deterministic=True)
    mark = edit.mark()
    replace_inner(model, edit)
    edit.rollback(mark)
    assert model.to_proto().SerializeToString(deterministic=True) == kept


def test_counts_what_it_does_and_stamps_what_it_makes() -> None:
    model = Model.load(onnx.parser.parse_model(TEXT))
    edit = Edit(model)
    edit.begin("my-pass")
    insert_nodes(model, edit)
    assert edit.stats["nodes added"] == 3
    assert edit.stats["initializers added"] == 1
    made = [node for node in model.graph if node.metadata_props.get("onnxcomp.pass") == "my-pass"]
    assert [node.op_type for node in made] == ["MatMul", "Relu", "Clip"]


def test_fresh_names_are_free_in_every_scope() -> None:
    model = Model.load(onnx.parser.parse_model(TEXT))
    edit = Edit(model)
    names = [edit.fresh(base) for base in ("w", "p", "q", "new", "new", "add", "")]
    taken = {value.name for graph in model.graphs() for node in graph for value in node.outputs}
    assert len(set(names)) == len(names)
    assert not set(names) & (taken | {"w", "p", "q", "add", "x"})


def test_a_used_node_cannot_be_removed() -> None:
    model = Model.load(onnx.parser.parse_model(TEXT))
    with pytest.raises(ValueError, match="still in use"):
        Edit(model).remove(nodes_of(model)["add"])


def test_function_bodies_get_constant_nodes() -> None:
    model = Model.load(onnx.parser.parse_model(TEXT))
    body = next(iter(model.core.functions.values())).graph
    edit = Edit(model)
    edit.begin()
    value = edit.initializer(np.array(2, np.float32), name="two", graph=body)
    producer = value.producer()
    assert producer is not None
    assert producer.op_type == "Constant"
    assert body[0] is producer


def test_shared_tensor_is_written_under_each_name() -> None:
    model = Model.load(onnx.parser.parse_model(TEXT))
    edit = Edit(model)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    edit.initializer(tensor, name="twin", graph=model.graph)
    stored = {found.name: found for found in model.to_proto().graph.initializer}
    assert onnx.numpy_helper.to_array(stored["twin"]).tolist() == [1, 2, 3]
    assert stored["w"].name == "w"


def test_broken_structure_is_named() -> None:
    model = Model.load(onnx.parser.parse_model(TEXT))
    edit = Edit(model)
    edit.set_input(nodes_of(model)["add"], 0, nodes_of(model)["last"].outputs[0])
    assert 'reads "z", which nothing before it makes' in inconsistency(model)
