"""Side-by-side timing (its bookkeeping, never its times), peak memory, and the processor's features."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcomp import bench
from onnxcomp.bench import Limits, Spread, measure
from onnxcomp.cpuinfo import cpu, cpu_features, parse_cpuinfo, parse_sysctl
from onnxcomp.errors import ModelError, RuntimeUnavailableError, SamplesError, UserError
from onnxcomp.ir import Model
from onnxcomp.memory import peak_memory

QUICK = Limits(rounds=6, seconds=1)


def chain(length: int, size: int = 64) -> onnx.ModelProto:
    nodes = "\n".join(f"v{i + 1} = MatMul (v{i}, w)" for i in range(length))
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        f"g (float[N, {size}] v0) => (float[N, {size}] v{length}) {{ {nodes} }}"
    )
    weight = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32) / 8
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return proto


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_WARM_UP_SECONDS", 0.01)
    monkeypatch.setattr(bench, "_STRETCH_SECONDS", 0.0001)


class TestSpread:
    def test_median_interval_and_quartiles(self) -> None:
        found = Spread.of([float(i) for i in range(101)])
        assert (found.median, found.quartile1, found.quartile3) == (50, 25, 75)
        assert (found.low, found.high) == (40, 60)

    def test_few_readings_give_the_whole_range(self) -> None:
        found = Spread.of([3.0, 1.0, 2.0])
        assert (found.low, found.median, found.high) == (1, 2, 3)


class TestMeasure:
    def test_ratios_are_to_the_first_model_of_the_same_round(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Each reading costs what the call says, times a load that changes from round to round.
        order: list[float] = []

        def reading(call: float, _repeats: int) -> float:
            order.append(call)
            return call * (1 + (len(order) - 1) // 2)

        monkeypatch.setattr(bench, "_STRETCHES", 1)
        monkeypatch.setattr(bench, "_reading", reading)
        readings = bench._rounds(
            {"a": [2.0], "b": [1.0]},  # type: ignore[list-item]
            {"a": 1, "b": 1},
            Limits(rounds=20, seconds=60),
            None,
        )
        assert len(readings["a"]) == 20
        assert [b / a for a, b in zip(readings["a"], readings["b"], strict=True)] == [0.5] * 20
        rounds = [tuple(order[i : i + 2]) for i in range(0, 40, 2)]
        assert set(rounds) == {(2.0, 1.0), (1.0, 2.0)}

    def test_models_are_timed_and_the_base_has_ratio_one(self) -> None:
        feeds = {"v0": np.ones((4, 64), np.float32)}
        found = measure({"short": chain(1), "long": chain(40)}, feeds, limits=QUICK)
        assert [timing.name for timing in found.timings] == ["short", "long"]
        assert found.rounds == 6
        assert found["short"].ratio == Spread(1, 1, 1, 1, 1)
        assert found["short"].runs_per_reading > 1
        assert found["long"].seconds.median > 0
        data = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert data["timings"][1]["ratio"]["median"] > 0
        assert data["threads"] == 1

    def test_rounds_take_samples_in_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        used: list[int] = []
        calls = {"a": [lambda: used.append(0), lambda: used.append(1)]}
        monkeypatch.setattr(bench, "_STRETCHES", 2)
        bench._rounds(calls, {"a": 1}, Limits(rounds=5, seconds=60), None)
        assert used == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]

    def test_an_interrupted_stretch_does_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stretches = iter([9.0, 1.0, 2.0, 7.0, 3.0, 2.0])
        monkeypatch.setattr(bench, "_reading", lambda _call, _repeats: next(stretches))
        monkeypatch.setattr(bench, "_STRETCHES", 3)
        nothing: dict[str, bench.Call] = {"a": lambda: None, "b": lambda: None}
        assert bench._round(nothing, {"a": 1, "b": 1}) == {"a": 2.0, "b": 1.0}

    def test_time_is_bounded_but_a_few_rounds_are_kept(self) -> None:
        readings = bench._rounds({"a": [lambda: None]}, {"a": 1}, Limits(10**9, 0), None)
        assert len(readings["a"]) == 5

    def test_progress_ends_at_one(self) -> None:
        shares: list[float] = []
        bench._rounds({"a": [lambda: None]}, {"a": 1}, QUICK, shares.append)
        assert shares == sorted(shares)
        assert shares[-1] == 1

    def test_garbage_collection_is_switched_on_again_after_a_failure(self) -> None:
        import gc

        def fail() -> None:
            assert not gc.isenabled()
            raise SamplesError("no")

        with pytest.raises(SamplesError):
            bench._rounds({"a": [fail]}, {"a": 1}, QUICK, None)
        assert gc.isenabled()

    def test_nothing_to_measure(self) -> None:
        with pytest.raises(UserError, match="nothing to measure"):
            measure({}, {"x": np.ones(1)})
        with pytest.raises(UserError, match="nothing to measure"):
            measure({"a": chain(1)}, [])

    def test_samples_that_do_not_fit_are_an_error_before_any_timing(self) -> None:
        with pytest.raises(SamplesError, match="v0"):
            measure({"a": chain(1)}, {"x": np.ones(1)})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
class TestMemory:
    FEEDS = ({"v0": np.ones((1, 1024), np.float32)},)

    def test_weights_and_activations_are_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        Model.load(chain(1, 1024)).save(path)  # 4 MiB of weights
        small = peak_memory(path, self.FEEDS)
        wide = ({"v0": np.ones((8192, 1024), np.float32)},)  # 32 MiB out; the feeds do not count
        large = peak_memory(path, wide)
        assert small is not None
        assert large is not None
        assert 4 << 20 < small.nbytes < 64 << 20
        assert large.nbytes - small.nbytes > 24 << 20
        assert small.baseline > 1 << 20

    def test_a_parent_that_has_grown_does_not_count(self) -> None:
        ballast = np.ones(1 << 24)  # 128 MiB, touched
        found = peak_memory(Model.load(chain(1, 64)), ({"v0": np.ones((1, 64), np.float32)},))
        assert found is not None
        assert found.nbytes < 64 << 20
        assert ballast[0] == 1

    def test_feeds_of_every_type_arrive(self) -> None:
        proto = parser.parse_model("""
            <ir_version: 10, opset_import: ["" : 21]>
            g (bfloat16[2] b, string[2] s, int4[3] i) => (float[2] y, string[2] t, float[3] j) {
              y = Cast <to = 1> (b)
              t = Identity (s)
              j = Cast <to = 1> (i)
            }
        """)
        feeds = {
            "b": np.ones(2, ml_dtypes.bfloat16),
            "s": np.array(["a", "bc"], object),
            "i": np.array([1, -2, 3], ml_dtypes.int4),
        }
        assert peak_memory(proto, [feeds]) is not None

    def test_errors_of_the_child_are_told(self) -> None:
        with pytest.raises(SamplesError, match='no value for input "v0"'):
            peak_memory(chain(1), [{}])
        with pytest.raises(ModelError, match="not an ONNX model"):
            peak_memory(b"not a model", [{}])

    def test_a_child_that_hangs_or_dies_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RuntimeUnavailableError, match="did not finish within"):
            peak_memory(chain(1), self.FEEDS, timeout=0.01)
        monkeypatch.setattr("sys.executable", "/bin/false")
        if os.access("/bin/false", os.X_OK):
            with pytest.raises(RuntimeUnavailableError, match=r"died.*exit code 1"):
                peak_memory(chain(1), self.FEEDS)

    def test_modules_in_the_current_folder_are_not_imported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "onnxruntime.py").write_text("raise SystemExit('imported')")
        monkeypatch.chdir(tmp_path)
        feeds = ({"v0": np.ones((1, 64), np.float32)},)
        assert peak_memory(chain(1), feeds) is not None


class TestCpu:
    def test_linux_on_x86(self) -> None:
        name, features = parse_cpuinfo(
            "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n"
            "\nprocessor\t: 1\nmodel name\t: Other\nflags\t\t: fpu sse9\n"
        )
        assert name == "Some CPU"
        assert features == {"fpu", "avx2", "avx512f", "avx512_vnni", "amx_int8"}

    def test_linux_on_arm(self) -> None:
        _, features = parse_cpuinfo("Features\t: fp asimd asimddp i8mm sve\n")
        assert features == {"fp", "neon", "dotprod", "i8mm", "sve"}

    def test_macos(self) -> None:
        name, features = parse_sysctl(
            "machdep.cpu.brand_string: Apple M9\nhw.optional.arm.FEAT_DotProd: 1\n"
            "hw.optional.arm.FEAT_I8MM: 0\nhw.optional.AdvSIMD: 1\n"
            "machdep.cpu.features: FPU AVX1.0\nmachdep.cpu.leaf7_features: AVX2 AVX512F AVX512VNNI\n"
        )
        assert name == "Apple M9"
        assert features == {"dotprod", "neon", "fpu", "avx", "avx2", "avx512f", "avx512_vnni"}

    def test_nothing_known(self) -> None:
        assert parse_cpuinfo("") == ("", frozenset())
        assert parse_sysctl("") == ("", frozenset())

    def test_this_machine(self) -> None:
        assert cpu().arch
        assert cpu_features() == cpu().features
