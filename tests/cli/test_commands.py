"""What each command does, end to end on small models."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from tests.cli.conftest import NET
from tests.helpers import text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Done

    Run = Callable[..., Done]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Real samples for `net`."""
    path = tmp_path / "samples.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(8, 1, 3)).astype(np.float32))
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """As `net`, with one weight that differs."""
    path = tmp_path / "other.onnx"
    model = text.model(NET)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights.reshape(-1)[0] += 0.5
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, path)
    return path


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_optimize_writes_the_model_and_says_what_it_did(
    command: Run, net: Path, tmp_path: Path
) -> None:
    before = sha(net)
    place = tmp_path / "out.onnx"
    done = command("optimize", net, "-o", place)
    assert done.code == 0, done.err
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0].split() == ["model", "size", "nodes"]
    assert lines[2].split()[0] == "original"
    assert lines[2].split()[-1] == "4"
    assert "eliminate-identity" in done.out
    assert lines[-1] == f"wrote {place}"
    assert sha(net) == before
    assert [node.op_type for node in onnx.load(place).graph.node] == ["MatMul", "Relu"]


def test_optimize_quietly_says_nothing(command: Run, net: Path, tmp_path: Path) -> None:
    assert command("optimize", net, "-o", tmp_path / "out.onnx", "-q") == (0, "", "")


def test_explain_tells_what_was_done_where(command: Run, net: Path, tmp_path: Path) -> None:
    done = command("optimize", net, "-o", tmp_path / "out.onnx", "--explain")
    assert done.code == 0, done.err
    assert "nodes without effect removed: Identity -> nothing" in done.out
    passes = ["run", "--passes", "eliminate-identity", net, "-o", tmp_path / "out2.onnx"]
    document = json.loads(command(*passes, "--explain", "--json").out)
    assert document["explanation"]["passes"][0]["nodes"] == -2
    assert (
        json.loads(command(*passes[:-1], tmp_path / "3.onnx", "--json").out)["explanation"] is None
    )


def test_optimize_json_is_the_report(command: Run, net: Path, data: Path, tmp_path: Path) -> None:
    place, report = tmp_path / "out.onnx", tmp_path / "report.json"
    done = command("optimize", net, "-o", place, "--data", data, "--json", "--report", report)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document == json.loads(report.read_text())
    assert document["command"] == "optimize"
    assert document["options"]["model"] == str(net)
    assert document["digests"]["input"] == document["models"][0]["digest"]
    assert document["digests"]["samples"]
    assert [row["nodes"] for row in document["models"]] == [4, 2]
    assert document["models"][1]["bytes"] == place.stat().st_size
    assert set(document["environment"]["packages"]) >= {"onnx", "onnxruntime", "numpy", "onnxcomp"}


def test_report_is_the_same_again(command: Run, net: Path, tmp_path: Path) -> None:
    reports = []
    for number in (1, 2):
        place = tmp_path / f"{number}.json"
        assert command("optimize", net, "-o", tmp_path / "o.onnx", "--report", place).code == 0
        document = json.loads(place.read_text())
        document.pop("seconds")
        document["options"].pop("report")
        for step in document["steps"]:
            step.pop("seconds")
        reports.append(document)
    assert reports[0] == reports[1]


def test_in_place_replaces_the_input_only_when_asked(command: Run, net: Path) -> None:
    before = sha(net)
    done = command("optimize", net, "-o", net)
    assert done.code == 1
    assert "is the input itself" in done.err
    assert sha(net) == before
    assert command("optimize", net, "--in-place").code == 0
    assert len(onnx.load(net).graph.node) == 2


def test_external_data_counts_into_the_size(command: Run, tmp_path: Path) -> None:
    source, place = tmp_path / "big.onnx", tmp_path / "out.onnx"
    big = text.model(
        "g (float[1, 64] x) => (float[1, 64] y) <float[64, 64] w> { y = MatMul (x, w) }"
    )
    onnx.save(big, source)
    done = command("optimize", source, "-o", place, "--external-data", "--json")
    assert done.code == 0, done.err
    total = place.stat().st_size + (tmp_path / "out.onnx.data").stat().st_size
    assert json.loads(done.out)["models"][1]["bytes"] == total > 64 * 64 * 4


def test_measure_adds_speed_and_fidelity(command: Run, net: Path, tmp_path: Path) -> None:
    done = command("optimize", net, "-o", tmp_path / "o.onnx", "--measure", "--json")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["models"]
    assert first["latency"]["median"] > 0
    assert first["ratio"] is None
    assert second["ratio"]["low"] <= second["ratio"]["median"] <= second["ratio"]["high"]
    assert second["metrics"]["cosine"] == pytest.approx(1)


def test_measure_in_place_is_refused_before_any_work(command: Run, net: Path) -> None:
    before = sha(net)
    assert command("optimize", net, "--in-place", "--measure").code == 2
    assert sha(net) == before


@pytest.mark.parametrize("bad", ["nothing", b"", b"garbage", "folder"])
def test_bad_input_is_one_line_and_leaves_nothing(
    bad: str | bytes, command: Run, tmp_path: Path
) -> None:
    source = tmp_path / "bad.onnx"
    if isinstance(bad, bytes):
        source.write_bytes(bad)
    elif bad == "folder":
        source.mkdir()
    before = sorted(tmp_path.iterdir())
    done = command("optimize", source, "-o", tmp_path / "out.onnx")
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_output_is_checked_before_the_input_is_read(command: Run, tmp_path: Path) -> None:
    done = command("optimize", tmp_path / "none.onnx", "-o", tmp_path / "no" / "out.onnx")
    assert done.code == 1
    assert "the folder does not exist" in done.err


def test_run_takes_passes_as_text(command: Run, net: Path, tmp_path: Path) -> None:
    place = tmp_path / "out.onnx"
    done = command("run", "--passes", "eliminate-identity", net, "-o", place)
    assert done.code == 0, done.err
    assert "Identity" not in [node.op_type for node in onnx.load(place).graph.node]


def test_run_names_the_pass_that_was_meant(command: Run, net: Path, tmp_path: Path) -> None:
    done = command("run", "--passes", "eliminate-identty", net, "-o", tmp_path / "out.onnx")
    assert done.code == 1
    assert "did you mean eliminate-identity" in done.err


@pytest.mark.parametrize(("limit", "code"), [("min-sqnr = 100", 0), ("min-sqnr = 300", 3)])
def test_run_holds_the_result_against_the_recipe(
    limit: str, code: int, command: Run, net: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[[step]]\npass = "eliminate-identity"\n[check]\n{limit}\n')
    done = command("run", recipe, net, "-o", tmp_path / "out.onnx")
    assert done.code == code, done.err
    assert done.err.startswith("missed: min-sqnr is 200" if code else "")


def test_run_finds_a_misspelt_limit_before_any_work(
    command: Run, net: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[step]]\npass = "eliminate-identity"\n[check]\nmin-snr = 1\n')
    done = command("run", recipe, net, "-o", tmp_path / "out.onnx")
    assert done.code == 1
    assert 'unknown check "min-snr"' in done.err
    assert not (tmp_path / "out.onnx").exists()


def test_compare_equal_models(command: Run, net: Path, data: Path) -> None:
    done = command("compare", net, net, "--data", data)
    assert done == (0, done.out, "")
    assert done.out.splitlines()[-1] == "8 samples: identical (rtol 0.001, atol 1e-05)"


def test_compare_different_models_exits_with_3(
    command: Run, net: Path, other: Path, data: Path
) -> None:
    done = command("compare", net, other, "--data", data)
    assert done.code == 3
    assert done.err.startswith('missed: output "y" of sample ')
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--min-cosine", "0.5"], 0),
        (["--min-cosine", "1.1"], 3),
        (["--min-sqnr", "1"], 0),
        (["--atol", "10"], 0),
        (["--atol", "10", "--min-sqnr", "190"], 3),
    ],
)
def test_compare_with_limits_of_the_user(
    options: list[str], code: int, command: Run, net: Path, other: Path, data: Path
) -> None:
    done = command("compare", net, other, "--data", data, "--json", *options)
    assert done.code == code
    assert json.loads(done.out)["passed"] is (code == 0)


def test_compare_warns_of_made_up_inputs(command: Run, net: Path) -> None:
    done = command("compare", net, net)
    assert (done.code, done.err) == (
        0,
        "warning: no --data: the models are compared on made-up inputs\n",
    )


def test_random_data_is_warned_of(command: Run, net: Path) -> None:
    done = command("compare", net, net, "--data", "random:4")
    assert done.code == 0
    assert done.err.startswith("warning: Random samples")
    assert command("compare", net, net, "--data", "random:4", "-q").err == ""


def test_samples_without_data_are_wrong_usage(command: Run, net: Path) -> None:
    done = command("compare", net, net, "--samples", "3")
    assert (done.code, done.err) == (
        2,
        "error: --samples needs --data (see 'onnxcomp compare --help')\n",
    )


def test_bench_times_models_side_by_side(command: Run, net: Path, other: Path) -> None:
    done = command("bench", net, other, "--seconds", "0.2", "--no-memory", "--json")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["models"]
    assert (first["label"], second["label"]) == ("net.onnx", "other.onnx")
    assert first["ratio"] is None
    assert second["ratio"]["median"] > 0


def test_bench_tells_models_of_one_name_apart(command: Run, net: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "net.onnx").write_bytes(net.read_bytes())
    done = command("bench", net, twin / "net.onnx", "--seconds", "0.1", "--no-memory")
    assert done.code == 0, done.err
    assert "twin/net.onnx" in done.out
    assert f"{tmp_path.name}/net.onnx" in done.out


def test_bench_names_providers_that_are_there(command: Run, net: Path) -> None:
    done = command("bench", net, "--provider", "cude")
    assert done.code == 1
    assert "available here: cpu" in done.err or "available here:" in done.err
    assert done.err.count("\n") == 1


def test_inspect_shows_what_is_in_the_model(command: Run, net: Path) -> None:
    done = command("inspect", net)
    assert done.code == 0, done.err
    assert "input   x: float32 [N x 3]" in done.out
    assert "opsets  ai.onnx 17 (IR 8)" in done.out
    assert "with N=1" in done.out
    assert "cpu runs " in done.out


def test_inspect_json(command: Run, net: Path) -> None:
    document = json.loads(command("inspect", net, "--json", "--dim", "N=5").out)
    assert document["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["N", 3], "optional": False}
    ]
    operators = {row["operator"]: row for row in document["operators"]}
    assert operators["MatMul"]["flops"] == 2 * 5 * 3 * 4
    assert operators["MatMul"]["weights"] == 48
    assert document["assumed"] == {"N": 5}
    assert document["fused"][0]["before"]["Identity"] == 2


def test_inspect_shows_channels(command: Run, net: Path) -> None:
    done = command("inspect", net, "--channels")
    assert done.code == 0
    assert "groups of channels" in done.out
    document = json.loads(command("inspect", net, "--channels", "--json").out)
    assert document["parameters"] >= document["reachable"]


def test_inspect_names_dimensions_that_are_open(command: Run, net: Path) -> None:
    done = command("inspect", net, "--dim", "M=5")
    assert done.code == 1
    assert done.err == 'error: no input has an open dimension "M" (open are: N)\n'


def test_inspect_escapes_what_strangers_wrote(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "evil.onnx"
    model = text.model(NET)
    model.graph.input[0].name = model.graph.node[0].input[0] = "x\x1b[31m\n[bold]"
    model.doc_string = "\x1b]0;title\x07"
    onnx.save(model, path)
    done = command("inspect", path)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert "\x07" not in done.out
    assert r"x\x1b[31m\n[bold]" in done.out


def test_passes_lists_what_is_installed_and_what_is_broken(command: Run, plugin: None) -> None:
    done = command("passes")
    assert done.code == 0
    rows = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert "toy-passes" in rows["toy-relu6"]
    assert "broken" in rows["toy-broken"]
    document = {row["name"]: row for row in json.loads(command("passes", "--json").out)}
    assert document["eliminate-identity"]["lossless"] is True
    assert "error" in document["toy-broken"]


def test_passes_show_tells_options_and_codes(command: Run, plugin: None) -> None:
    shown = command("passes", "show", "toy-relu6").out
    assert "Bounds every Relu from above." in shown
    assert "  bound=float  (default: 6.0)\n      The upper bound." in shown
    document = json.loads(command("passes", "show", "toy-relu6", "--json").out)
    assert document["options"]["bound"]["default"] == 6.0


def test_passes_show_suggests_near_names(command: Run) -> None:
    done = command("passes", "show", "fuse-batchnom")
    assert (done.code, done.err) == (
        1,
        done.err,
    )
    assert done.err.startswith('error: no pass "fuse-batchnom" (did you mean fuse-batchnorm')


def test_explain_knows_codes_of_the_compiler_and_of_passes(command: Run) -> None:
    assert command("explain", "gen101").out.startswith("GEN101 (onnxcomp)\nRandom samples")
    assert command("explain", "FLD101").out.startswith("FLD101 (fold-constants)\n")
    done = command("explain", "GEN1O1")
    assert done.code == 1
    assert "did you mean GEN101" in done.err
    assert "FLD101" in json.loads(command("explain", "--json").out)


def test_a_killed_command_leaves_no_file(net: Path, tmp_path: Path) -> None:
    """The whole program, killed at its heart: no output, no temporary file, the input as it was."""
    before = sha(net)
    code = (
        "import os, signal, sys\n"
        "from onnxcomp.ir import atomic\n"
        "def die(self, *_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic.OutputFile.publish = die\n"
        "from onnxcomp.cli import main\n"
        f"sys.argv = ['onnxcomp', 'optimize', {str(net)!r}, '-o', {str(tmp_path / 'o.onnx')!r}]\n"
        "sys.exit(main.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: onnxcomp optimize (writing the result) died: killed")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert sha(net) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(
    command: Run, net: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    done = command("optimize", net, "-o", folder / "o.onnx")
    assert done.code == 1
    assert "read-only" in done.err


def test_limits_on_models_can_be_raised_as_the_error_says(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "deep.onnx"
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 13]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
    )
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.zeros((1,) * 5, np.float32), "w")
    )
    onnx.save(model, path)
    done = command("inspect", path, "--max-rank", "4", "--no-fusions")
    assert done.code == 1
    assert "the limit is 4 (raise it with --max-rank)" in done.err
    assert command("--max-rank", "5", "inspect", path, "--no-fusions").code == 0
