"""Models with data to measure on: bundles of a zoo folder, the demo model, models of packages."""

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from _common import Feeds, open_session, run_session

LABEL = "label_"


def read_feeds(path: Path) -> list[Feeds]:
    """Feeds of an `.npz`: one array per input with samples on axis 0, or keys `i/input`."""
    with np.load(path) as archive:
        data = {key: archive[key] for key in archive.files if not key.startswith(LABEL)}
    if all(re.match(r"\d+/", key) for key in data):
        samples: dict[int, Feeds] = {}
        for key, value in data.items():
            index, name = key.split("/", 1)
            samples.setdefault(int(index), {})[name] = value
        return [samples[index] for index in sorted(samples)]
    count = len(next(iter(data.values())))
    return [{name: np.asarray(values[i]) for name, values in data.items()} for i in range(count)]


@dataclass(frozen=True)
class Bundle:
    """A model, its data and its score."""

    name: str
    model: Path
    calibration: Path
    evaluation: Path
    batch: int = 1
    primary: str = "cosine"
    metric: Path | None = None

    @cached_property
    def feeds(self) -> list[Feeds]:
        """Evaluation feeds."""
        return read_feeds(self.evaluation)

    @cached_property
    def timed_feeds(self) -> Feeds:
        """What the latency is taken on: the first sample, repeated to the bundle's batch."""
        first = self.feeds[0]
        return {k: np.concatenate([v] * self.batch) if v.ndim else v for k, v in first.items()}

    def outputs(self, model: Path) -> list[Feeds]:
        """Outputs of a model on all evaluation feeds."""
        session = open_session(model)
        return [run_session(session, feeds) for feeds in self.feeds]

    @cached_property
    def reference(self) -> list[Feeds]:
        """Outputs of the original model."""
        return self.outputs(self.model)

    def score(self, outputs: Sequence[Feeds]) -> dict[str, float]:
        """The bundle's own scores, or fidelity to the original model."""
        if self.metric is None:
            return fidelity(outputs, self.reference)
        with np.load(self.evaluation) as archive:
            labels = {key: archive[key] for key in archive.files}
        return _load_metric(self.metric)(outputs, labels)


def fidelity(outputs: Sequence[Feeds], reference: Sequence[Feeds]) -> dict[str, float]:
    """Mean cosine and SQNR over the set; the worst floating point output counts."""
    cosines, sqnrs = [], []
    for name, example in reference[0].items():
        if not np.issubdtype(example.dtype, np.floating):
            continue
        pairs = [
            (a[name].ravel().astype(np.float64), b[name].ravel().astype(np.float64))
            for a, b in zip(outputs, reference, strict=True)
        ]
        norms = [(float(a @ a) * float(b @ b)) ** 0.5 for a, b in pairs]
        cosines.append(
            float(
                np.mean([a @ b / n if n else 1.0 for (a, b), n in zip(pairs, norms, strict=True)])
            )
        )
        noise = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
        signal = sum(float(b @ b) for _, b in pairs)
        sqnrs.append(min(120.0, 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30)))))
    return {"cosine": min(cosines, default=1.0), "sqnr_db": min(sqnrs, default=120.0)}


def _load_metric(path: Path) -> Callable[[Sequence[Feeds], Any], dict[str, float]]:
    spec = importlib.util.spec_from_file_location(f"metric_{path.parent.name}", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    score: Callable[[Sequence[Feeds], Any], dict[str, float]] = module.score
    return score


def zoo_bundles(zoo: Path) -> list[Bundle]:
    """Every bundle of a zoo folder."""
    bundles = []
    for folder in sorted(path.parent for path in zoo.glob("*/bundle.json")):
        facts = json.loads((folder / "bundle.json").read_text())
        bundles.append(
            Bundle(
                name=folder.name,
                model=folder / "model.onnx",
                calibration=folder / "calib.npz",
                evaluation=folder / "eval.npz",
                batch=facts["latency"]["batch"],
                primary=facts["primary"],
                metric=folder / "metric.py",
            )
        )
    return bundles


def chosen_bundles(
    zoo: Path | None, names: Sequence[str], folder: Path, *, trained: bool = False
) -> list[Bundle]:
    """The zoo if one was named, otherwise what packages and the demo offer; `folder` takes data.

    `trained` leaves out networks whose weights are fillers.

    Raises:
        SystemExit: A name is not among them.
    """
    from _packages import demo_bundles, packaged_bundles, packaged_names

    found = zoo_bundles(zoo) if zoo else list(demo_bundles())
    known = {bundle.name: bundle for bundle in found}
    offered = [*known] if zoo else [*known, *packaged_names(trained=trained)]
    unknown = [name for name in names if name not in offered]
    if unknown or not offered:
        raise SystemExit(
            f"no model {', '.join(unknown)}; there are: {', '.join(offered) or 'none'}"
        )
    wanted = list(names) or offered
    made = set(wanted) - set(known)
    known |= {bundle.name: bundle for bundle in packaged_bundles(folder, made)}
    return [known[name] for name in wanted]
