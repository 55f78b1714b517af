"""Every case of the onnx backend suite through `optimize`: does each keep its result?

    python benchmarks/backend_suite.py [--kinds node simple ...] [--stride N] [--limit N] [--resume]

Each case is optimized in-process through the Python API. The original and the optimized model are
then both run with onnx's ReferenceEvaluator and with onnxruntime (its own optimization disabled), on
the inputs that the case brings. Outcomes, the worse of both evaluators:

    exact      the same bits, types and shapes
    tolerance  equal within the tolerances of the case
    unstable   the original differs from itself (random operators); types and shapes agree
    unchecked  no evaluator runs the original; the optimized model passes the onnx checker
    refused    a clear error, nothing written
    wrong      a different result, an invalid model, or one that no longer runs
    error      an exception that is not a clear error
    crashed    the process died

The exit code is 1 when there is anything in the last three rows. Work is done in forked children, so
that native code that dies costs one case; with --resume, cases in the journal are not repeated.
"""

import argparse
import json
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import RESULTS, Row, open_session, parser, say, write_results

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
OUTCOMES = (
    "exact",
    "tolerance",
    "unstable",
    "unchecked",
    "refused",
    "wrong",
    "error",
    "crashed",
)
BAD = ("wrong", "error", "crashed")
BATCH = 100
BATCH_SECONDS = 900


@dataclass(frozen=True)
class Case:
    """A model with inputs, both made only when asked for."""

    name: str
    kind: str
    model: Callable[[], onnx.ModelProto]
    inputs: Callable[[], list[Any]]
    rtol: float = 1e-3
    atol: float = 1e-7
    # The reference evaluator needs minutes for whole networks.
    evaluators: tuple[str, ...] = ("reference", "onnxruntime")


@dataclass
class Journal:
    """One line per case, written before and after, so that a death leaves its name."""

    path: Path
    rows: dict[str, Row] = field(default_factory=dict)

    def read(self) -> None:
        self.rows = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                row = json.loads(line)
                self.rows[row["name"]] = row

    def write(self, row: Row) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


# ---------------------------------------------------------------- the cases


def collect(kinds: Sequence[str]) -> Iterator[Case]:
    """All cases of the kinds, in a fixed order."""
    warnings.simplefilter("ignore")
    if "node" in kinds:
        from onnx.backend.test.case.node import collect_testcases

        for case in sorted(collect_testcases(None), key=lambda case: case.name):
            yield _node_case(case)
    from onnx.backend.test.loader import load_model_tests

    for kind in kinds:
        if kind not in ("node", "light"):
            for case in sorted(load_model_tests(kind=kind), key=lambda case: case.name):
                yield _stored_case(kind, case)
    if "light" in kinds:
        folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
        for path in sorted(folder.glob("*.onnx")):
            yield _light_case(path)


def _node_case(case: Any) -> Case:
    return Case(
        case.name,
        "node",
        lambda: case.model,
        lambda: [_as_input(value) for value in case.data_sets[0][0]],
        case.rtol,
        case.atol,
    )


def _as_input(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _stored_case(kind: str, case: Any) -> Case:
    folder = Path(case.model_dir)
    return Case(
        case.name,
        kind,
        lambda: onnx.load(str(folder / "model.onnx")),
        lambda: _stored_inputs(folder),
        case.rtol,
        case.atol,
    )


def _stored_inputs(folder: Path) -> list[Any]:
    graph = onnx.load(str(folder / "model.onnx")).graph
    files = (folder / "test_data_set_0").glob("input_*.pb")
    inputs: list[Any] = []
    for value, path in zip(graph.input, sorted(files, key=_number), strict=False):
        if value.type.HasField("sequence_type"):
            sequence = onnx.SequenceProto.FromString(path.read_bytes())
            inputs.append(onnx.numpy_helper.to_list(sequence))
        else:
            tensor = onnx.TensorProto.FromString(path.read_bytes())
            inputs.append(onnx.numpy_helper.to_array(tensor))
    return inputs


def _number(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _light_case(path: Path) -> Case:
    """A whole network whose weights are made by ConstantOfShape."""

    def inputs() -> list[Any]:
        graph = onnx.load(str(path)).graph
        constants = {tensor.name for tensor in graph.initializer}
        random = np.random.default_rng(0)
        shapes = [
            [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in graph.input
            if value.name not in constants
        ]
        return [random.random(shape, dtype=np.float32) for shape in shapes]

    return Case(
        path.stem,
        "light",
        lambda: onnx.load(str(path)),
        inputs,
        rtol=1e-3,
        atol=1e-5,
        evaluators=("onnxruntime",),
    )


# ---------------------------------------------------------------- one case


def optimize(model: onnx.ModelProto) -> onnx.ModelProto:
    """The recipe of `optimize`, in-process, without the comparison that would take a wrong pass back."""
    from onnxcomp.optimization import SIMPLIFY
    from onnxcomp.pipeline import Pipeline

    return Pipeline.parse(SIMPLIFY).run(model).model.to_proto()


def judge(case: Case) -> Row:
    """Optimizes one case and compares."""
    from onnxcomp.errors import UserError

    row: Row = {"name": case.name, "kind": case.kind}
    model = case.model()
    try:
        optimized = optimize(model)
    except UserError as error:
        return {**row, "outcome": "refused", "detail": _line(error)}
    except Exception as error:  # noqa: BLE001  (what this counts)
        return {**row, "outcome": "error", "detail": _line(f"{type(error).__name__}: {error}")}
    row |= {"nodes": len(model.graph.node), "nodes_after": len(optimized.graph.node)}
    results = {name: _compare(case, model, optimized, name) for name in case.evaluators}
    outcome, detail = max(results.values(), key=lambda result: _BADNESS[result[0]])
    if outcome == "unchecked":
        outcome, detail = _check(model, optimized)
    kept = ", ".join(name for name, result in results.items() if result[0] != "unchecked")
    return {**row, "outcome": outcome, "detail": detail, "evaluators": kept}


def _line(text: object) -> str:
    return " ".join(str(text).split())[:200]


# An evaluator that cannot run the original says nothing about the case.
_BADNESS = {"unchecked": 0, "exact": 1, "tolerance": 2, "unstable": 3, "wrong": 4}


def _check(model: onnx.ModelProto, optimized: onnx.ModelProto) -> tuple[str, str]:
    for which, proto in (("original", model), ("optimized", optimized)):
        try:
            onnx.checker.check_model(proto)
        except onnx.checker.ValidationError as error:
            # The suite has a few models that the checker refuses as they are.
            return "unchecked" if which == "original" else "wrong", _line(error)
    return "unchecked", ""


def _compare(
    case: Case, model: onnx.ModelProto, optimized: onnx.ModelProto, evaluator: str
) -> tuple[str, str]:
    run = {"reference": _run_reference, "onnxruntime": _run_onnxruntime}[evaluator]
    feeds = dict(zip(_input_names(model), case.inputs(), strict=False))
    feeds = {name: value for name, value in feeds.items() if name}
    try:
        expected, again = run(model, feeds), run(model, feeds)
    except Exception:  # noqa: BLE001  (an evaluator may lack anything)
        return "unchecked", ""
    try:
        got = run(optimized, feeds)
    except Exception as error:  # noqa: BLE001  (the same)
        return "wrong", _line(f"{evaluator} no longer runs it: {error}")
    stable = all(_equal(a, b) for a, b in zip(expected, again, strict=True))
    # Few coin tosses may come out alike twice.
    stable &= all(node.op_type != "Bernoulli" for node in model.graph.node)
    outcomes = [_judge_value(a, b, case) for a, b in zip(got, expected, strict=True)]
    worst = max(outcomes, key=lambda outcome: _BADNESS[outcome], default="exact")
    if not stable:
        same = all(_kind(a) == _kind(b) for a, b in zip(got, expected, strict=True))
        worst = "unstable" if same else "wrong"
    return worst, f"{evaluator} differs" if worst == "wrong" else ""


def _input_names(model: onnx.ModelProto) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value.name for value in model.graph.input if value.name not in constants]


def _run_reference(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    from onnx.reference import ReferenceEvaluator

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return list(ReferenceEvaluator(model).run(None, feeds))


def _run_onnxruntime(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    session = open_session(model.SerializeToString(), optimize=False)
    known = {value.name for value in session.get_inputs()}
    return list(session.run(None, {name: feeds[name] for name in feeds if name in known}))


def _judge_value(got: Any, expected: Any, case: Case) -> str:
    if _kind(got) != _kind(expected):
        return "wrong"
    if _equal(got, expected):
        return "exact"
    if isinstance(expected, list):
        outcomes = [_judge_value(a, b, case) for a, b in zip(got, expected, strict=True)]
        return max(outcomes, key=lambda outcome: _BADNESS[outcome])
    a, b = np.asarray(got), np.asarray(expected)
    if a.dtype.kind in "OUSb":
        return "wrong"
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    close = np.allclose(a.astype(wide), b.astype(wide), case.rtol, case.atol, equal_nan=True)
    return "tolerance" if close else "wrong"


def _kind(value: Any) -> Any:
    """Type and shape, or those of the elements of a sequence."""
    if isinstance(value, list):
        return [_kind(item) for item in value]
    if value is None or isinstance(value, dict | str):
        return type(value)
    array = np.asarray(value)
    return array.dtype, array.shape


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if a is None or isinstance(a, dict | str):
        return bool(a == b)
    x, y = np.asarray(a), np.asarray(b)
    if (x.dtype, x.shape) != (y.dtype, y.shape):
        return False
    return bool((x == y).all()) if x.dtype.kind in "OUS" else x.tobytes() == y.tobytes()


# ---------------------------------------------------------------- all of them


def _work(cases: Sequence[Case], path: Path) -> None:
    journal = Journal(path)
    for case in cases:
        journal.write({"name": case.name, "kind": case.kind, "outcome": "crashed"})
        journal.write(judge(case))


def _run_all(cases: Sequence[Case], journal: Journal) -> None:
    context = multiprocessing.get_context("fork")
    todo = [case for case in cases if case.name not in journal.rows]
    while todo:
        batch, todo = todo[:BATCH], todo[BATCH:]
        child = context.Process(target=_work, args=(batch, journal.path))
        child.start()
        child.join(BATCH_SECONDS)
        if child.is_alive():
            child.kill()
            child.join()
        journal.read()
        left = [case for case in batch if case.name not in journal.rows]
        if len(left) == len(batch):
            raise SystemExit("a batch ended before its first case")
        todo = left + todo
        say(f"{len(journal.rows)} of {len(cases)}: {dict(_counts(journal.rows.values()))}")


def _counts(rows: Any) -> Counter[str]:
    return Counter(row["outcome"] for row in rows)


def main() -> int:
    options = parser(__doc__ or "", models=False)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options.add_argument("--cases", nargs="+", default=[], help="only these names")
    options.add_argument("--stride", type=int, default=1, help="every Nth case")
    options.add_argument("--limit", type=int, help="at most so many cases")
    options.add_argument("--resume", action="store_true", help="go on with the journal")
    chosen = options.parse_args()
    output: Path = chosen.output or RESULTS / "backend_suite.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(output.with_suffix(".journal"))
    if chosen.resume:
        journal.read()
    else:
        journal.path.unlink(missing_ok=True)
    cases = _selected(chosen)
    _run_all(cases, journal)
    return _report(output, [journal.rows[case.name] for case in cases])


def _selected(chosen: argparse.Namespace) -> list[Case]:
    cases = list(collect(chosen.kinds))
    if chosen.cases:
        cases = [case for case in cases if case.name in chosen.cases]
    return cases[:: chosen.stride][: chosen.limit]


def _report(output: Path, rows: Sequence[Row]) -> int:
    table: list[Row] = []
    for kind in KINDS:
        counts = _counts(row for row in rows if row["kind"] == kind)
        if counts:
            table.append({"kind": kind, "cases": counts.total(), **counts})
    counts = _counts(rows)
    table.append({"kind": "all", "cases": counts.total(), **counts})
    shrunk = sum(row.get("nodes_after", 0) < row.get("nodes", 0) for row in rows)
    notes = [f"cases whose graph got fewer nodes: {shrunk}"]
    notes += [
        f"{row['outcome']}: {row['name']}: {row.get('detail', '')}"
        for row in rows
        if row["outcome"] in (*BAD, "refused")
    ]
    title = "onnx backend suite through optimize"
    write_results(output, title, table, ["kind", "cases", *OUTCOMES], notes=notes)
    output.with_suffix(".cases.json").write_text(json.dumps(rows, indent=0) + "\n")
    say(output.with_suffix(".md").read_text())
    return int(any(counts[outcome] for outcome in BAD))


if __name__ == "__main__":
    raise SystemExit(main())
