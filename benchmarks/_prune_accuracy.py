"""What is left of a model's quality after a share of its arithmetic went, without any training."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from _common import Row, say, write_results
from _counting import count_arithmetic, count_parameters
from _models import Bundle, chosen_bundles
from _pruners import (
    TWINS,
    Made,
    constant_weights,
    known_rows,
    made_before,
    make,
    merged,
    moved,
    onnxsim,
    optimized,
    ours,
    torch_program,
)
from _scoring import score_and_time

GOALS = (0.3, 0.5)
COLUMNS = [
    *("model", "goal", "tool", "primary", "metric", "of_float", "sqnr_db", "flops_left"),
    *("parameters_left", "latency_ratio", "spread", "seconds", "peak_mib", "note"),
]
FLOAT, OURS = "float", "onnxcomp"
# Ours, by the name in the table: everything as it comes, and what single parts contribute.
VARIANTS: dict[str, tuple[str, ...]] = {
    OURS: ("--data", "{data}"),
    "onnxcomp_not_fitted": ("--data", "{data}", "--no-reconstruct", "--multiple", "1"),
    "onnxcomp_l1_not_fitted": ("--criterion", "l1", "--no-reconstruct", "--multiple", "1"),
}
ONNXSIM_FLAGS: dict[str, tuple[str, ...]] = {
    "onnxsim": ("--simplify", "--heads"),
    "onnxsim_calibrated": ("--simplify", "--heads", "--calibrate", "{data}"),
}
PEERS = (*ONNXSIM_FLAGS, "torch_pruning")
# Closer to the goal than this is there; ours counts open dimensions otherwise and is asked again if it is not.
NEAR = 0.01
TRIES = 3
SAME_METRIC = 0.0005

Tool: TypeAlias = Callable[[], tuple[Made, Path]]


def accuracy(chosen: argparse.Namespace, output: Path) -> None:
    """Writes the table of qualities."""
    rows, known = list[Row](), known_rows(output, add=chosen.add)
    data = chosen.work / "data"
    data.mkdir(parents=True, exist_ok=True)
    for bundle in chosen_bundles(chosen.zoo, chosen.models, data, trained=True):
        folder = chosen.work / "accuracy" / bundle.name
        folder.mkdir(parents=True, exist_ok=True)
        model = constant_weights(chosen.python, bundle.model, folder)
        found = _bundle_rows(chosen, replace(bundle, model=model), folder)
        rows += found
        for row in found:
            say("  ".join(f"{name}={row.get(name)}" for name in COLUMNS))
        everything = merged(known, rows)
        write_results(
            output,
            "Quality after pruning, without training",
            everything,
            COLUMNS,
            notes=[*_notes(), *verdicts(everything)],
        )


def _bundle_rows(chosen: argparse.Namespace, bundle: Bundle, folder: Path) -> list[Row]:
    models, rows = {FLOAT: bundle.model}, {FLOAT: _blank(bundle, FLOAT, 0.0)}
    whole = count_arithmetic(bundle.model, bundle.feeds[0])
    weights = count_parameters(bundle.model)
    for goal in GOALS:
        for tool, run in _tools(chosen, bundle, folder, goal, whole):
            name = f"{tool} {goal}"
            made, out = run()
            rows[name] = _blank(bundle, tool, goal) | {
                "seconds": made.seconds,
                "peak_mib": made.peak_bytes / 2**20,
                "note": f"failed: {made.failure}" if made.failure else "",
            }
            if not made.failure:
                models[name] = out
    score_and_time(bundle, models, rows, chosen.rounds)
    for name, row in rows.items():
        if "metric" in row:
            row["of_float"] = row["metric"] / (rows[FLOAT].get("metric") or 1.0)
            row["flops_left"] = count_arithmetic(models[name], bundle.feeds[0]) / whole
            row["parameters_left"] = count_parameters(models[name]) / weights
            if row["tool"] != FLOAT and 1 - row["flops_left"] < row["goal"] - 2 * NEAR:
                row["note"] += "goal not reached"
    return list(rows.values())


def _blank(bundle: Bundle, tool: str, goal: float) -> Row:
    return {
        "model": bundle.name,
        "tool": tool,
        "goal": goal,
        "primary": bundle.primary,
        "seconds": None,
        "peak_mib": None,
        "note": "",
    }


def _tools(
    chosen: argparse.Namespace, bundle: Bundle, folder: Path, goal: float, whole: float
) -> Iterator[tuple[str, Tool]]:
    """What to run, by name."""
    for tool in chosen.tools or (*VARIANTS, *PEERS):
        out = folder / f"{tool}.{goal}.onnx"
        if tool in VARIANTS:
            yield tool, lambda t=tool, o=out: (_ours(chosen, bundle, t, goal, o, whole), o)  # type: ignore[misc]
        elif tool in ONNXSIM_FLAGS:
            yield tool, lambda t=tool, o=out: (_onnxsim(chosen, bundle, t, goal, o), o)  # type: ignore[misc]
        elif chosen.torch_python:
            yield tool, lambda o=out: (_torch(chosen, bundle, goal, o, folder), o)  # type: ignore[misc]


def _ours(
    chosen: argparse.Namespace, bundle: Bundle, tool: str, goal: float, out: Path, whole: float
) -> Made:
    """Asks for the goal, and for more or less if that is not what the counter finds.

    Of what is tried, the nearest that removes as much as the goal is kept.
    """
    if chosen.keep_ours and (known := made_before(out)) is not None:
        return known
    options = [part.format(data=bundle.calibration) for part in VARIANTS[tool]]
    asked, made = goal, Made("never run")
    tried: dict[float, tuple[Made, Path]] = {}
    for attempt in range(TRIES):
        trial = out.with_name(f"{out.stem}.try{attempt}.onnx")
        command = ours(chosen.python, bundle.model, trial, "--flops", f"{asked:.4f}", *options)
        made = make(command, trial, keep=False, watch=0.05)
        if made.failure:
            break
        gone = 1 - count_arithmetic(trial, bundle.feeds[0]) / whole
        tried[gone] = made, trial
        if abs(gone - goal) <= NEAR or len(tried) <= attempt:
            break
        asked = min(max(asked + goal - gone, 0.01), 0.99)
    if not tried:
        return made
    enough = [gone for gone in tried if gone >= goal - NEAR]
    made, trial = tried[min(enough) if enough else max(tried)]
    return moved(made, trial, out)


def _onnxsim(chosen: argparse.Namespace, bundle: Bundle, tool: str, goal: float, out: Path) -> Made:
    flags = [part.format(data=bundle.calibration) for part in ONNXSIM_FLAGS[tool]]
    feeds = ("--feeds", bundle.evaluation)
    command = onnxsim(chosen.peer_python, bundle.model, out, goal, *flags, *feeds)
    return make(command, out, keep=True, watch=0.05)


def _torch(
    chosen: argparse.Namespace, bundle: Bundle, goal: float, out: Path, folder: Path
) -> Made:
    goals = ("flops", str(goal), out)
    if bundle.name in TWINS:
        command = torch_program(
            *(chosen.torch_python, "twin", bundle.name, "inner", bundle.evaluation),
            *(*goals, bundle.model),
        )
    else:
        simplified = folder / "optimized.onnx"
        make(optimized(chosen.python, bundle.model, simplified), simplified, keep=True)
        forms = [*[simplified] * simplified.exists(), bundle.model]
        command = torch_program(chosen.torch_python, "model", bundle.evaluation, *goals, *forms)
    return make(command, out, keep=True, watch=0.05)


def _notes() -> list[str]:
    return [
        "goal: share of the arithmetic to remove, counted alike for all from the shapes that onnxruntime ran; "
        "flops_left, parameters_left, latency_ratio: of float; of_float: the metric's share of float's; "
        "seconds and peak_mib: the whole process (for the peers with the search for the goal)",
        "onnxsim: simplified or not, structured and head pruning by L1 at the sparsity that reaches the goal; "
        "onnxsim_calibrated: the same by Wanda, and apply_pruning_finetune; torch_pruning: L1 norms, on what "
        "onnx2torch makes of the model, or on a torch module with the same weights (minilm, fashion_vit)",
    ]


def verdicts(rows: list[Row]) -> list[str]:
    """Per model and goal, what ours keeps, and who keeps more at the same arithmetic."""
    found = []
    for model, goal in dict.fromkeys((r["model"], r["goal"]) for r in rows if r["goal"]):
        there = {r["tool"]: r for r in rows if (r["model"], r["goal"]) == (model, goal)}
        own = there.get(OURS, {})
        # Who scores above float was lucky.
        most = next(r["metric"] for r in rows if r["model"] == model and r["tool"] == FLOAT)
        if "metric" not in own:
            found.append(f"{model}, {goal:.0%}: no result of onnxcomp")
            continue
        ahead = [
            f"{tool} is ahead: {row['metric']:.4f} ({row['sqnr_db']:.1f} dB, ours {own['sqnr_db']:.1f} dB)"
            for tool, row in there.items()
            if "metric" in row
            and "goal not reached" not in row["note"]
            and min(row["metric"], most) > own["metric"] + SAME_METRIC
        ]
        head = f"{model}, {goal:.0%}: {own['metric']:.4f}, {own['of_float']:.1%} of float"
        found.append(f"{head}; " + ("; ".join(ahead) or "nobody is ahead"))
    return found
