"""Applies the fixes of the rules, in an order in which none gets in the way of another."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.diagnostics import Severity
from onnxcomp.lint.report import rules_by_code, view_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxcomp.ir import Edit, Model
    from onnxcomp.lint.rule import Rule
    from onnxcomp.targets import Target

# Rounds of rules that look at the provider's graph, which every fix changes.
_ROUNDS = 8


@dataclass(frozen=True)
class Stage:
    """Rules that are applied together and kept or taken back together.

    Attributes:
        name: What they do.
        codes: The rules, in order.
        rounds: How often the whole list is gone through at most.
        demanded: Whether they are about right numbers or size, and so are not taken back for being slow.
        exact: Whether values stay what they were, so that outputs can be compared.
        notes_only: Leave findings that matter more than a note to later stages.
    """

    name: str
    codes: tuple[str, ...]
    rounds: int = 1
    demanded: bool = False
    exact: bool = False
    notes_only: bool = False


STAGES = (
    Stage("what is wrong", ("LNT101", "LNT102", "LNT105", "LNT111", "LNT210"), demanded=True),
    Stage("constants in float", ("LNT107",), demanded=True, exact=True),
    Stage(
        "the same values in another form",
        ("LNT109", "LNT201", "LNT208", "LNT108", "LNT305"),
        exact=True,
    ),
    # Limits of Clip and the like, without which the rest does not see what a node does.
    Stage("small constants", ("LNT302",), exact=True, notes_only=True),
    Stage("scales of channels", ("LNT205", "LNT111"), exact=True),
    Stage("Conv quantized in every run", ("LNT401",)),
    Stage("roundings for nothing", ("LNT306", "LNT203", "LNT202"), rounds=_ROUNDS),
    Stage("conversions for nothing", ("LNT402", "LNT301", "LNT403", "LNT302"), rounds=_ROUNDS),
    # Where the islands had to stay, what is stored can still be unpacked once and for all.
    Stage("stored tensors", ("LNT302",), exact=True),
    # Last, because until here a Q may still go and the weight stay in float.
    Stage("float weights that would be rounded", ("LNT110",), demanded=True),
)


@dataclass
class Repair:
    """One run of fixes over a model.

    Attributes:
        model: The model, which changes.
        edit: The way to change it.
        target: Where it shall run.
        larger: Whether stored tensors may become larger.
        clean: Called after fixes of a rule, to remove what nobody reads any more.
    """

    model: Model
    edit: Edit
    target: Target
    larger: bool
    clean: Callable[[], None]

    def stage(self, stage: Stage, chosen: Callable[[str], bool]) -> Counter[str]:
        """Applies the rules of a stage; returns how many findings of each were fixed."""
        known = rules_by_code()
        rules = [known[code] for code in stage.codes if chosen(code)]
        done: Counter[str] = Counter()
        for _ in range(stage.rounds):
            before = sum(done.values())
            self._round(rules, done, notes_only=stage.notes_only)
            if sum(done.values()) == before:
                break
        return done

    def _grows(self, rule: Rule, severity: Severity | None) -> bool:
        """Whether a fix makes the model larger than it may become."""
        small = severity is Severity.NOTE
        return not self.larger and (rule.code == "LNT401" or (rule.code == "LNT302" and not small))

    def _round(self, rules: Sequence[Rule], done: Counter[str], *, notes_only: bool) -> None:
        for rule in rules:
            for _ in range(_ROUNDS):
                if not self._apply(rule, done, notes_only=notes_only) or rule.code != "LNT301":
                    break

    def _apply(self, rule: Rule, done: Counter[str], *, notes_only: bool) -> bool:
        """Fixes what one rule finds now; returns whether that changed anything."""
        view = view_of(self.model, self.target)
        mark = self.edit.mark()
        fixed = 0
        for found in list(rule.find(view)):
            if found.fix is None or self._grows(rule, found.severity):
                continue
            if notes_only and found.severity is not Severity.NOTE:
                continue
            before = self.edit.mark()
            found.fix(self.edit)
            fixed += self.edit.mark() > before or rule.code == "LNT201"
        if self.edit.mark() == mark:
            return False
        done[rule.code] += fixed
        self.clean()
        return True
