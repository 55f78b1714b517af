"""A network whose layers are in the branches of an If: no exporter is needed for it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def conv_in_if(share: float, out: Path) -> None:
    """A Conv before, two in each branch, and one after that makes the outputs."""
    rng = np.random.default_rng(0)
    a, b = int(32 * share), int(64 * share)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        drawn = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(drawn.astype(np.float32), name)

    def branch(name: str) -> onnx.GraphProto:
        same: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        nodes = [
            helper.make_node("Conv", ["stem", f"{name}_a"], [f"{name}_x"], **same),
            helper.make_node("Relu", [f"{name}_x"], [f"{name}_y"]),
            helper.make_node("Conv", [f"{name}_y", f"{name}_b"], [f"{name}_z"], **same),
        ]
        result = helper.make_tensor_value_info(f"{name}_z", TensorProto.FLOAT, [1, a, 16, 16])
        weights = [weight(f"{name}_a", b, a, 3, 3), weight(f"{name}_b", a, b, 3, 3)]
        return helper.make_graph(nodes, name, [], [result], weights)

    nodes = [
        helper.make_node("Conv", ["x", "first"], ["stem_x"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["stem_x"], ["stem"]),
        helper.make_node(
            "If", ["which"], ["chosen"], then_branch=branch("yes"), else_branch=branch("no")
        ),
        helper.make_node("Relu", ["chosen"], ["active"]),
        helper.make_node("Conv", ["active", "last"], ["y"], kernel_shape=[1, 1]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16]),
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10, 16, 16])
    weights = [weight("first", a, 3, 1, 1), weight("last", 10, a, 1, 1)]
    graph = helper.make_graph(nodes, "conv_in_if", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(out))
