"""Every case of the onnx backend suite through `optimize` and each pass: does each keep its result?

    python benchmarks/backend_suite.py [--kinds node simple ...] [--stride N] [--limit N] [--resume]
                                       [--passes NAME ... | none]

Each case is optimized in-process through the Python API, and rewritten by every lossless pass alone.
The original and what became of it are then both run with onnx's ReferenceEvaluator and with
onnxruntime (its own optimization disabled), on the inputs that the case brings. Outcomes, the worse
of both evaluators:

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


@dataclass(frozen=True)
class Expected:
    """What the original makes of the inputs of a case."""

    feeds: dict[str, Any]
    outputs: list[Any]
    stable: bool


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


def rewritten(model: onnx.ModelProto, recipe: str) -> tuple[onnx.ModelProto, bool]:
    """What a recipe makes, without the comparison that would take a wrong pass back; and if anything."""
    from onnxcomp.pipeline import Pipeline

    result = Pipeline.parse(recipe).run(model)
    return result.model.to_proto(), result.changed


def lossless_passes() -> list[str]:
    """Every lossless pass that needs no options."""
    from onnxcomp import registry

    kinds = [info.load() for info in registry.passes().values() if not info.problem()]
    return [
        kind.name
        for kind in kinds
        if kind.lossless
        and not kind.needs
        and not any(option.is_required() for option in kind.model_fields.values())
    ]


def judge(case: Case, passes: Sequence[str]) -> Row:
    """Optimizes one case, runs every pass alone on it, and compares."""
    from onnxcomp.optimization import SIMPLIFY

    model = case.model()
    expected = {name: _expected(case, model, name) for name in case.evaluators}
    row = {"name": case.name, "kind": case.kind, **_judge_recipe(case, model, SIMPLIFY, expected)}
    alone = {}
    if expected.get("onnxruntime"):  # for one pass the quick evaluator is enough
        expected = {"onnxruntime": expected["onnxruntime"]}
    for name in passes:
        found = _judge_recipe(case, model, name, expected)
        if found["outcome"] != "untouched":
            alone[name] = [found["outcome"], found["detail"]]
    return {**row, "passes": alone}


def _judge_recipe(
    case: Case, model: onnx.ModelProto, recipe: str, expected: dict[str, Expected | None]
) -> Row:
    from onnxcomp.errors import PassFailedError, UserError

    try:
        optimized, changed = rewritten(model, recipe)
    except PassFailedError as error:
        return {"outcome": "error", "detail": _line(error)}
    except UserError as error:
        return {"outcome": "refused", "detail": _line(error)}
    except Exception as error:  # noqa: BLE001  (what this counts)
        return {"outcome": "error", "detail": _line(f"{type(error).__name__}: {error}")}
    if not changed and "," not in recipe:
        return {"outcome": "untouched", "detail": ""}
    results = {
        name: _compare(case, found, optimized, name) if found else ("unchecked", "")
        for name, found in expected.items()
    }
    if recipe == "convert-opset":  # an evaluator need not know the new opset
        results = {
            k: r if "NOT_IMPL" not in r[1] else ("unchecked", "") for k, r in results.items()
        }
    outcome, detail = max(results.values(), key=lambda result: _BADNESS[result[0]])
    if outcome == "unchecked":
        outcome, detail = _check(model, optimized)
    kept = ", ".join(name for name, result in results.items() if result[0] != "unchecked")
    sizes = {"nodes": len(model.graph.node), "nodes_after": len(optimized.graph.node)}
    return {**sizes, "outcome": outcome, "detail": detail, "evaluators": kept}


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


def _expected(case: Case, model: onnx.ModelProto, evaluator: str) -> Expected | None:
    run = _RUN[evaluator]
    feeds = dict(zip(_input_names(model), case.inputs(), strict=False))
    feeds = {name: value for name, value in feeds.items() if name}
    try:
        outputs, again = run(model, feeds), run(model, feeds)
    except Exception:  # noqa: BLE001  (an evaluator may lack anything)
        return None
    stable = all(_equal(a, b) for a, b in zip(outputs, again, strict=True))
    # Few coin tosses may come out alike twice.
    stable &= all(node.op_type != "Bernoulli" for node in model.graph.node)
    return Expected(feeds, outputs, stable)


def _compare(
    case: Case, found: Expected, optimized: onnx.ModelProto, evaluator: str
) -> tuple[str, str]:
    expected, stable = found.outputs, found.stable
    try:
        got = _RUN[evaluator](optimized, found.feeds)
    except Exception as error:  # noqa: BLE001  (the same)
        return "wrong", _line(f"{evaluator} no longer runs it: {error}")
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


_RUN = {"reference": _run_reference, "onnxruntime": _run_onnxruntime}


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


def _work(cases: Sequence[Case], path: Path, passes: Sequence[str]) -> None:
    journal = Journal(path)
    for case in cases:
        journal.write({"name": case.name, "kind": case.kind, "outcome": "crashed"})
        journal.write(judge(case, passes))


def _run_all(cases: Sequence[Case], journal: Journal, passes: Sequence[str]) -> None:
    context = multiprocessing.get_context("fork")
    todo = [case for case in cases if case.name not in journal.rows]
    while todo:
        batch, todo = todo[:BATCH], todo[BATCH:]
        child = context.Process(target=_work, args=(batch, journal.path, passes))
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
    options.add_argument("--passes", nargs="+", default=[], help="only these alone, or none (all)")
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
    passes = chosen.passes if chosen.passes not in ([], ["none"]) else []
    _run_all(cases, journal, passes if chosen.passes else lossless_passes())
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
    table += _by_pass(rows)
    shrunk = sum(row.get("nodes_after", 0) < row.get("nodes", 0) for row in rows)
    notes = [f"cases whose graph got fewer nodes: {shrunk}"]
    notes += [
        f"{row['outcome']}: {row['name']}: {row.get('detail', '')}"
        for row in rows
        if row["outcome"] in (*BAD, "refused")
    ]
    notes += [
        f"{found[0]}: {row['name']}, {name} alone: {found[1]}"
        for row in rows
        for name, found in row.get("passes", {}).items()
        if found[0] in (*BAD, "refused") and row["outcome"] != "refused"
    ]
    title = "onnx backend suite through optimize"
    write_results(output, title, table, ["kind", "cases", *OUTCOMES], notes=notes)
    output.with_suffix(".cases.json").write_text(json.dumps(rows, indent=0) + "\n")
    say(output.with_suffix(".md").read_text())
    return int(any(line.get(outcome, 0) for line in table for outcome in BAD))


def _by_pass(rows: Sequence[Row]) -> list[Row]:
    """What came of each pass alone, in the cases that it changed."""
    names = sorted({name for row in rows for name in row.get("passes", {})})
    lines = []
    for name in names:
        counts = Counter(row["passes"][name][0] for row in rows if name in row.get("passes", {}))
        lines.append({"kind": f"{name} alone", "cases": counts.total(), **counts})
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
