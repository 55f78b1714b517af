"""Rules from a file that the user names."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from onnxcomp.errors import UserError, quoted
from onnxcomp.patterns.rewriting import RewriteRule, rule_pass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.passbase import Pass
    from onnxcomp.rules import Rule


def load_rules(path: str | Path) -> dict[str, Rule]:
    """Runs a Python file and returns the rules that it defines, by name, in order.

    A rule is what `rewrite_rule` makes, or any object with `name`, `ops`, `match` and `apply`.

    Raises:
        UserError: If the file is not there, fails, or defines no rule or two of one name.
    """
    file = Path(path)
    try:
        state = file.stat()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read {quoted(file, 200)}: {reason}") from None
    return dict(_loaded(file.resolve(), state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=16)
def _loaded(path: Path, modified: int, size: int) -> dict[str, Rule]:
    """Runs a file once for each of its states, so that every pass gets the same rules."""
    del modified, size
    from onnxcomp.userfile import run_file

    try:
        module = run_file(path)
    except Exception as error:  # the user's code may raise anything
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"cannot run {quoted(path.name)}: {text}") from error
    found: dict[str, Rule] = {}
    for value in vars(module).values():
        if not _is_rule(value):
            continue
        if found.setdefault(value.name, value) is not value:
            raise UserError(f"{quoted(path.name)} has two rules named {quoted(value.name)}")
    if not found:
        raise UserError(
            f"{quoted(path.name)} defines no rule", hint="see onnxcomp.patterns.rewrite_rule"
        )
    return found


def steps_of(rules: Sequence[str | Path | Rule]) -> tuple[Pass, ...]:
    """Returns a pass for each rule, so that one which is wrong is taken back alone, and named.

    Args:
        rules: Files of rules, and rules.

    Raises:
        UserError: If a file defines no rules.
    """
    from onnxcomp.recipe import make

    steps: list[Pass] = []
    for each in rules:
        if isinstance(each, (str, Path)):
            names = load_rules(each)
            steps += [make("rules", {"file": str(each), "only": (name,)}) for name in names]
        else:
            steps.append(rule_pass(each.name, each)())
    return tuple(steps)


def _is_rule(value: object) -> bool:
    if isinstance(value, type):
        return False
    return isinstance(value, RewriteRule) or all(
        hasattr(value, name) for name in ("name", "ops", "match", "apply")
    )
