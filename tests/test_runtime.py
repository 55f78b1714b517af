"""The door to onnxruntime: sources, taps, foreign types, errors, the optimised graph."""

import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, numpy_helper, parser

from onnxcomp import handover, runtime
from onnxcomp.errors import ModelError, RuntimeUnavailableError, SamplesError, UserError
from onnxcomp.ir import Model
from onnxcomp.node_times import read_profile
from onnxcomp.providers import clear_line, full_name
from onnxcomp.runtime import Optimization, Session, optimized_model, profile

HEADER = '<ir_version: 10, opset_import: ["" : 21, "custom" : 1]>\n'


def model(text: str, header: str = HEADER, **weights: np.ndarray) -> onnx.ModelProto:
    """Parses a graph and adds initializers by name."""
    proto = parser.parse_model(header + text)
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    return proto


def linear(weight: np.ndarray) -> onnx.ModelProto:
    return model("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", w=weight)


def body_weight(weight: np.ndarray) -> onnx.ModelProto:
    """A model whose weight lies in a body, under a name that the other body uses too."""
    proto = model("""
        g (float[N, 64] x, bool c) => (float[N, 64] y) {
          y = If (c) <
            then_branch = a () => (float[N, 64] t) { t = MatMul (x, w) },
            else_branch = b () => (float[N, 64] e) { e = MatMul (x, w) }
          >
        }
    """)
    for attribute, factor in zip(proto.graph.node[0].attribute, (1, 2), strict=True):
        attribute.g.initializer.append(numpy_helper.from_array(weight * np.float32(factor), "w"))
    return proto


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 64), dtype=np.float32)


def saved_external(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


class TestSources:
    @pytest.mark.parametrize("optimization", ["disable", "all"])
    @pytest.mark.parametrize(
        "source",
        ["proto", "bytes", "path", "external", "model", "model-inline-file", "model-external-file"],
    )
    def test_every_source_gives_the_same_numbers(
        self,
        source: str,
        optimization: Optimization,
        weight: np.ndarray,
        x: np.ndarray,
        tmp_path: Path,
    ) -> None:
        proto = linear(weight)
        path = tmp_path / "m.onnx"
        given: Model | Path | bytes | onnx.ModelProto
        if "external" in source:
            given = saved_external(proto, path)
        elif source in ("path", "model-inline-file"):
            onnx.save(proto, path)
            given = path
        else:
            given = proto.SerializeToString() if source == "bytes" else proto
        if "model" in source:
            assert not isinstance(given, bytes)
            given = Model.load(given)
        with Session.open(given, optimization=optimization) as session:
            y = session.run({"x": x})["y"]
        np.testing.assert_allclose(y, x @ weight, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("optimization", ["disable", "all"])
    @pytest.mark.parametrize("where", ["memory", "file"])
    def test_weights_in_bodies_with_equal_names_are_not_mixed_up(
        self,
        where: str,
        optimization: Optimization,
        weight: np.ndarray,
        x: np.ndarray,
        tmp_path: Path,
    ) -> None:
        given: Path | onnx.ModelProto = body_weight(weight)
        if where == "file":
            given = saved_external(body_weight(weight), tmp_path / "m.onnx")
        with Session.open(Model.load(given), optimization=optimization) as session:
            then = session.run({"x": x, "c": np.array(True)})["y"]
            other = session.run({"x": x, "c": np.array(False)})["y"]
        np.testing.assert_allclose(then, x @ weight, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(other, x @ weight * 2, rtol=1e-5, atol=1e-5)

    def test_weights_in_memory_are_seen_by_constant_folding(
        self, weight: np.ndarray, x: np.ndarray
    ) -> None:
        proto = model(
            "g (float[N, 64] x) => (float[N, 64] y) { t = Transpose (w) \n y = MatMul (x, t) }",
            w=weight,
        )
        with Session.open(Model.load(proto), optimization="all") as session:
            np.testing.assert_allclose(
                session.run({"x": x})["y"], x @ weight.T, rtol=1e-5, atol=1e-5
            )

    def test_weights_of_a_model_are_shared_with_the_runtime_or_referred_to(
        self, weight: np.ndarray, tmp_path: Path
    ) -> None:
        in_memory = handover.hand_over(Model.load(linear(weight)))
        assert list(in_memory.arrays) == ["w"]
        assert len(in_memory.model) < weight.nbytes
        on_disk = handover.hand_over(
            Model.load(saved_external(linear(weight), tmp_path / "m.onnx"))
        )
        assert not on_disk.arrays
        assert on_disk.folder == tmp_path
        assert b"weights.bin" in on_disk.model

    def test_arrays_outlive_the_model(self, weight: np.ndarray, x: np.ndarray) -> None:
        source = Model.load(linear(weight))
        session = Session.open(source, config={"session.disable_prepacking": "1"})
        del source
        churn = [np.full_like(weight, 7) for _ in range(20)]
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ weight, rtol=1e-5, atol=1e-5)
        assert len(churn) == 20

    @pytest.mark.parametrize("code", ["BFLOAT16", "FLOAT8E4M3FN", "INT4", "UINT4", "INT8"])
    def test_weights_of_every_width_arrive(self, code: str) -> None:
        values = np.arange(64 * 64).reshape(64, 64) % 7
        kind = getattr(TensorProto, code)
        tensor = onnx.helper.make_tensor(
            "w", kind, (64, 64), values.astype(np.float32).ravel().tolist()
        )
        proto = model("g () => (float[64, 64] y) { y = Cast <to = 1> (w) }")
        if code in ("INT4", "UINT4"):
            proto = model("g () => (float[64, 64] y) { y = DequantizeLinear (w, one) }")
            proto.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "one"))
        proto.graph.initializer.append(tensor)
        with Session.open(Model.load(proto)) as session:
            np.testing.assert_array_equal(session.run({})["y"], values)

    def test_a_protobuf_too_large_for_one_message_is_split(
        self, weight: np.ndarray, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(handover, "_LEAN_ABOVE_BYTES", 1024)
        proto = linear(weight)
        before = proto.SerializeToString()
        given = handover.hand_over(proto, ["w"])
        assert list(given.arrays) == ["w"]
        assert len(given.model) < weight.nbytes
        with Session.open(proto) as session:
            np.testing.assert_allclose(session.run({"x": x})["y"], x @ weight, rtol=1e-5, atol=1e-5)
        assert proto.SerializeToString() == before

    def test_an_edited_weight_wins_over_the_file(
        self, weight: np.ndarray, x: np.ndarray, tmp_path: Path
    ) -> None:
        source = Model.load(saved_external(linear(weight), tmp_path / "m.onnx"))
        from onnxcomp.ir import ir

        source.graph.initializers["w"].const_value = ir.tensor(weight * 3)
        with Session.open(source) as session:
            np.testing.assert_allclose(
                session.run({"x": x})["y"], x @ weight * 3, rtol=1e-5, atol=1e-5
            )


class TestTaps:
    TEXT = """
        g (float[N, 4] x) => (float[N, 4] y) {
          a = Relu (x)
          n = Shape (a)
          b = Neg (a)
          y = Identity (b)
        }
    """

    @pytest.mark.parametrize("source", ["proto", "bytes", "path", "model"])
    def test_inner_values_become_outputs(self, source: str, tmp_path: Path) -> None:
        proto = model(self.TEXT)
        onnx.save(proto, tmp_path / "m.onnx")
        given = {
            "proto": proto,
            "bytes": proto.SerializeToString(),
            "path": tmp_path / "m.onnx",
            "model": Model.load(proto),
        }[source]
        x = np.array([[-1, 2, -3, 4]], np.float32)
        with Session.open(given, outputs=["a", "n", "y", "x", "a"]) as session:
            assert [spec.name for spec in session.outputs] == ["y", "a", "n", "x"]
            assert session.outputs[2].dtype == np.int64
            results = session.run({"x": x}, outputs=["n", "a", "x"])
        assert list(results) == ["n", "a", "x"]
        np.testing.assert_array_equal(results["a"], np.maximum(x, 0))
        np.testing.assert_array_equal(results["n"], [1, 4])
        np.testing.assert_array_equal(results["x"], x)

    def test_taps_find_external_data_beside_the_path(
        self, weight: np.ndarray, x: np.ndarray, tmp_path: Path
    ) -> None:
        path = saved_external(linear(weight), tmp_path / "m.onnx")
        with Session.open(path, outputs=["w"]) as session:
            np.testing.assert_array_equal(session.run({"x": x})["w"], weight)

    def test_a_value_that_does_not_exist_is_named(self) -> None:
        with pytest.raises(ModelError, match='no value "nothere"'):
            Session.open(model(self.TEXT), outputs=["nothere"])


class TestRun:
    def test_specs(self) -> None:
        proto = model("g (float[N, 4, ?] x, string[2] s) => (float[N, 4, ?] y, seq(float[2]) q) "
                      "{ y = Relu (x) \n q = SequenceEmpty () }")  # fmt: skip
        with Session.open(proto) as session:
            x, s = session.inputs
            assert (x.name, x.dtype, x.shape) == ("x", np.dtype(np.float32), ("N", 4, None))
            assert s.dtype is not None
            assert s.dtype.kind == "O"
            assert session.outputs[1].dtype is None
            results = session.run({"x": np.ones((1, 4, 2), np.float32), "s": np.array(["a", "b"])})
            assert results["q"] == []

    def test_types_that_numpy_lacks_go_in_and_out(self) -> None:
        proto = model("""
            g (bfloat16[4] b, float8e4m3fn[3] f, int4[5] i, float[5] p) =>
              (bfloat16[4] y, float8e4m3fn[3] g, int4[5] j, float[4] z, float[5] k) {
              y = Identity (b)
              g = Identity (f)
              j = Cast <to = 22> (p)
              k = Cast <to = 1> (i)
              z = Cast <to = 1> (b)
            }
        """)
        feeds = {
            "b": np.array([1, -2.5, 3, 0], ml_dtypes.bfloat16),
            "f": np.array([1, -2, 0.5], ml_dtypes.float8_e4m3fn),
            "i": np.array([-8, 7, 3, 0, -1], ml_dtypes.int4),
        }
        with Session.open(proto) as session:
            results = session.run({**feeds, "p": feeds["i"].astype(np.float32)})
            session.prepare({**feeds, "p": feeds["i"].astype(np.float32)})()
        for name, given in zip(("y", "g", "j"), feeds.values(), strict=True):
            assert results[name].dtype == given.dtype
            np.testing.assert_array_equal(results[name], given)
        np.testing.assert_array_equal(results["k"], feeds["i"].astype(np.float32))
        np.testing.assert_array_equal(results["z"], feeds["b"].astype(np.float32))

    def test_text_beside_types_that_numpy_lacks(self) -> None:
        proto = model("""
            g (bfloat16[2] b, string[2] s) => (float[2] y, string[2] t) {
              y = Cast <to = 1> (b)
              t = Identity (s)
            }
        """)
        feeds = {"b": np.ones(2, ml_dtypes.bfloat16), "s": np.array(["a", "bc"], object)}
        with Session.open(proto) as session:
            results = session.run(feeds)
        assert results["t"].tolist() == ["a", "bc"]
        assert results["y"].tolist() == [1, 1]

    @pytest.mark.parametrize(
        ("feeds", "message"),
        [
            ({}, 'no value for input "x"'),
            ({"x": np.ones(3, np.float32), "z": np.ones(1)}, 'no input "z".*it has "x"'),
            ({"x": np.ones(3)}, 'input "x" takes float32, not float64'),
            ({"x": np.ones(4, np.float32)}, "invalid dimensions.*Got: 4 Expected: 3"),
        ],
    )
    def test_feeds_that_do_not_fit(self, feeds: dict[str, np.ndarray], message: str) -> None:
        with (
            Session.open(model("g (float[3] x) => (float[3] y) { y = Relu (x) }")) as session,
            pytest.raises(SamplesError, match=message),
        ):
            session.run(feeds)

    def test_an_input_with_a_default_may_be_left_out(self) -> None:
        proto = model("g (float[2] x, float[2] d) => (float[2] y) { y = Add (x, d) }",
                      d=np.array([1, 2], np.float32))  # fmt: skip
        x = np.zeros(2, np.float32)
        with Session.open(proto) as session:
            assert [spec.optional for spec in session.inputs] == [False, True]
            np.testing.assert_array_equal(session.run({"x": x})["y"], [1, 2])
            np.testing.assert_array_equal(
                session.run({"x": x, "d": np.ones(2, np.float32)})["y"], [1, 1]
            )

    def test_a_failing_node_is_one_clear_line(self) -> None:
        proto = model("g (float[N] x, int64[1] s) => (float[M] y) { y = Reshape (x, s) }")
        with (
            Session.open(proto) as session,
            pytest.raises(RuntimeUnavailableError, match="running Reshape node") as caught,
        ):
            session.run({"x": np.ones(4, np.float32), "s": np.array([3])})
        assert "\n" not in str(caught.value)
        assert ".h:" not in str(caught.value)

    def test_prepared_call_runs_the_model(self, weight: np.ndarray, x: np.ndarray) -> None:
        with Session.open(linear(weight)) as session:
            (y,) = session.prepare({"x": x})()
            np.testing.assert_allclose(y, x @ weight, rtol=1e-5, atol=1e-5)

    def test_a_closed_session_says_so(self, weight: np.ndarray, x: np.ndarray) -> None:
        session = Session.open(linear(weight))
        session.close()
        with pytest.raises(UserError, match="closed"):
            session.run({"x": x})

    def test_an_unknown_output_is_named(self, weight: np.ndarray, x: np.ndarray) -> None:
        with Session.open(linear(weight)) as session, pytest.raises(UserError, match='"q"'):
            session.run({"x": x}, outputs=["q"])


class TestOptions:
    def test_one_thread_starts_no_thread(self, weight: np.ndarray) -> None:
        before = threading.active_count(), _native_threads()
        with Session.open(linear(weight), threads=1):
            assert (threading.active_count(), _native_threads()) == before

    def test_negative_threads_and_unknown_levels_are_refused(self, weight: np.ndarray) -> None:
        with pytest.raises(UserError, match="threads"):
            Session.open(linear(weight), threads=-1)
        with pytest.raises(UserError, match="level"):
            Session.open(linear(weight), optimization="most")  # type: ignore[arg-type]

    def test_a_provider_that_is_not_there_names_those_that_are(self, weight: np.ndarray) -> None:
        if "qnn" in runtime.available_providers():
            pytest.skip("this build has QNN")
        with pytest.raises(RuntimeUnavailableError, match=r"qnn.*available here: .*cpu"):
            Session.open(linear(weight), provider="qnn")

    def test_an_unknown_provider_is_not_called_missing(self) -> None:
        with pytest.raises(RuntimeUnavailableError, match="no execution provider is called"):
            runtime.require_provider("warp")

    def test_names_of_the_runtime_are_understood(self) -> None:
        assert full_name("CPUExecutionProvider", ["CPUExecutionProvider"]) == "CPUExecutionProvider"
        assert "cpu" in runtime.available_providers()


def _native_threads() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    line = next(row for row in status.read_text().splitlines() if row.startswith("Threads:"))
    return int(line.split()[1])


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "header", "error", "message"),
        [
            ("g (float[N] x) => (float[N] y) { y = custom.Foo (x) }", HEADER,
             RuntimeUnavailableError, "custom:Foo"),
            ("g (float[N] x) => (float[N] y) { y = Foo (x) }", HEADER,
             RuntimeUnavailableError, "No Op registered for Foo"),
            ("g (float[N] x) => (float[N] y) { y = Relu (x) }",
             '<ir_version: 10, opset_import: ["" : 999]>', RuntimeUnavailableError, "Opset 999"),
            ("g (float[N] x) => (float[N] y) { y = Relu (x) }",
             '<ir_version: 999, opset_import: ["" : 21]>', RuntimeUnavailableError, "IR version: 999"),
            ("g (float[N] x) => (float[N] y) { y = Relu (nothere) }", HEADER, ModelError, "nothere"),
            ("g (int64[N] x) => (float[N] y) { y = Relu (x) }", HEADER, ModelError, "Type"),
        ],
    )  # fmt: skip
    def test_refused_models(
        self, text: str, header: str, error: type[UserError], message: str
    ) -> None:
        with pytest.raises(error, match=message) as caught:
            Session.open(model(text, header))
        assert "\n" not in str(caught.value)
        assert "/onnxruntime" not in str(caught.value)

    @pytest.mark.parametrize("data", [b"", b"not a model at all"])
    def test_bytes_that_are_no_model(self, data: bytes) -> None:
        with pytest.raises(ModelError, match="not an ONNX model"):
            Session.open(data)
        with pytest.raises(ModelError):
            Session.open(data, outputs=["a"])

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="No such file"):
            Session.open(tmp_path / "nothere.onnx")
        with pytest.raises(ModelError, match="not a regular file"):
            Session.open(tmp_path)
        (tmp_path / "bad.onnx").write_bytes(b"\x00" * 100)
        with pytest.raises(ModelError):
            Session.open(tmp_path / "bad.onnx")

    def test_a_missing_data_file_is_named(self, weight: np.ndarray, tmp_path: Path) -> None:
        path = saved_external(linear(weight), tmp_path / "m.onnx")
        (tmp_path / "weights.bin").unlink()
        with pytest.raises(ModelError, match=r"weights\.bin"):
            Session.open(path)

    def test_nothing_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        for text in ("{ y = Foo (x) }", "{ y = Relu (nothere) }", "{ u = Neg (x) \n y = Abs (x) }"):
            proto = model(f"g (float[N] x) => (float[N] y) {text}", w=np.ones(3, np.float32))
            try:
                Session.open(proto).run({"x": np.ones(2, np.float32)})
            except UserError:
                continue
        with pytest.raises(ModelError):
            Session.open(b"not a model at all")
        out, err = capfd.readouterr()
        assert (out, err) == ("", "")

    def test_messages_are_cut_to_what_matters(self) -> None:
        long = (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code. /a/b/c_helper.h:91 space::Helper::Helper"
            "(const space::Shape&, space::Vector<int>&, bool) sizes == wanted was false.\n\x1b[31mred"
        )
        assert clear_line(long) == "Non-zero status code. sizes == wanted was false. ?[31mred"
        assert clear_line("graph.cc:12 Inject Tensor: w") == "Tensor: w"
        assert len(clear_line("x" * 1000)) == 300

    def test_something_that_is_no_model_is_a_user_error(self) -> None:
        with pytest.raises(UserError, match="cannot run a int"):
            Session.open(3)  # type: ignore[arg-type]


class TestOptimizedModel:
    def test_fusions_are_visible_and_weights_are_there(self) -> None:
        rng = np.random.default_rng(0)
        proto = model(
            "g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w) \n y = Relu (c) }",
            w=rng.standard_normal((8, 8, 3, 3), dtype=np.float32),
        )
        found = optimized_model(proto, level="extended")
        assert [node.op_type for node in found.graph.node] == ["FusedConv"]
        assert not external_data_helper.uses_external_data(found.graph.initializer[0])
        x = rng.standard_normal((1, 8, 6, 6), dtype=np.float32)
        with Session.open(proto) as plain, Session.open(found) as fused:
            np.testing.assert_allclose(
                fused.run({"x": x})["y"], plain.run({"x": x})["y"], rtol=1e-5, atol=1e-5
            )

    def test_weights_can_be_left_out(self, weight: np.ndarray) -> None:
        found = optimized_model(linear(weight), weights=False)
        assert len(found.SerializeToString()) < weight.nbytes
        assert list(found.graph.initializer[0].dims) == [64, 64]

    def test_no_file_is_left(
        self, weight: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        optimized_model(linear(weight))
        assert list(tmp_path.iterdir()) == []


class TestProfile:
    def test_each_node_of_the_graph_is_timed(
        self, x: np.ndarray, weight: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        proto = model("g (float[N, 64] x) => (float[N, 64] y) { [dense] m = MatMul (x, w) \n [bend] y = Tanh (m) }",
                      w=weight)  # fmt: skip
        nodes = profile(proto, {"x": x}, rounds=3)
        assert {(node.name, node.op_type, node.provider) for node in nodes} == {
            ("dense", "MatMul", "cpu"),
            ("bend", "Tanh", "cpu"),
        }
        assert all(node.seconds > 0 for node in nodes)
        assert nodes == sorted(nodes, key=lambda node: -node.seconds)
        assert list(tmp_path.iterdir()) == []

    def test_a_node_that_runs_twice_counts_twice_and_the_first_run_does_not(
        self, tmp_path: Path
    ) -> None:
        def kernel(start: int, microseconds: int) -> str:
            return (
                f'{{"cat": "Node", "name": "n_kernel_time", "ts": {start}, "dur": {microseconds}, '
                '"args": {"op_name": "Add", "provider": "CPUExecutionProvider"}}'
            )

        def run(start: int) -> str:
            return f'{{"cat": "Session", "name": "model_run", "ts": {start}, "dur": 100, "args": {{}}}}'

        path = tmp_path / "p.json"
        events = [
            kernel(10, 90),
            run(0),
            kernel(210, 20),
            kernel(240, 22),
            run(200),
            kernel(410, 44),
            run(400),
        ]
        path.write_text(f"[{', '.join(events)}]")
        (node,) = read_profile(path, runs=3)
        assert node.seconds == pytest.approx(43e-6)


@pytest.mark.gpu
def test_cuda_binds_inputs_and_outputs(weight: np.ndarray, x: np.ndarray) -> None:
    if "cuda" not in runtime.available_providers():
        pytest.skip("this build of onnxruntime has no CUDA provider")
    with Session.open(linear(weight), provider="cuda") as session:
        session.prepare({"x": x})()
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ weight, rtol=1e-2, atol=1e-2)
