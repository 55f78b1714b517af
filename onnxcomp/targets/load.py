"""Finds and reads the tables of targets."""

from __future__ import annotations

import difflib
import re
import tomllib
from functools import cache
from importlib import resources
from typing import Any

from onnxcomp.errors import RecipeError, quoted
from onnxcomp.targets.table import Target

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
    base = own.pop("extends", None)
    if base is None:
        return own
    merged = _read(base)
    for key, value in own.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both_tables else value
    return merged
