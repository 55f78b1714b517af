"""What the README says works: its commands, its Python and its recipe are run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp import demo
from tests.helpers import text

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = BLOCK.findall(README.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and samples, as the README's reader has."""
    here = tmp_path_factory.mktemp("readme")
    shutil.copy(demo.MODEL, here / "model.onnx")
    (here / "samples").mkdir()
    with np.load(demo.CALIBRATION) as data:
        for index, image in enumerate(data["image"][:24]):
            np.save(here / "samples" / f"{index}.npy", image)
    recipe = next(text for kind, text in BLOCKS if kind == "toml" and "recipe.toml" in text)
    (here / "recipe.toml").write_text(recipe)
    rules = next(text for kind, text in BLOCKS if kind == "python" and "# my_rules.py" in text)
    (here / "my_rules.py").write_text(rules)
    return here


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_commands(folder: Path) -> None:
    lines = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    commands = [line.split("  #")[0].strip() for line in lines if line.startswith("onnxcomp ")]
    assert len(commands) >= 10
    for command in commands:
        done = run(["bash", "-c", command], folder)
        assert done.returncode == (3 if done.returncode == 3 and " compare " in command else 0), (
            f"{command}\n{done.stdout}\n{done.stderr}"
        )


@pytest.mark.slow
def test_python(folder: Path) -> None:
    code = "\n".join(text for kind, text in BLOCKS if kind == "python")
    done = run([sys.executable, "-c", code], folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "compressed.onnx").exists()


FORKED = """
    <ir_version: 8, opset_import: ["" : 17]>
    forked (float[N, 3, 32, 32] x) => (float[N, 8, 32, 32] y)
    <float[8, 3, 3, 3] w, float[8, 8, 3, 3] v, float[8] s, float[8] b, float[8] m,
     float[8] r = {1, 1, 1, 1, 1, 1, 1, 1}> {
      [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w)
      [stem_bn] c = BatchNormalization (a, s, b, m, r)
      [head] d = Conv <pads = [1, 1, 1, 1]> (c, v)
      [head_bn] e = BatchNormalization (d, s, b, m, r)
      [skip] y = Add (e, d)
    }
"""


@pytest.mark.slow
def test_the_explanation_is_what_the_command_prints(folder: Path) -> None:
    shown = next(block for kind, block in BLOCKS if kind == "text" and "--explain" in block)
    command, _, expected = shown.removeprefix("$ ").partition("\n")
    onnx.save(text.model(FORKED), folder / "forked.onnx")
    done = run(["bash", "-c", command], folder)
    assert done.returncode == 0, done.stderr
    times = re.compile(r"[0-9.]+ (us|ms|s)\b")
    assert times.sub("T", done.stdout) == times.sub("T", expected)


def test_install_commands_are_the_ones_that_ci_runs() -> None:
    script = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    shell = "\n".join(text for kind, text in BLOCKS if kind == "sh")
    assert "pip install . && onnxcomp demo" in shell
    assert "pip install -e '.[dev]' && pytest" in shell
    assert "install --quiet --disable-pip-version-check -e '.[dev]'" in script
    assert 'onnxcomp" demo' in script
