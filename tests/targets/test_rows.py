"""Every row of every table is a model: the real pass quantizes it, and the provider must do as the row says.

Providers other than the processor's are judged where they are installed; elsewhere their tests are skipped.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcomp.targets
from onnxcomp.compare import compare
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session, available_providers
from onnxcomp.targets import Family, load_target, target_names
from onnxcomp.targets.features import runs_here
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.targets.judges import in_onnxruntime, in_openvino
from tests.targets.rows import KNOWN, one_operator, samples

if TYPE_CHECKING:
    from onnxcomp.pipeline import Result
    from onnxcomp.targets import Target

CPU = load_target("cpu")
# Graph control has no one-operator model; no int8 form of it is known anywhere.
WITHOUT_MODEL = {"If", "Loop", "Scan", "TopK"}
# The rows of cpu-arm64 are those of cpu.
INT8 = [name for name in target_names() if load_target(name).int8 and name != "cpu-arm64"]


def families(name: str) -> list[str]:
    rows = load_target(name).family
    return [kind for row in rows for kind in row.types]


def floats(name: str, *, alone: bool = True) -> list[str]:
    rows = [row for row in load_target(name).float if row.checked == "run" and row.alone is alone]
    return [kind for row in rows for kind in row.types]


def quantized(op_type: str, target: str, *, withdraw: bool = True) -> Result:
    proto = one_operator(op_type)
    step = QuantizeStatic(
        placement="all", prepare=False, observer="min-max", withdraw=withdraw, correct_bias=False
    )
    return Pipeline((step,), target=target).run(proto, samples=samples(proto), threads=1)


@cache
def fidelity(op_type: str, target: str) -> float:
    """How near the quantized model is to float on the processor."""
    proto = one_operator(op_type)
    made = quantized(op_type, target).model
    onnx.checker.check_model(made.to_proto(), full_check=True)
    with Session.open(proto) as one, Session.open(made) as two:
        return compare(one, two, samples(proto)).worst("sqnr_db") or 0.0


# -- the tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", target_names())
def test_every_operator_of_a_table_has_a_model(name: str) -> None:
    table = load_target(name)
    named = set(families(name)) | {kind for row in table.float for kind in row.types}
    assert named - WITHOUT_MODEL <= KNOWN


@pytest.mark.parametrize("name", target_names())
def test_every_row_has_a_source_with_an_address(name: str) -> None:
    table = load_target(name)
    assert all(address.startswith("https://") for address in table.sources.values())
    assert {row.source for row in table.rows} <= set(table.sources)
    kinds = [*families(name), *(kind for row in table.float for kind in row.types)]
    assert len(kinds) == len(set(kinds))


def test_what_was_run_was_run_on_a_provider_that_is_tested() -> None:
    run = {n for n in target_names() if any(r.checked == "run" for r in load_target(n).rows)}
    assert run == {"cpu", "openvino"}


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "op_type"), [(n, kind) for n in INT8 for kind in families(n)])
def test_a_row_gives_a_valid_model_near_float(name: str, op_type: str) -> None:
    least = {"Div": 15, "Exp": 15, "ReduceProd": 3, "ArgMax": 3, "ArgMin": 3}
    assert fidelity(op_type, name) > least.get(op_type, 20)


@pytest.mark.parametrize("op_type", families("tensorrt"))
def test_tensorrt_gets_what_it_reads(op_type: str) -> None:
    graph = quantized(op_type, "tensorrt").model.to_proto().graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kinds = {name: node.op_type for node in graph.node for name in node.output}
    conversions = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in conversions:
        assert arrays[node.input[2]].dtype == np.int8
        assert not arrays[node.input[2]].any()
        readers = [other for other in graph.node if node.output[0] in other.input]
        assert readers
        if node.op_type == "DequantizeLinear":
            allowed = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"}
            assert {reader.op_type for reader in readers} <= allowed
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            assert [kinds[name] for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert arrays[node.input[2]].dtype == np.float32
        if node.op_type == "Add":
            made = sorted(kinds[name] for name in node.input)
            assert made == ["Conv", "DequantizeLinear"]


@pytest.mark.parametrize("op_type", families("qnn"))
def test_qnn_gets_conversions_around_every_operator(op_type: str) -> None:
    graph = quantized(op_type, "qnn").model.to_proto().graph
    makers = {name: node for node in graph.node for name in node.output}
    types = {v.name: v.type.tensor_type.elem_type for v in graph.output}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        maker = makers.get(node.input[0])
        if node.op_type in ("Relu", "Clip") and maker is not None and maker.op_type == "Conv":
            continue  # the provider looks through it
        readers = [n for n in graph.node if set(node.output) & set(n.input)]
        assert makers[node.input[0 if node.op_type != "Where" else 1]].op_type == "DequantizeLinear"
        if types.get(node.output[0]) != onnx.TensorProto.INT64:
            looked_through = {"Relu", "Clip"} if node.op_type.startswith("Conv") else set()
            found = {reader.op_type for reader in readers}
            assert found
            assert found <= {"QuantizeLinear"} | looked_through


# -- the processor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("op_type", families("cpu"))
def test_the_processor_runs_the_row_in_int8(op_type: str) -> None:
    result = quantized(op_type, "cpu")
    assert not [str(d) for d in result.diagnostics if d.code == "QNT106"]
    verdict = in_onnxruntime(result.model.to_proto(), "cpu")
    # Whatever the operator became, no Q or DQ is left but the one at the input and at the output.
    assert verdict.conversions <= 2, verdict.operators
    floating = {"Conv", "Gemm", "MatMul", "Add", "Mul", "Where"}
    assert not floating & verdict.floats, verdict.operators
    row = CPU.family_of(op_type)
    assert row is not None
    assert not row.becomes or set(row.becomes) & set(verdict.operators)


@pytest.mark.parametrize("op_type", floats("cpu"))
def test_the_processor_leaves_it_in_float_whatever_stands_around_it(
    op_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it in the table, its Q/DQ would stay nodes of their own."""
    row = {"name": "tried", "types": (op_type,), "source": "rules", "checked": "run"}
    weight = {"weight": {"input": 1, "axis": 1}, "bias": 2} if op_type == "ConvTranspose" else {}
    join = op_type in ("Sub", "Div")
    tried = Family.model_validate({**row, **weight, "role": "join" if join else "kernel"})
    use_table(monkeypatch, CPU.model_copy(update={"family": (*CPU.family, tried)}))
    result = quantized(op_type, "cpu", withdraw=False)
    verdict = in_onnxruntime(result.model.to_proto(), "cpu")
    # HardSwish is a function of HardSigmoid.
    assert op_type.replace("Swish", "Sigmoid") in verdict.operators
    assert verdict.conversions > (0 if op_type in ("LSTM", "GRU", "RNN") else 2)


def use_table(monkeypatch: pytest.MonkeyPatch, table: Target) -> None:
    fresh = type(table).model_validate(table.model_dump())
    monkeypatch.setattr(onnxcomp.targets, "load_target", lambda _name: fresh)


# -- other providers -------------------------------------------------------------------------------


def needs(provider: str) -> None:
    if provider not in available_providers():
        pytest.skip(f"onnxruntime here has no {provider} provider")


@pytest.mark.provider
@pytest.mark.parametrize(
    ("name", "op_type"),
    [(n, kind) for n in INT8 if load_target(n).provider != "cpu" for kind in families(n)],
)
def test_a_provider_runs_the_row(name: str, op_type: str) -> None:
    """The provider loads it and is as near to float as the processor; OpenVINO says what it runs."""
    target = load_target(name)
    needs(target.provider)
    proto = one_operator(op_type)
    made = quantized(op_type, name).model
    with Session.open(proto) as one, Session.open(made, provider=target.provider) as two:
        found = compare(one, two, samples(proto)).worst("sqnr_db") or 0.0
    assert found > fidelity(op_type, name) - 3
    if name == "openvino":
        verdict = in_openvino(made.to_proto())
        assert op_type not in verdict.floats, verdict.details


@pytest.mark.provider
@pytest.mark.parametrize("op_type", floats("openvino", alone=False))
def test_openvino_computes_it_together_with_what_stands_around_it(op_type: str) -> None:
    needs("openvino")
    verdict = in_openvino(quantized(op_type, "openvino").model.to_proto())
    assert op_type not in verdict.floats, verdict.details


@pytest.mark.provider
@pytest.mark.parametrize("op_type", floats("openvino"))
def test_openvino_computes_it_in_float(op_type: str) -> None:
    needs("openvino")
    verdict = in_openvino(quantized(op_type, "openvino").model.to_proto())
    assert op_type in verdict.floats, verdict.details


@pytest.mark.provider
@pytest.mark.parametrize("op_type", ["Conv", "Gemm", "MatMul", "Add"])
def test_cuda_leaves_every_operator_between_conversions_in_float(op_type: str) -> None:
    needs("cuda")
    verdict = in_onnxruntime(quantized(op_type, "cpu").model.to_proto(), "cuda")
    assert not any(kind.startswith("QLinear") for kind in verdict.operators)


def test_a_provider_that_compiles_graphs_is_timed_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_table(monkeypatch, CPU.model_copy(update={"compiles": True}))
    proto = one_operator("Conv")
    step = QuantizeStatic(prepare=False, observer="min-max")
    result = Pipeline((step,)).run(proto, samples=samples(proto), threads=1)
    codes = {diagnostic.code for diagnostic in result.diagnostics}
    assert len(codes & {"QNT107", "QNT123"}) == 1
    assert result.changed == ("QNT123" in codes)


def test_a_target_runs_here_when_its_provider_and_its_processor_are_here() -> None:
    assert runs_here(CPU)
    assert not all(runs_here(load_target(name)) for name in ("cpu-arm64", "cpu-x64-avx2"))
