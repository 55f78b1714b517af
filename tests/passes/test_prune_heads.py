"""Heads of attention go by what the outputs lose without them, whatever form attention has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.facts import Facts
from onnxcomp.compare import compare
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline, Result
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.prune_heads import PruneHeads
from tests.helpers import text
from tests.helpers.check import assert_refuses, assert_rolls_back
from tests.helpers.numbers import seeded_feeds

# Four heads of three; 12 channels, so that nothing but the graph tells heads from what lies within.
SEPARATE = """
    q = MatMul (x, wq)
    qb = Add (q, bq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    [split_q] q4 = Reshape (qb, heads)
    k4 = Reshape (k, heads)
    v4 = Reshape (v, heads)
    qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    kt = Transpose <perm = [0, 2, 3, 1]> (k4)
    vt = Transpose <perm = [0, 2, 1, 3]> (v4)"""
FUSED = """
    qkv = MatMul (x, wqkv)
    five = Reshape (qkv, parts)
    turned = Transpose <perm = [2, 0, 3, 1, 4]> (five)
    pa, pb, pc = Split <axis = 0, num_outputs = 3> (turned)
    qt = Squeeze (pa, first)
    kk = Squeeze (pb, first)
    vt = Squeeze (pc, first)
    kt = Transpose <perm = [0, 1, 3, 2]> (kk)"""
SPLIT = """
    qkv = MatMul (x, wqkv)
    q, k, v = Split <axis = 2> (qkv, thirds)
    q4 = Reshape (q, heads)
    k4 = Reshape (k, heads)
    v4 = Reshape (v, heads)
    qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    kt = Transpose <perm = [0, 2, 3, 1]> (k4)
    vt = Transpose <perm = [0, 2, 1, 3]> (v4)"""
SHARED = """
    q = MatMul (x, wq)
    k = MatMul (x, wk2)
    v = MatMul (x, wv2)
    q4 = Reshape (q, heads)
    k4 = Reshape (k, pairs)
    v4 = Reshape (v, pairs)
    qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    k5 = Transpose <perm = [0, 2, 1, 3]> (k4)
    v5 = Transpose <perm = [0, 2, 1, 3]> (v4)
    k6 = Unsqueeze (k5, two)
    v6 = Unsqueeze (v5, two)
    k7 = Expand (k6, twice)
    v7 = Expand (v6, twice)
    k8 = Reshape (k7, merged)
    vt = Reshape (v7, merged)
    kt = Transpose <perm = [0, 1, 3, 2]> (k8)"""
FORMS = {"separate": SEPARATE, "fused": FUSED, "split": SPLIT, "shared": SHARED}
UNITS = {"separate": 4, "fused": 4, "split": 4, "shared": 2}

CONSTANTS = """float[8, 12] wq, float[12] bq, float[8, 12] wk, float[8, 12] wv, float[8, 36] wqkv,
    float[8, 6] wk2, float[8, 6] wv2, float[12, 5] wo, float[5] bo, float scale = {0.577},
    int64[4] heads = {0, 0, 4, 3}, int64[5] parts = {0, 0, 3, 4, 3}, int64[1] first = {0}, int64[1] two = {2},
    int64[3] thirds = {12, 12, 12}, int64[4] pairs = {0, 0, 2, 3}, int64[5] twice = {1, 1, 2, 1, 1},
    int64[4] merged = {0, 4, -1, 3}, int64[3] flat = {0, 0, -1}"""


def attention(form: str) -> str:
    return f"""g (float[N, S, 8] x) => (float[N, S, 5] y) <{CONSTANTS}> {{
        {FORMS[form]}
        s = MatMul (qt, kt)
        scaled = Mul (s, scale)
        p = Softmax (scaled)
        c = MatMul (p, vt)
        ct = Transpose <perm = [0, 2, 1, 3]> (c)
        joined = Reshape (ct, flat)
        [out] o = MatMul (joined, wo)
        y = Add (o, bo)
      }}"""


def feeds(count: int = 12, sequence: int = 6) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [{"x": rng.normal(size=(2, sequence, 8)).astype("f4")} for _ in range(count)]


def model(form: str, **factors: Any) -> onnx.ModelProto:
    """Returns a model; `wo=[...]` multiplies what the output matrix reads of each head."""
    proto = text.model(attention(form))
    for tensor in proto.graph.initializer:
        if tensor.name in factors:
            array = numpy_helper.to_array(tensor)
            spread = np.repeat(factors[tensor.name], len(array) // len(factors[tensor.name]))
            tensor.CopyFrom(
                numpy_helper.from_array((array * spread[:, None]).astype("f4"), tensor.name)
            )
    used = {value for node in proto.graph.node for value in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


def pruned(proto: onnx.ModelProto, **options: Any) -> Result:
    given = {"reconstruct": False, **options}
    return Pipeline((PruneHeads(**given),)).run(proto, samples=feeds())


def shapes(model: Model) -> dict[str, list[int]]:
    values = model.graph.initializers.items()
    return {name: list(value.shape.numpy()) for name, value in values if value.shape is not None}


def decibels(before: onnx.ModelProto, after: Result, sequence: int = 9) -> float:
    fresh = feeds(4, sequence)
    with Session.open(before) as one, Session.open(after.model) as other:
        return compare(one, other, fresh).worst("sqnr_db") or 0.0


def notes(result: Result, code: str) -> list[str]:
    return [found.message for found in result.diagnostics if found.code == code]


@pytest.mark.parametrize("form", FORMS)
def test_a_head_that_nobody_reads_goes_first(form: str) -> None:
    dead = [1, 1, 0, 1] if UNITS[form] == 4 else [0, 0, 1, 1]
    proto = model(form, wo=dead)
    result = pruned(proto, ratio=1 / UNITS[form])
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert decibels(proto, result) > 100
    which = "[2]" if UNITS[form] == 4 else "[0]"
    assert f"1 of {UNITS[form]} heads are gone: {which}" in notes(result, "PRH104")[0]
    # Heads go whole, and the scale of the scores stays what it was.
    left = 12 - 12 // UNITS[form]
    assert shapes(result.model)["wo"] == [left, 5]
    scale = result.model.graph.initializers["scale"].const_value
    assert scale is not None
    assert float(scale.numpy()) == pytest.approx(0.577)


@pytest.mark.parametrize("form", FORMS)
def test_half_of_the_heads_leaves_a_model_for_any_length(form: str) -> None:
    proto = model(form)
    result = pruned(proto, ratio=0.5)
    assert shapes(result.model)["wo"] == [6, 5]
    assert result.model.signature() == Model.load(proto).signature()
    for sequence in (1, 3, 17):
        assert np.isfinite(decibels(proto, result, sequence))


def test_what_lies_within_heads_is_no_head() -> None:
    for form, units in UNITS.items():
        loaded = Model.load(model(form))
        groups = [g for g in Facts(loaded).get(Channels("heads")).groups if g.heads]
        assert [group.units for group in groups] == [units], form
        (output,) = [m for m in groups[0].members if m.value.name == "wo"]
        blocks = np.sort(output.positions, 1).tolist()
        size = 12 // units
        assert blocks == [list(range(k * size, k * size + size)) for k in range(units)], form


def test_channels_of_a_network_without_attention_are_no_heads() -> None:
    graph = """g (float[N, 3] x) => (float[N, 2] y) <float[3, 8] w, float[8, 2] v> {
        a = MatMul (x, w)
        r = Relu (a)
        y = MatMul (r, v)
      }"""
    assert_refuses(PruneHeads(), graph, code="PRH101", samples=[{"x": np.ones((1, 3), "f4")}])


def test_what_a_head_adds_on_average_moves_into_the_bias() -> None:
    # All values of head 1 are the same number: the head adds a constant.
    proto = model("separate")
    graph = attention("separate").replace(
        "v4 = Reshape (v, heads)", "va = Add (v, bv)\nv4 = Reshape (va, heads)"
    )
    graph = graph.replace("float[5] bo", "float[5] bo, float[12] bv")
    proto = text.model(graph)
    for tensor in proto.graph.initializer:
        if tensor.name == "wv":
            array = numpy_helper.to_array(tensor).copy()
            array[:, 3:6] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, "wv"))
    result = pruned(proto, ratio=0.25)
    assert decibels(proto, result) > 90
    assert "[1]" in notes(result, "PRH104")[0]


def test_each_layer_keeps_some() -> None:
    result = pruned(model("separate"), ratio=0.99)
    assert shapes(result.model)["wo"] == [3, 5]
    assert notes(result, "PRH102")
    result = pruned(model("separate"), ratio=0.99, keep=3)
    assert shapes(result.model)["wo"] == [9, 5]
    assert_refuses(PruneHeads(keep=4), model("separate"), code="PRH103", samples=feeds())


def test_goals() -> None:
    proto = model("separate")
    by_weights = pruned(proto, parameters=0.3)
    assert shapes(by_weights.model)["wo"][0] in {6, 3}
    assert pruned(proto, flops=0.2).model.nbytes < Model.load(proto).nbytes


@given(
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(["effect", "wanda", "fluctuation", "obs", "l2", "random"]),
    st.sampled_from(["ratio", "flops", "parameters"]),
    st.floats(0.1, 0.9),
    st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_any_options_give_a_valid_model(
    form: str, criterion: str, goal: str, share: float, reconstruct: bool
) -> None:
    proto = model(form)
    result = pruned(proto, criterion=criterion, reconstruct=reconstruct, **{goal: share})
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert np.isfinite(decibels(proto, result))


def test_what_is_left_is_fitted() -> None:
    proto = model("separate")
    bare, fitted = pruned(proto, ratio=0.5), pruned(proto, ratio=0.5, reconstruct=True)
    assert decibels(proto, fitted, 6) >= decibels(proto, bare, 6)
    assert notes(fitted, "PRH105")


def test_the_attention_operator() -> None:
    graph = """<ir_version: 10, opset_import: ["" : 23]>
      g (float[2, 6, 8] x) => (float[2, 6, 5] y)
        <float[8, 12] wq, float[8, 12] wk, float[8, 12] wv, float[12, 5] wo> {
          q = MatMul (x, wq)
          k = MatMul (x, wk)
          v = MatMul (x, wv)
          a = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v)
          y = MatMul (a, wo)
        }"""
    result = pruned(text.model(graph), ratio=0.5)
    assert shapes(result.model)["wo"] == [6, 5]
    node = next(node for node in result.model.graph if node.op_type == "Attention")
    assert node.attributes["q_num_heads"].value == 2
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert np.isfinite(decibels(text.model(graph), result, 6))


def test_names_to_skip() -> None:
    assert_refuses(PruneHeads(skip=("out",)), model("fused"), code="PRH103", samples=feeds())


@pytest.mark.parametrize("form", FORMS)
def test_takes_everything_back(form: str) -> None:
    assert_rolls_back(PruneHeads(ratio=0.5), model(form), feeds())


def test_seeded_inputs_of_a_float16_model() -> None:
    half = (
        attention("separate")
        .replace("float[", "float16[")
        .replace("float scale = {0.577}", "float16 scale")
    )
    proto = text.model(half)
    samples = [seeded_feeds(proto, seed) for seed in range(8)]
    result = Pipeline((PruneHeads(ratio=0.5),)).run(proto, samples=samples)
    assert shapes(result.model)["wo"] == [6, 5]


@pytest.mark.parametrize(
    ("operator", "imports", "kept"),
    [
        (
            "Attention <q_num_heads = 4, kv_num_heads = 2>",
            '"" : 23',
            {"q_num_heads": 2, "kv_num_heads": 1},
        ),
        (
            "com.microsoft.MultiHeadAttention <num_heads = 4>",
            '"" : 21, "com.microsoft" : 1',
            {"num_heads": 2},
        ),
    ],
)
def test_operators_that_know_their_heads(operator: str, imports: str, kept: dict[str, int]) -> None:
    size = 12 if "kv" not in operator else 6
    graph = f"""<ir_version: 10, opset_import: [{imports}]>
      g (float[2, 6, 8] x) => (float[2, 6, 5] y)
        <float[8, 12] wq, float[8, {size}] wk, float[8, {size}] wv, float[12, 5] wo> {{
          q = MatMul (x, wq)
          k = MatMul (x, wk)
          v = MatMul (x, wv)
          a = {operator} (q, k, v)
          y = MatMul (a, wo)
        }}"""
    proto = text.model(graph)
    result = pruned(proto, ratio=0.5)
    assert shapes(result.model)["wo"] == [6, 5]
    node = next(node for node in result.model.graph if "Attention" in node.op_type)
    assert {name: node.attributes[name].value for name in kept} == kept
    assert np.isfinite(decibels(proto, result, 6))
