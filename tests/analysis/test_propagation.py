"""Following shape vectors without counting the elements of everything else."""

import onnx
import pytest

from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.propagation import infer_shapes
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import Model
from tests.helpers.text import model


def shapes_of(proto: onnx.ModelProto) -> dict[str, object]:
    loaded = Model.load(proto)
    found = Facts(loaded).get(Shapes())
    return {
        value.name or "": found.shape(value) for node in loaded.nodes() for value in node.outputs
    }


def test_shape_vectors_are_followed() -> None:
    proto = model("""
        g (float[2, 3, 4] x) => (float[a, b] y) <int64[1] one = {1}, int64[1] rest = {-1}> {
          s = Shape (x)
          n = Gather (s, one)
          t = Concat <axis = 0> (n, rest)
          y = Reshape (x, t)
        }
    """)
    assert shapes_of(proto)["y"] == (3, 8)


@pytest.mark.parametrize("operator", ["Gather (r, at)", "Add (r, r)", "Slice (r, at, at)"])
def test_a_long_vector_is_not_taken_for_a_shape(operator: str) -> None:
    """Following 2^35 elements would need a terabyte."""
    proto = model(f"""
        g (float[1] x) => (float[n] y)
        <int64 start = {{0}}, int64 end = {{{2**35}}}, int64 step = {{1}}, int64[1] at = {{0}}> {{
          q = Range (start, end, step)
          r = Neg (q)
          p = {operator}
          c = Cast <to = 1> (p)
          y = Add (c, x)
        }}
    """)
    assert shapes_of(proto)["r"] == (2**35,)


BOMB = """
    g (float[1] x) => (float[n] y) <int64[1] a = {65536}, int64[1] at = {0}> {
      b = Mul (a, a)
      r = ConstantOfShape (b)
      p = Gather (r, at)
      y = Add (p, x)
    }
"""


def test_a_length_that_is_worked_out_in_the_graph_is_bounded_too() -> None:
    """Following 2^32 elements would need hundreds of gigabytes."""
    proto = model(BOMB)
    assert shapes_of(proto)["r"] == (2**32,)
    assert infer_shapes(proto, strict=True).graph.node == proto.graph.node
    expanded = model(BOMB.replace("ConstantOfShape (b)", "Expand (x, b)"))
    assert shapes_of(expanded)["r"] == (2**32,)
    assert infer_shapes(expanded, strict=True).graph.node == expanded.graph.node


def test_strictness_is_handed_on() -> None:
    proto = model("g (float[2] x) => (float[2] y) <float[3] w> { y = Add (x, w) }")
    infer_shapes(proto)
    with pytest.raises(onnx.shape_inference.InferenceError):
        infer_shapes(proto, strict=True)
