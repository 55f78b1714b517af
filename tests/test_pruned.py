"""Which pruned candidates a search tries, by themselves and quantized."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from onnxcomp.metrics import Score
from onnxcomp.passbase import Outcome
from onnxcomp.pruned import ATTEMPTS, combined, pruned
from onnxcomp.trials import Trial
from onnxcomp.variants import Variant

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Sized:
    """A model of which only the size matters."""

    nbytes: int


def trial(label: str, nbytes: int, *, rejected: bool = False, steps: tuple[str, ...] = ()) -> Trial:
    outcomes = tuple(Outcome(step, True, {}, (), 0.0) for step in steps)
    model: Any = Sized(nbytes)
    why = "too bad" if rejected else ""
    return Trial(label, "", model, outcomes, Score({"s": 1.0}), 0.0, rejected=why)


@dataclass
class FakeSearch:
    """A search in which models lose as many bytes as arithmetic, and are good up to a share."""

    limit: float
    grain: int = 1
    trials: list[Trial] = field(default_factory=list)
    both: float = 1.0
    asked: list[str] = field(default_factory=list)

    def continued(self, before: Trial, label: str, steps: Sequence[Any]) -> Trial | None:
        del before
        ((_, options),) = steps
        share = options["flops"]
        left = int(1000 * (1 - share)) // self.grain * self.grain
        made = trial(label, left, rejected=share > self.limit, steps=("prune-channels",))
        self.trials.append(made)
        return made

    def prepared(self, before: Trial) -> Trial:
        return before

    def by_speed(self, trials: Sequence[Trial]) -> list[Trial]:
        return [found for found in trials if found.label != "slow"]

    def build(self, prepared: Trial, variant: Variant, label: str) -> Trial | None:
        self.asked.append(label)
        bad = prepared.model.nbytes < 1000 * (1 - self.both)
        made = trial(label, prepared.model.nbytes // 4, rejected=bad)
        del variant
        return made


def tried(limit: float, grain: int = 1) -> list[str]:
    search: Any = FakeSearch(limit, grain)
    return [found.label for found in pruned(search, trial("simplified", 1000))]


@pytest.mark.parametrize(
    ("limit", "labels"),
    [
        (1.0, ["30% pruned", "65% pruned", "82% pruned", "91% pruned"]),
        (0.5, ["30% pruned", "65% pruned", "48% pruned", "56% pruned"]),
        (0.2, ["30% pruned", "15% pruned"]),
        (0.0, ["30% pruned", "15% pruned"]),
    ],
)
def test_the_most_inside_the_limit_is_looked_for(limit: float, labels: list[str]) -> None:
    found = tried(limit)
    assert found == labels
    assert len(found) <= ATTEMPTS


def test_the_same_model_is_not_judged_twice() -> None:
    assert tried(0.5, grain=400) == ["30% pruned", "65% pruned"]


@pytest.mark.parametrize(
    ("both", "asked"),
    [
        (0.5, ["48% pruned, int8"]),
        (0.4, ["48% pruned, int8", "30% pruned, int8"]),
    ],
)
def test_the_smallest_good_one_is_quantized_first(both: float, asked: list[str]) -> None:
    search: Any = FakeSearch(0.5, both=both)
    list(pruned(search, trial("simplified", 1000)))
    search.trials.append(trial("int8", 250))
    search.trials.append(trial("slow", 250))
    variants = {name: Variant(name, (("quantize-static", {}),)) for name in ("slow", "int8")}
    made = list(combined(search, variants))
    assert search.asked == asked
    assert not made[-1].rejected


def test_nothing_is_combined_with_what_was_not_good() -> None:
    search: Any = FakeSearch(0.5)
    list(pruned(search, trial("simplified", 1000)))
    search.trials.append(trial("int8", 250, rejected=True))
    assert not list(combined(search, {"int8": Variant("int8", ())}))
