"""How many parameters pruners remove when half of all channels shall go."""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _common import Feeds, Row, open_session, run_child, run_session, say, write_results
from _counting import count_parameters, random_feeds
from _if_family import conv_in_if
from _models import chosen_bundles
from _pruners import (
    TWINS,
    Made,
    constant_weights,
    known_rows,
    made_before,
    make,
    merged,
    onnxsim,
    optimized,
    ours,
    torch_program,
)

RATIO = 0.5
COLUMNS = [
    *("model", "exporter", "parameters", "ideal", "torch_pruning", "onnxsim", "onnxsim_simplified"),
    *("onnxcomp", "share_of_reference", "ideal_normalized", "torch_pruning_normalized"),
    *("onnxcomp_normalized", "share_of_reference_normalized", "note"),
]
# Ours, by the column, with the columns of those to compare with.
REFERENCES = {
    "onnxcomp": ("ideal", "torch_pruning"),
    "onnxcomp_normalized": ("ideal_normalized", "torch_pruning_normalized"),
}
# What is built in torch, by the column.
JOBS: dict[str, dict[str, float | bool]] = {
    "float": {},
    "ideal": {"inner": RATIO},
    "ideal_normalized": {"inner": RATIO, "stream": RATIO},
    "torch_pruning": {"ratio": RATIO, "normalized": False},
    "torch_pruning_normalized": {"ratio": RATIO, "normalized": True},
}
# Not rounded to what suits the kernels, because the others are not either.
SETTINGS: dict[str, tuple[str, ...]] = {
    "onnxcomp": ("--multiple", "1"),
    "onnxcomp_normalized": ("--multiple", "1", "--normalized"),
}


@dataclass
class Case:
    """A model to prune, and files of what it might become."""

    name: str
    exporter: str
    model: Path
    feeds: Feeds
    folder: Path

    @property
    def stem(self) -> str:
        return f"{self.name}.{self.exporter}" if self.exporter else self.name

    def out(self, tool: str) -> Path:
        return self.folder / f"{self.stem}.{tool}.onnx"


def coverage(chosen: argparse.Namespace, output: Path) -> None:
    """Writes the table of coverage."""
    folder = chosen.work / "coverage"
    folder.mkdir(parents=True, exist_ok=True)
    rows, known = list[Row](), known_rows(output, add=chosen.add)
    for case, found in _cases(chosen, folder):
        row = _row(chosen, case, found)
        rows.append(row)
        say("  ".join(f"{name}={row.get(name)}" for name in COLUMNS if row.get(name) is not None))
        everything = merged(known, rows)
        write_results(
            output,
            "Parameters removed when half of the channels go, %",
            everything,
            COLUMNS,
            notes=_notes(everything),
        )


def _cases(chosen: argparse.Namespace, folder: Path) -> Iterator[tuple[Case, Row]]:
    """Yields cases with what is known of their references."""
    if chosen.zoo:
        for bundle in chosen_bundles(chosen.zoo, chosen.models, folder):
            model = constant_weights(chosen.python, bundle.model, folder)
            case = Case(bundle.name, "", model, bundle.feeds[0], folder)
            yield case, _zoo_references(chosen, case, bundle.evaluation)
        return
    names = [name for name in chosen.models or _families(chosen) if name != "conv_in_if"]
    if names and chosen.torch_python:
        _build_families(chosen, names, folder)
        for name, exporter in itertools.product(names, chosen.exporters):
            family = _family_case(name, exporter, folder)
            if family is not None:
                yield family, _family_references(family)
    if not chosen.models or "conv_in_if" in chosen.models:
        yield _if_case(folder)


def _family_case(name: str, exporter: str, folder: Path) -> Case | None:
    model = folder / f"{name}.{exporter}.float.onnx"
    made = made_before(model)
    if made is None or made.failure:
        say(f"{name}: {exporter} cannot: {made.failure if made else 'nothing was made'}")
        return None
    return Case(name, exporter, model, random_feeds(model), folder)


def _build_families(chosen: argparse.Namespace, names: list[str], folder: Path) -> None:
    """Everything that needs torch, in one process."""
    jobs = [
        {"family": name, "exporter": exporter, "out": str(out), **job}
        for name, exporter in itertools.product(names, chosen.exporters)
        for column, job in JOBS.items()
        if made_before(out := folder / f"{name}.{exporter}.{column}.onnx") is None
    ]
    if not jobs:
        return
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs))
    child = run_child(torch_program(chosen.torch_python, "families", listed), timeout=3600)
    if child.returncode:
        raise SystemExit(f"{chosen.torch_python}: {child.reason}")


def _families(chosen: argparse.Namespace) -> list[str]:
    if not chosen.torch_python:
        say("no --torch-python: only what needs no torch")
        return []
    child = run_child(torch_program(chosen.torch_python, "list"))
    if child.returncode:
        raise SystemExit(f"{chosen.torch_python}: {child.reason}")
    names: list[str] = json.loads(child.stdout)
    return names


def _if_case(folder: Path) -> tuple[Case, Row]:
    files = {1.0: folder / "conv_in_if.float.onnx", RATIO: folder / "conv_in_if.ideal.onnx"}
    for share, file in files.items():
        conv_in_if(share, file)
    case = Case("conv_in_if", "", files[1.0], random_feeds(files[1.0]), folder)
    left = count_parameters(files[RATIO])
    return case, {"ideal": left, "ideal_normalized": left}


def _family_references(case: Case) -> Row:
    """Parameters left, by the column; why a tool could not, in the note."""
    found: Row = {"note": ""}
    for column in JOBS:
        if column != "float":
            out = case.out(column)
            _enter(case, found, column, made_before(out) or Made("not made"), out)
    return found


def _zoo_references(chosen: argparse.Namespace, case: Case, evaluation: Path) -> Row:
    found: Row = {"note": ""}
    if not chosen.torch_python:
        return found
    goal = ("ratio", str(RATIO))
    if case.name in TWINS:
        for column, which in (("torch_pruning", "inner"), ("torch_pruning_normalized", "all")):
            out = case.out(column)
            arguments = ("twin", case.name, which, evaluation, *goal, out, case.model)
            made = make(torch_program(chosen.torch_python, *arguments), out, keep=True)
            _enter(case, found, column, made, out)
        return found
    out, simplified = case.out("torch_pruning"), case.out("optimized")
    make(optimized(chosen.python, case.model, simplified), simplified, keep=True)
    forms = [*[simplified] * simplified.exists(), case.model]
    command = torch_program(chosen.torch_python, "model", evaluation, *goal, out, *forms)
    _enter(case, found, "torch_pruning", make(command, out, keep=True), out)
    return found


def _enter(case: Case, row: Row, column: str, made: Made, out: Path) -> None:
    """Notes what is left, or what went wrong."""
    problem = made.failure or _problem(case, out, exact=not column.startswith("ideal"))
    if problem:
        row["note"] = (row.get("note") or "") + f"{column}: {problem}; "
    else:
        row[column] = count_parameters(out)


def _problem(case: Case, out: Path, *, exact: bool = True) -> str:
    """Why a model is no good: it does not run, or its outputs have other shapes."""
    try:
        session = open_session(out)
        fed = dict(zip([i.name for i in session.get_inputs()], case.feeds.values(), strict=True))
        found = [value.shape for value in run_session(session, fed).values()]
    except Exception as error:  # noqa: BLE001  (onnxruntime raises many kinds)
        return f"does not run: {str(error)[:120]}"
    wanted = [value.shape for value in run_session(open_session(case.model), case.feeds).values()]
    return "" if found == wanted or not exact else f"gives {found}, not {wanted}"


def _row(chosen: argparse.Namespace, case: Case, found: Row) -> Row:
    """Prunes, counts and compares."""
    left: Row = dict(found)
    before = count_parameters(case.model)
    simplified = case.out("optimized")
    made = make(optimized(chosen.python, case.model, simplified), simplified, keep=chosen.keep_ours)
    own = before if made.failure else count_parameters(simplified)
    for column, flags in (("onnxsim", ()), ("onnxsim_simplified", ("--simplify", "--heads"))):
        out = case.out(column)
        made = make(onnxsim(chosen.peer_python, case.model, out, RATIO, *flags), out, keep=True)
        _enter(case, left, column, made, out)
    for column, setting in SETTINGS.items():
        out = case.out(column)
        command = ours(chosen.python, case.model, out, "--ratio", str(RATIO), *setting)
        made = make(command, out, keep=chosen.keep_ours)
        _enter(case, left, column, made, out)
        if made.failure.startswith("refused"):
            left[column] = own
    return _compared(case, before, own, left)


def _compared(case: Case, before: int, own: int, left: Row) -> Row:
    """Percentages; ours of what was there after our own simplification, which is none of pruning."""
    row: Row = {"model": case.name, "exporter": case.exporter, "parameters": before}
    row["note"] = left.pop("note", "")
    for column, count in left.items():
        # What torch exports has no BatchNormalization of its own left either.
        folded = column in REFERENCES or (not case.exporter and column.startswith("torch_pruning"))
        whole = own if folded else before
        row[column] = 100 * (1 - count / whole)
    for column, references in REFERENCES.items():
        known = [row[name] for name in references if name in row]
        suffix = column.removeprefix("onnxcomp")
        if known and column in row and max(known) > 0:
            row[f"share_of_reference{suffix}"] = row[column] / max(known)
    return row


def _notes(rows: list[Row]) -> list[str]:
    low = [
        f"{row['model']} {row['exporter']} ({'normalized' if suffix else 'default'}): {share:.3f}"
        for row in rows
        for suffix in ("", "_normalized")
        if (share := row.get(f"share_of_reference{suffix}")) is not None and share < 0.95
    ]
    none = [f"{row['model']} {row['exporter']}" for row in rows if not row.get("onnxcomp")]
    return [
        "reference: what Torch-Pruning made of the torch module, or the same network written with half of "
        "its channels, whichever is smaller; `normalized`: also channels that a normalization runs over; numbers "
        "of channels are not rounded up to what suits the kernels (--multiple 1)",
        f"below 95 % of the reference: {', '.join(low) or 'none'}",
        f"nothing removed: {', '.join(none) or 'none'}",
    ]
