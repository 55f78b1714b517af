"""Rows of the table of models, from models and from measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxcomp.ir.external import external_tensors
from onnxcomp.ir.guard import read_structure
from onnxcomp.ir.scopes import proto_graphs
from onnxcomp.report.digest import file_digest
from onnxcomp.report.record import ModelRow, Spread

if TYPE_CHECKING:
    from pathlib import Path

    from onnx import ModelProto

    from onnxcomp.bench import Benchmark, Timing
    from onnxcomp.ir import Model


def model_row(
    label: str, model: Model, path: Path | None = None, *, digest: bool = False
) -> ModelRow:
    """Describes a model that is in memory: its size and its nodes.

    Args:
        label: How the row is called.
        model: The model.
        path: The file that holds it, if there is one.
        digest: Also hash the contents, which takes a second per gigabyte.
    """
    nodes = sum(1 for _ in model.nodes())
    if path is None:
        return ModelRow(label, bytes=model.nbytes, nodes=nodes)
    return replace(_on_disk(label, path, _files(path), digest=digest), nodes=nodes)


def file_row(label: str, path: Path, *, digest: bool = False) -> ModelRow:
    """Describes a model file without loading its weights.

    Raises:
        UserError: If it cannot be read.
        ModelError: If it is not a model.
    """
    proto = read_structure(path)
    nodes = sum(len(graph.node) for graph in proto_graphs(proto))
    return replace(_on_disk(label, path, _files_of(path, proto), digest=digest), nodes=nodes)


def _on_disk(label: str, path: Path, files: list[Path], *, digest: bool) -> ModelRow:
    return ModelRow(
        label,
        path=str(path),
        bytes=sum(file.stat().st_size for file in files if file.is_file()),
        digest=file_digest(files[0], also=files[1:]) if digest else "",
    )


def _files(path: Path) -> list[Path]:
    return _files_of(path, read_structure(path))


def _files_of(path: Path, proto: ModelProto) -> list[Path]:
    """Returns a model file and the data files that it refers to, in the order of their names."""
    names = {tensor.location for tensor in external_tensors(proto)}
    return [path, *(path.parent / name for name in sorted(names))]


def timed_rows(rows: tuple[ModelRow, ...], benchmark: Benchmark) -> tuple[ModelRow, ...]:
    """Adds speed and memory to rows, from a benchmark of the same models in the same order."""
    pairs = zip(rows, benchmark.timings, strict=True)
    return tuple(timed_row(row, timing, first=row is rows[0]) for row, timing in pairs)


def timed_row(row: ModelRow, timing: Timing, *, first: bool) -> ModelRow:
    """Adds speed and memory to a row; the first one is what the others are compared with."""
    share = Spread(timing.ratio.median, timing.ratio.low, timing.ratio.high)
    return replace(
        row,
        latency=Spread(timing.seconds.median, timing.seconds.low, timing.seconds.high),
        ratio=None if first else share.inverse(),
        peak_memory=timing.memory.nbytes if timing.memory else None,
    )
