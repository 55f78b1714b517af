"""Random models across all standard operators, opsets 7 to 25, through `optimize` and its passes.

    python benchmarks/fuzz_optimize.py [--count N] [--seed S] [--resume]

Each model (tests/helpers/drawn) runs in onnxruntime before and after, its own optimizations off, on
seven kinds of inputs: ordinary ones, two other sizes of the open dimensions, awkward numbers, tiny
ones, large ones, NaN and infinity. Recipes: all of `optimize`, some lossless passes alone, others in a
random order, and now and then `optimize` with its own verification. The worst outcome counts:

    unchanged        no pass found anything to do
    exact, close     equal to the bit, or within 1e-4 and 2e-5 of the largest element
    unstable         the original itself gives another result each time (a kernel reads stray memory)
    not finite       only where NaN or infinity was fed: another pattern of them
    overflow         only where numbers up to 3e38 were fed: infinite on one side only
    ill-conditioned  off by more, but the original moves as far when roundings in it are disturbed
    not settled      a second run finds something to do
    no kernel        convert-opset made an opset for which onnxruntime lacks a kernel
    taken back       verification objected to a result that is right
    invalid, wrong, refused, traceback, crashed   bugs

Models are drawn and run in forked children, so that native code that dies costs one case; with
--resume, cases in the journal are not repeated. The exit code is 1 when there is a bug.
"""

import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import RESULTS, Row, parser, say, write_results

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
BATCH = 50
BATCH_SECONDS = 900
OUTCOMES = (
    "unchanged", "exact", "close", "unstable", "not finite", "overflow", "ill-conditioned", "not settled", "no kernel",
    "taken back", "refused", "invalid", "wrong", "traceback", "crashed",
)  # fmt: skip
BAD = ("refused", "invalid", "wrong", "traceback", "crashed")


def recipes(rng: np.random.Generator, passes: Sequence[str], alone: int) -> dict[str, str]:
    """What is run on a model, by name."""
    from onnxcomp.optimization import SIMPLIFY

    # Another opset is wanted for its own sake only; the runtime may lack kernels for it.
    mixed = [name for name in passes if name != "convert-opset"]
    some = [str(name) for name in rng.permutation(mixed)[: int(rng.integers(2, 7))]]
    single = [str(name) for name in rng.permutation(passes)[:alone]]
    return {"optimize": SIMPLIFY, "shuffled": ",".join(some), **{name: name for name in single}}


def lossless_passes() -> list[str]:
    """Every lossless pass that needs no options."""
    from onnxcomp import registry

    kinds = [info.load() for info in registry.passes().values() if not info.problem()]
    return [
        kind.name for kind in kinds if kind.lossless and not kind.needs and _needs_nothing(kind)
    ]


def _needs_nothing(kind: Any) -> bool:
    """Whether a pass has no option that must be given."""
    return not any(option.is_required() for option in kind.model_fields.values())


def examine(seed: int, steps: int, verify_every: int, alone: int) -> Row:
    """Draws the model of a seed and judges every recipe on it."""
    from tests.helpers.drawn import VARIANTS, draw_any
    from tests.helpers.judge import Verdict, judge, references, settles

    start = time.perf_counter()
    drawn = draw_any(seed, steps)
    row: Row = {"seed": seed, "nodes": len(drawn.proto.graph.node), "cells": drawn.tally}
    known = references(drawn.proto, {variant: drawn.feeds(variant) for variant in VARIANTS})
    passes = lossless_passes()
    verdicts, tried = {}, []
    for name, recipe in recipes(np.random.default_rng(seed), passes, alone).items():
        verdict = judge(drawn.proto, recipe, known)
        if name == "convert-opset" and "NOT_IMPLEMENTED" in verdict.detail:
            verdict = Verdict("no kernel", verdict.detail)
        if verdict.outcome not in {"unchanged", "exact", "close"} or name == "optimize":
            found = [verdict.outcome, verdict.variant, verdict.guilty, verdict.detail]
            verdicts[name] = [*found, recipe] if name == "shuffled" else found
        tried.append(name)
    main = verdicts["optimize"][0]
    if main not in (*BAD, "unchanged") and not settles(drawn.proto, recipes_text()):
        verdicts["again"] = ["not settled", "", "", ""]
    if seed % verify_every == 0 and main in {"exact", "close"}:
        verdicts |= _verified(drawn.proto)
    outcome = max((v[0] for v in verdicts.values()), key=OUTCOMES.index)
    opset = drawn.proto.opset_import[0].version
    return {**row, "outcome": outcome, "opset": opset, "verdicts": verdicts, "tried": tried,
            "variants": len(known), "seconds": round(time.perf_counter() - start, 3)}  # fmt: skip


def recipes_text() -> str:
    """The steps of `optimize`."""
    from onnxcomp.optimization import SIMPLIFY

    return SIMPLIFY


def _verified(proto: onnx.ModelProto) -> dict[str, list[str]]:
    """Whether the user's command, which verifies, keeps a good result."""
    from onnxcomp.errors import UserError
    from onnxcomp.optimization import optimize

    try:
        result = optimize(proto)
    except UserError as error:
        return {"verified": ["refused", "", "", str(error)[:200]]}
    except Exception as error:  # noqa: BLE001  (what this counts)
        return {"verified": ["traceback", "", "", f"{type(error).__name__}: {error}"[:200]]}
    back = [d.message for d in result.diagnostics if d.code == "PAS101"]
    return {"verified": ["taken back", "", "", back[0][:300]]} if back else {}


# ---------------------------------------------------------------- all of them


def _work(seeds: Sequence[int], path: Path, *how: int) -> None:
    os.nice(5)
    with path.open("a") as file:
        for seed in seeds:
            print(json.dumps({"seed": seed, "outcome": "crashed"}), file=file, flush=True)
            try:
                row = examine(seed, *how)
            except Exception as error:  # noqa: BLE001  (a bug of the generator is one too)
                row = {"seed": seed, "outcome": "traceback",
                       "verdicts": {"draw": ["traceback", "", "", f"{type(error).__name__}: {error}"[:300]]}}  # fmt: skip
            print(json.dumps(row), file=file, flush=True)


def _read(path: Path) -> dict[int, Row]:
    rows: dict[int, Row] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows[row["seed"]] = row
    return rows


def _run_all(seeds: Sequence[int], path: Path, *how: int) -> dict[int, Row]:
    context = multiprocessing.get_context("fork")
    rows = _read(path)
    todo = [seed for seed in seeds if seed not in rows]
    while todo:
        batch = todo[:BATCH]
        child = context.Process(target=_work, args=(batch, path, *how))
        child.start()
        child.join(BATCH_SECONDS)
        if child.is_alive():
            child.kill()
            child.join()
        rows = _read(path)
        left = [seed for seed in seeds if seed not in rows]
        if len(left) == len(todo):
            raise SystemExit("a batch ended before its first case")
        todo = left
        counts = Counter(rows[seed]["outcome"] for seed in seeds if seed in rows)
        say(f"{counts.total()} of {len(seeds)}: {dict(counts)}")
    return rows


def main() -> int:
    options = parser(__doc__ or "", models=False)
    options.add_argument("--count", type=int, default=2000, help="number of models (2000)")
    options.add_argument("--seed", type=int, default=0, help="first seed (0)")
    options.add_argument("--steps", type=int, default=10, help="operators or patterns each (10)")
    options.add_argument("--verify-every", type=int, default=5, help="verified too, every Nth (5)")
    options.add_argument("--alone", type=int, default=4, help="how many passes alone, of all (4)")
    options.add_argument("--resume", action="store_true", help="go on with the journal")
    chosen = options.parse_args()
    output: Path = chosen.output or RESULTS / "fuzz_optimize.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    journal = output.with_suffix(".journal")
    if not chosen.resume:
        journal.unlink(missing_ok=True)
    lossless_passes()  # imported once, before children are made
    seeds = range(chosen.seed, chosen.seed + chosen.count)
    rows = _run_all(seeds, journal, chosen.steps, chosen.verify_every, chosen.alone)
    return _report(output, [rows[seed] for seed in seeds])


def _report(output: Path, rows: Sequence[Row]) -> int:
    cells: Counter[str] = Counter()
    table: list[Row] = []
    for row in rows:
        cells.update(row.pop("cells", {}))
    tried = Counter(name for row in rows for name in row.get("tried", []))
    tried |= Counter(name for row in rows for name in row.get("verdicts", {}))
    names = ["all", *sorted(tried, key=lambda name: (name not in ("optimize", "shuffled"), name))]
    for name in names:
        found = [
            row["outcome"] if name == "all" else row.get("verdicts", {}).get(name, [""])[0]
            for row in rows
        ]
        counts = Counter(outcome for outcome in found if outcome)
        count = len(rows) if name == "all" else tried[name]
        table.append({"recipe": name, "models": count, **counts})
    missing, drawn = _coverage(cells)
    opsets = sorted({row["opset"] for row in rows if "opset" in row})
    notes = [
        f"opsets {opsets}; nodes {sum(row.get('nodes', 0) for row in rows)}; seeds {rows[0]['seed']} to "
        f"{rows[-1]['seed']}; rows other than all and optimize list only what is not equal or close",
        f"operator versions drawn: {drawn} of {drawn + len(missing)}; not drawn: "
        + "; ".join(f"{name} ({why})" for name, why in missing.items()),
    ]
    for row in rows:
        for name, verdict in row.get("verdicts", {}).items():
            if verdict[0] not in {"unchanged", "exact", "close"}:
                notes.append(f"{verdict[0]}: seed {row['seed']}, {name}: {' | '.join(verdict[1:])}")
        if row["outcome"] == "crashed":
            notes.append(f"crashed: seed {row['seed']}")
    title = "random models through optimize"
    write_results(output, title, table, ["recipe", "models", *OUTCOMES], notes=notes)
    say(output.with_suffix(".md").read_text())
    return int(any(row["outcome"] in BAD for row in rows))


def _coverage(cells: Counter[str]) -> tuple[dict[str, str], int]:
    """Versions of standard operators that were not drawn, with the reason, and how many were."""
    from tests.helpers.drawn import OPERATORS, OPSETS

    kernels = _kernels()
    versions = {}
    for opset in OPSETS:
        for schema in onnx.defs.get_all_schemas():
            try:
                found = onnx.defs.get_schema(schema.name, opset, "")
            except onnx.defs.SchemaError:
                continue
            if schema.domain == "" and not found.deprecated:
                versions[f"{schema.name}-{found.since_version}"] = found
    missing = {}
    for name, found in sorted(versions.items()):
        if cells[name]:
            continue
        if not any(_takes(known, found.since_version) for known in kernels.get(found.name, [])):
            missing[name] = "onnxruntime has no kernel"
        elif found.name not in OPERATORS:
            missing[name] = "no generator"
        else:
            missing[name] = "refused by onnxruntime or rare"
    return missing, len(versions) - len(missing)


def _kernels() -> dict[str, list[tuple[int, int]]]:
    """The versions that kernels of the runtime are for, by operator."""
    import onnxruntime

    ranges: dict[str, list[tuple[int, int]]] = {}
    for kernel in onnxruntime.capi.onnxruntime_pybind11_state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider" and kernel.domain == "":
            ranges.setdefault(kernel.op_name, []).append(kernel.version_range)
    return ranges


def _takes(known: tuple[int, int], version: int) -> bool:
    """Whether a kernel is for a version: one whose range is open takes its first version only."""
    first, last = known
    return first == version or (last < 2**31 - 1 and first <= version <= last)


if __name__ == "__main__":
    raise SystemExit(main())
