"""Pipelines as text and as TOML files, both ways.

The text form is `fold-constants,quantize-static{weights=int8 per-channel=true}`; repetition until
nothing changes is `fixpoint(fold-constants,eliminate-identity)`. Values are TOML values or bare words.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from typing_extensions import override

from onnxcomp import registry
from onnxcomp.errors import RecipeError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnxcomp.passbase import Pass

MAX_RECIPE_BYTES = 1 << 20
MAX_DEPTH = 8


@dataclass(frozen=True)
class Fixpoint:
    """Steps repeated until none of them changes the model, at most `limit` times."""

    steps: tuple[Pass | Fixpoint, ...]
    limit: int = 8

    @override
    def __str__(self) -> str:
        return f"fixpoint({format_steps(self.steps)})"


@dataclass(frozen=True)
class Recipe:
    """A whole run: the steps, the target, and what must hold at the end.

    Attributes:
        steps: What to do, in order.
        target: Name of the target.
        check: Limits on the result, e.g. `{"max-relative-error": 0.02}`.
    """

    steps: tuple[Pass | Fixpoint, ...]
    target: str = "cpu"
    check: Mapping[str, float] = field(default_factory=dict)


def make(name: str, options: Mapping[str, Any], place: str = "") -> Pass:
    """Builds a pass from its name and options, whose names may be kebab-case or snake_case.

    Raises:
        RecipeError: If the pass or an option is unknown, or a value does not fit.
    """
    found = registry.get(name)
    values = {key.replace("-", "_"): value for key, value in options.items()}
    try:
        return found(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"]).replace("_", "-")
        known = ", ".join(key.replace("_", "-") for key in found.model_fields) or "none"
        prefix = f"{place} " if place else ""
        what = first["msg"].lower().removeprefix("value error, ")
        text = f"{option}: {what}" if option else what
        raise RecipeError(f"{prefix}({name}): {text}", hint=f"options: {known}") from None


def format_step(step: Pass | Fixpoint) -> str:
    """Returns the text form of a step."""
    if isinstance(step, Fixpoint):
        return str(step)
    options = " ".join(f"{name}={_format(value)}" for name, value in step.options().items())
    return f"{step.name}{{{options}}}" if options else step.name


def format_steps(steps: Sequence[Pass | Fixpoint]) -> str:
    """Returns the text form of a pipeline."""
    return ",".join(format_step(step) for step in steps)


def _format(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        plain = value.replace("-", "").replace("_", "").replace(".", "").isalnum()
        return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_format_inner(item) for item in value) + "]"
    if isinstance(value, dict):
        pairs = ",".join(
            f"{_format(str(key))}={_format_inner(item)}" for key, item in value.items()
        )
        return "{" + pairs + "}"
    return str(value)


def _format_inner(value: object) -> str:
    """A value within a list or a table, where TOML knows no bare words."""
    return _toml(value) if isinstance(value, str) else _format(value)


def parse_steps(text: str) -> tuple[Pass | Fixpoint, ...]:
    """Reads the text form of a pipeline.

    Raises:
        RecipeError: If the text is not understood, naming the part.
    """
    if not text.strip():
        raise RecipeError("the pipeline is empty", hint="e.g. fold-constants,fuse-batchnorm")
    return tuple(_parse_step(part.strip(), 1) for part in _split(text, ","))


def _parse_step(text: str, depth: int) -> Pass | Fixpoint:
    if depth > MAX_DEPTH:
        raise RecipeError(f"the pipeline is nested deeper than {MAX_DEPTH} levels")
    if text.startswith("fixpoint(") and text.endswith(")"):
        inner = text[len("fixpoint(") : -1]
        return Fixpoint(tuple(_parse_step(part.strip(), depth + 1) for part in _split(inner, ",")))
    name, brace, rest = text.partition("{")
    if brace and not rest.endswith("}"):
        raise RecipeError(f"missing }} in {quoted(text)}")
    options: dict[str, Any] = {}
    for part in _split(rest[:-1], " ") if brace else []:
        if not part.strip():
            continue
        key, equals, value = part.strip().partition("=")
        if not equals:
            raise RecipeError(
                f"option {quoted(key)} of {name} has no value", hint=f"write {key}=VALUE"
            )
        options[key] = _value(value)
    return make(name.strip(), options)


def _value(text: str) -> Any:  # noqa: ANN401 - a TOML value
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word


def _split(text: str, separator: str) -> list[str]:
    """Splits at a separator outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth < 0:
                raise RecipeError(f"unexpected {char} in {quoted(text)}")
        elif char == separator and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    if depth or quote:
        raise RecipeError(f"unbalanced brackets or quotes in {quoted(text)}")
    return [*parts, text[start:]]


def read_recipe(path: Path) -> Recipe:
    """Reads a TOML recipe.

    Raises:
        RecipeError: If the file or something in it is not understood; the message names the step.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: a recipe is at most 1 MiB")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    unknown = set(data) - {"target", "step", "check"}
    if unknown:
        raise RecipeError(
            f"{path}: unknown key {quoted(min(unknown))}", hint="known: target, step, check"
        )
    steps = _recipe_steps(data.get("step", []), str(path), 1)
    check = data.get("check", {})
    if not isinstance(check, dict) or not all(isinstance(v, (int, float)) for v in check.values()):
        raise RecipeError(f"{path}: [check] holds numbers")
    return Recipe(steps, str(data.get("target", "cpu")), check)


def _recipe_steps(entries: object, path: str, depth: int) -> tuple[Pass | Fixpoint, ...]:
    if not isinstance(entries, list) or not entries or depth > MAX_DEPTH:
        raise RecipeError(f"{path}: needs at least one [[step]]")
    steps: list[Pass | Fixpoint] = []
    for number, entry in enumerate(entries, 1):
        place = f"{path}: step {number}"
        if not isinstance(entry, dict):
            raise RecipeError(f"{place}: must be a table")
        options = dict(entry)
        if "fixpoint" in options:
            steps.append(Fixpoint(_recipe_steps(options["fixpoint"], place, depth + 1)))
            continue
        name = options.pop("pass", None)
        if not isinstance(name, str):
            raise RecipeError(f'{place}: needs pass = "NAME"')
        steps.append(make(name, options, place))
    return tuple(steps)


def write_recipe(recipe: Recipe) -> str:
    """Returns a recipe as TOML that `read_recipe` understands."""
    lines = [f'target = "{recipe.target}"', ""]
    for step in recipe.steps:
        lines += [*_step_lines(step, "[[step]]"), ""]
    if recipe.check:
        lines += ["[check]", *(f"{key} = {value}" for key, value in recipe.check.items()), ""]
    return "\n".join(lines)


def _step_lines(step: Pass | Fixpoint, header: str) -> list[str]:
    if isinstance(step, Fixpoint):
        inner = [f"{{ {', '.join(_step_lines(item, '')[1:])} }}" for item in step.steps]
        return [header, f"fixpoint = [{', '.join(inner)}]"]
    return [
        header,
        f'pass = "{step.name}"',
        *(f"{name} = {_toml(value)}" for name, value in step.options().items()),
    ]


def _toml(value: object) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    return _format(value)
