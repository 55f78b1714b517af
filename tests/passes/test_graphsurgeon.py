"""GraphSurgeon functions run as passes and lose nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp import Model, Pipeline
from onnxcomp.errors import PassFailedError, UserError
from onnxcomp_passes.graphsurgeon import Graphsurgeon
from tests.ir.test_model import big_model, rich_model, same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 3] x, float[3] bias) => (float[N, 3] y, float[N, 3] z)
<float[3] bias = {1, 2, 3}, float[3] w = {4, 5, 6}>
{ a = Add (x, bias) y = Relu (a) z = Mul (x, w) }
"""


def nothing(graph: Any) -> Any:
    return graph


def elu(graph: Any) -> None:
    for node in graph.nodes:
        if node.op == "Relu":
            node.op = "Elu"


def add_bias(graph: Any) -> Any:
    import onnx_graphsurgeon as gs

    total = gs.Variable("total", dtype=np.float32, shape=("N", 3))
    graph.nodes.append(gs.Node("Add", inputs=graph.outputs, outputs=[total]))
    graph.outputs.append(total)
    return graph


def not_a_graph(graph: Any) -> Any:
    return graph.nodes


def run(function: Callable[[Any], Any], proto: onnx.ModelProto) -> onnx.ModelProto:
    return Pipeline((Graphsurgeon(function=function),)).run(proto).model.to_proto()


def test_function_that_changes_nothing_changes_nothing() -> None:
    result = Pipeline((Graphsurgeon(function=nothing),)).run(rich_model())
    assert not result.changed
    assert same(result.model.to_proto(), rich_model())
    assert "GSG101" in {diagnostic.code for diagnostic in result.diagnostics}


def test_change_in_place_keeps_everything_else() -> None:
    proto = rich_model()
    proto.graph.node[2].op_type = "Relu"
    made = run(elu, proto)
    assert [node.op_type for node in made.graph.node] == ["Add", "Twice", "Elu", "Cast", "Mul"]
    proto.graph.node[2].op_type = "Elu"
    made.graph.ClearField("initializer")
    proto.graph.ClearField("initializer")
    assert same(made, proto)


def test_new_nodes_and_outputs_arrive() -> None:
    made = run(add_bias, onnx.parser.parse_model(TEXT))
    assert [info.name for info in made.graph.output] == ["y", "z", "total"]
    assert [info.name for info in made.graph.input] == ["x", "bias"]
    onnx.checker.check_model(made, full_check=True)


def test_weights_that_are_not_touched_stay_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    proto = big_model()
    proto.graph.node[1].op_type = "Sub"
    Model.load(proto).save(path, external=True)

    def rename(graph: Any) -> None:
        graph.nodes[1].op = "Add"

    result = Pipeline((Graphsurgeon(function=rename),)).run(path)
    tensor = result.model.graph.initializers["w"].const_value
    assert type(tensor).__name__ == "ExternalTensor"
    result.model.save(tmp_path / "out.onnx")
    assert (
        onnx.load(tmp_path / "out.onnx").graph.initializer[0].raw_data
        == proto.graph.initializer[0].raw_data
    )


def test_weights_can_be_read_and_changed() -> None:
    def double(graph: Any) -> None:
        tensor = graph.tensors()["w"]
        tensor.values = tensor.values * 2

    made = run(double, big_model())
    before = numpy_helper.to_array(big_model().graph.initializer[0])
    np.testing.assert_array_equal(numpy_helper.to_array(made.graph.initializer[0]), before * 2)


def test_wrong_result_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="not a GraphSurgeon graph"):
        run(not_a_graph, rich_model())


def test_broken_graph_is_rolled_back(tmp_path: Path) -> None:
    def cut(graph: Any) -> None:
        del graph.nodes[0]

    with pytest.raises(PassFailedError, match="which nothing before it makes"):
        Pipeline((Graphsurgeon(function=cut),)).run(
            onnx.parser.parse_model(TEXT), reproducer=tmp_path
        )


def test_function_in_a_file_from_the_text_form(tmp_path: Path) -> None:
    path = tmp_path / "surgery.py"
    path.write_text("def change(graph):\n    graph.nodes[1].op = 'Elu'\n")
    pipeline = Pipeline.parse(f'graphsurgeon{{function="{path}:change"}}')
    made = pipeline.run(onnx.parser.parse_model(TEXT)).model
    assert [node.op_type for node in made.graph] == ["Add", "Elu", "Mul"]
    assert str(pipeline) == f'graphsurgeon{{function="{path}:change"}}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("surgery", "does not name a function"),
        ("none.py:f", "cannot import"),
        ("os:nothing", "has no function"),
    ],
)
def test_missing_function_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pipeline((Graphsurgeon(function=text),)).run(onnx.parser.parse_model(TEXT))
