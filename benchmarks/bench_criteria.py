"""What tells best which channels matter: every criterion of `prune channels` on the same models.

    python benchmarks/bench_criteria.py [--zoo FOLDER] [--models NAME...] [--criteria obs l2 ...]
        [--shares 0.3 0.5] [--spreads uniform global] [--samples 128] [--evaluate 512]

30 % and 50 % of the arithmetic go, with what is left fitted on samples and without, nothing is trained. Sizes
are not rounded to blocks of channels, so that all criteria remove as much. Without --zoo the demo model.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from _common import RESULTS, Row, parser, say, write_results
from _models import Bundle, read_feeds, zoo_bundles
from _packages import demo_bundles

from onnxcomp.ir import Model
from onnxcomp.optimization import SIMPLIFY
from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.prune.prune_channels import PruneChannels
from onnxcomp_passes.prune.support.criteria import CriterionName

COLUMNS = [
    *("model", "criterion", "spread", "flops", "fitted", "score", "of float", "sqnr_db"),
    *("cosine", "seconds"),
]


def rows_of(bundle: Bundle, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Prunes a model in every way."""
    samples = read_feeds(bundle.calibration)[: options.samples]
    full = bundle.score(bundle.outputs(bundle.model))[bundle.primary]
    if options.evaluate < len(bundle.feeds):
        del bundle.feeds[options.evaluate :]
        bundle = dataclasses.replace(bundle, metric=None, primary="cosine")
        full = 1.0
    simple = Pipeline.parse(SIMPLIFY).run(Model.load(bundle.model)).model
    made: list[Row] = []
    for criterion in options.criteria:
        for spread in options.spreads:
            for share in options.shares:
                for fitted in (True, False):
                    step = PruneChannels(
                        criterion=criterion,
                        spread=spread,
                        flops=share,
                        reconstruct=fitted,
                        multiple=1,
                    )
                    row = measured(bundle, simple, step, samples, folder)
                    row["of float"] = row["score"] / full if full else None
                    say(f"  {row}")
                    made.append(row)
    return made


def measured(
    bundle: Bundle, model: Model, step: PruneChannels, samples: list[Any], folder: Path
) -> Row:
    """Prunes and scores a model."""
    started = time.perf_counter()
    result = Pipeline((step,)).run(model.copy(), samples=samples, threads=1)
    seconds = time.perf_counter() - started
    path = folder / "pruned.onnx"
    result.model.save(path)
    scores = bundle.score(bundle.outputs(path))
    return {
        "model": bundle.name,
        "criterion": step.criterion,
        "spread": step.spread,
        "flops": step.flops,
        "fitted": step.reconstruct,
        "score": scores[bundle.primary],
        "sqnr_db": scores.get("sqnr_db"),
        "cosine": scores.get("cosine"),
        "seconds": seconds,
    }


def best(rows: list[Row]) -> list[str]:
    """Which criteria come nearest to the original on average, as text."""
    found = []
    for fitted in (True, False):
        totals: dict[str, list[float]] = {}
        for row in rows:
            if row["fitted"] is fitted and row["sqnr_db"] is not None:
                totals.setdefault(row["criterion"], []).append(row["sqnr_db"])
        order = sorted(totals, key=lambda name: -sum(totals[name]) / len(totals[name]))
        means = ", ".join(f"{name} {sum(totals[name]) / len(totals[name]):.2f}" for name in order)
        way = "fitted" if fitted else "not fitted"
        found.append(f"Mean signal-to-noise ratio in dB over all of the above, {way}: {means}.")
    return found


def main() -> None:
    """Tries every criterion on every model."""
    options = parser(__doc__ or "")
    names = [name for name in get_args(CriterionName) if name != "auto"]
    options.add_argument("--criteria", nargs="+", choices=names, default=names)
    options.add_argument("--spreads", nargs="+", default=["uniform", "global"])
    options.add_argument("--shares", nargs="+", type=float, default=[0.3, 0.5])
    options.add_argument("--samples", type=int, default=128, help="samples to judge and fit on")
    options.add_argument(
        "--evaluate", type=int, default=1 << 30, help="score by likeness on so many samples"
    )
    chosen = options.parse_args()
    bundles = zoo_bundles(chosen.zoo) if chosen.zoo else list(demo_bundles())
    table: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for bundle in bundles:
            if chosen.models and bundle.name not in chosen.models:
                continue
            say(bundle.name)
            table += rows_of(bundle, chosen, Path(folder))
            output = chosen.output or RESULTS / "criteria.json"
            title = "What tells which channels matter"
            write_results(output, title, table, COLUMNS, notes=best(table))


if __name__ == "__main__":
    main()
