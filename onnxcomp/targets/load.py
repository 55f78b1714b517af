"""Finds and reads the tables of targets."""

from __future__ import annotations

import difflib
import re
import tomllib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from onnxcomp.errors import RecipeError, quoted
from onnxcomp.targets.table import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def target_names() -> tuple[str, ...]:
    """Returns the names of all targets."""
    files = resources.files(__package__).iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


@cache
def load_target(name: str) -> Target:
    """Reads the table of a target.

    Raises:
        RecipeError: If there is no such target.
    """
    known = target_names()
    if not _NAME.fullmatch(name) or name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(f"no target {quoted(name)}", hint=f"{guess}there are: {', '.join(known)}")
    return Target.model_validate(_read(name))


def _read(name: str) -> dict[str, Any]:
    """The contents of a table, over those of the table that it extends."""
    file = resources.files(__package__).joinpath(f"{name}.toml")
    own = tomllib.loads(file.read_text(encoding="utf-8"))
    base, without = own.pop("extends", None), own.pop("without", ())
    if base is None:
        return own
    merged = {key: _inherited(value, without) for key, value in _read(base).items()}
    for key, value in own.items():
        merged[key] = _over(value, merged.get(key))
    return merged


def _inherited(value: object, without: Sequence[str]) -> object:
    """What a table takes over: rows that were run were so for the other target."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return value
    kept = [row for row in value if not {row.get("name"), row.get("rule")} & set(without)]
    return [{**row, "checked": "source"} if row["checked"] == "run" else row for row in kept]


def _over(value: object, base: object) -> object:
    """A table is merged key by key; rows come in front and replace those of the same name."""
    if isinstance(value, dict) and isinstance(base, dict):
        return {**base, **value}
    if isinstance(value, list) and isinstance(base, list):
        names = {row["name"] for row in value if "name" in row}
        return [*value, *(row for row in base if row.get("name") not in names)]
    return value
