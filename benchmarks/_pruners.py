"""Ours and the other pruners as programs with one way to call them."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from _common import HERE, Child, Row, onnxcomp_command, run_child

ONNXSIM, TORCH = HERE / "_onnxsim_pruning.py", HERE / "_torch_pruning.py"
# Threads of numeric libraries would make times of one depend on what else runs.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TIMEOUT = 900.0
# Models that have a torch module in _twins.py.
TWINS = ("minilm", "fashion_vit")


@dataclass
class Made:
    """What became of a tool on a model."""

    failure: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0
    note: str = ""


def known_rows(output: Path, *, add: bool) -> list[Row]:
    """What an earlier run wrote, if this one is to add to it."""
    if not add or not output.exists():
        return []
    rows: list[Row] = json.loads(output.read_text())["rows"]
    return rows


def merged(known: list[Row], rows: list[Row]) -> list[Row]:
    """Both, those measured now in place of those of the same models."""
    now = {row["model"] for row in rows}
    return [*(row for row in known if row["model"] not in now), *rows]


def made_before(out: Path) -> Made | None:
    """What an earlier run knows of a file, None when it has to be made."""
    record = out.with_suffix(".json")
    if not record.exists():
        return None
    made = Made(**json.loads(record.read_text()))
    return made if made.failure or out.exists() else None


def make(command: Sequence[str | Path], out: Path, *, keep: bool, watch: float = 0) -> Made:
    """Runs a program that writes `out`; with `keep`, what an earlier run wrote is good enough."""
    if keep and (known := made_before(out)) is not None:
        return known
    record = out.with_suffix(".json")
    for old in (out, out.with_name(out.name + ".data")):
        old.unlink(missing_ok=True)
    child = run_child(command, timeout=TIMEOUT, env=ONE_THREAD, watch=watch)
    made = Made(
        _failure(child, out), child.seconds, child.peak_resident, child.stdout.strip()[-300:]
    )
    record.write_text(json.dumps(asdict(made)) + "\n")
    return made


def moved(made: Made, source: Path, out: Path) -> Made:
    """Gives what was made another name."""
    shutil.copyfile(source, out)
    out.with_suffix(".json").write_text(json.dumps(asdict(made)) + "\n")
    return made


def _failure(child: Child, out: Path) -> str:
    if child.returncode == 3 and not out.exists():
        return f"refused: {child.reason}"
    if child.returncode not in (0, 3):
        return child.reason or "failed"
    return "" if out.exists() else "wrote nothing"


def ours(python: str, model: Path, out: Path, *options: str | Path) -> list[str | Path]:
    """`onnxcomp prune channels`."""
    return onnxcomp_command(
        python, "prune", "channels", model, "-o", out, "--threads", "1", *options
    )


def optimized(python: str, model: Path, out: Path) -> list[str | Path]:
    """`onnxcomp optimize`: what we prune starts from that."""
    return onnxcomp_command(python, "optimize", model, "-o", out)


def constant_weights(python: str, model: Path, folder: Path) -> Path:
    """The model, or one whose weights are no inputs any more, which callers might have replaced.

    Exporters of old wrote them so; everybody gets the same.
    """
    proto = onnx.load(str(model), load_external_data=False)
    inputs = {value.name for value in proto.graph.input}
    if proto.ir_version < 4 or not inputs & {t.name for t in proto.graph.initializer}:
        return model
    out = folder / f"{model.parent.name}.constant.onnx"
    made = make(
        onnxcomp_command(python, "apply", "fix-signature", model, "-o", out), out, keep=True
    )
    if made.failure:
        raise SystemExit(f"fix-signature: {made.failure}")
    return out


def onnxsim(
    python: str, model: Path, out: Path, share: float, *flags: str | Path
) -> list[str | Path]:
    """onnxsim's structured pruning."""
    return [python, ONNXSIM, model, out, str(share), *flags]


def torch_program(python: str, *arguments: str | Path) -> list[str | Path]:
    """Torch-Pruning, or the export of a network."""
    return [python, TORCH, *arguments]
