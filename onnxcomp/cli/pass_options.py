"""Command line options made from the fields of a pass."""

from __future__ import annotations

import tomllib
import types
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BeforeValidator

from onnxcomp import recipe

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from onnxcomp.passbase import Pass

# Names that the command itself uses; a field of that name gets `--pass-NAME`.
TAKEN = frozenset(
    [
        "data",
        "preprocess",
        "samples",
        "reference",
        "output",
        "in-place",
        "external-data",
        "report",
        "target",
        "threads",
        "seed",
        "measure",
        "simplify",
        "quiet",
        "verbose",
        "json",
        "debug",
        "time-limit",
        "memory-limit",
        "help",
    ]
)
PREFIX = "option_"


def options_of(found: type[Pass]) -> list[click.Option]:
    """Returns an option for each field of a pass: its name, type, help and default come from there."""
    texts = found.option_help()
    return [_option(name, field, texts[name]) for name, field in found.model_fields.items()]


def build(found: type[Pass], values: Mapping[str, Any]) -> Pass:
    """Makes a pass of the options that were given.

    Args:
        found: The pass.
        values: Everything that click collected; what is not an option of the pass is ignored.

    Raises:
        RecipeError: If a value does not fit.
    """
    given = {}
    for name, field in found.model_fields.items():
        value = values.get(PREFIX + name)
        if value is None or value == ():
            continue
        given[name] = _mapping(value) if _shape(field.annotation) == "mapping" else value
    return recipe.make(found.name, given)


def default_text(field: FieldInfo) -> str:
    """Returns the default of a field as it would be written in a recipe."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return _plain(value)


def type_text(annotation: object) -> str:
    """Returns the values that a field takes, in words."""
    kind = _shape(annotation)
    inner = _inner(annotation)
    if kind == "choice":
        return " | ".join(str(choice) for choice in get_args(inner))
    if kind == "several":
        return f"list of {type_text(next(iter(get_args(inner)), str))}"
    names = {"flag": "true | false", "mapping": "table"}
    return names.get(kind) or str(getattr(inner, "__name__", "value"))


def _option(name: str, field: FieldInfo, text: str) -> click.Option:
    kebab = name.replace("_", "-")
    flag = f"--pass-{kebab}" if kebab in TAKEN else f"--{kebab}"
    default = default_text(field)
    kind = _shape(field.annotation)
    if default and kind != "mapping":
        text = f"{text}  [{'required' if field.is_required() else f'default: {default}'}]".strip()
    if kind == "flag":
        return click.Option([f"{flag}/--no-{flag[2:]}", PREFIX + name], default=None, help=text)
    several = kind in {"several", "mapping"}
    return click.Option(
        [flag, *_shorter(field), PREFIX + name],
        type=str if _is_parsed(field.annotation) else _click_type(_inner(field.annotation), kind),
        multiple=several,
        metavar="KEY=VALUE" if kind == "mapping" else None,
        help=f"{text}  [repeatable]" if several else text,
    )


def _shorter(field: FieldInfo) -> list[str]:
    """Returns another spelling of the option, if the field names one (`json_schema_extra`: `flag`)."""
    extra = field.json_schema_extra
    found = extra.get("flag") if isinstance(extra, Mapping) else None
    return [f"--{found}"] if isinstance(found, str) else []


def _is_parsed(annotation: object) -> bool:
    """Whether the field takes more than its type: `50%` for a float."""
    if any(isinstance(each, BeforeValidator) for each in getattr(annotation, "__metadata__", ())):
        return True
    return any(_is_parsed(each) for each in get_args(annotation))


def _click_type(inner: object, kind: str) -> Any:  # noqa: ANN401 - what click takes as a type
    if kind == "several":
        element = next(iter(get_args(inner)), str)
        return _click_type(_inner(element), _shape(element))
    if kind == "choice":
        return click.Choice([str(choice) for choice in get_args(inner)])
    return inner if inner in (int, float) else str


def _shape(annotation: object) -> str:
    """Returns how a field is given on the command line."""
    inner = _inner(annotation)
    origin = get_origin(inner) or inner
    if inner is bool:
        return "flag"
    if origin is Literal:
        return "choice"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if isinstance(origin, type) and issubclass(origin, Collection) and origin not in (str, bytes):
        return "several"
    return "one"


def _inner(annotation: object) -> Any:  # noqa: ANN401 - a type, of whatever form
    """Returns a type without `Annotated` and without `| None`."""
    while True:
        if hasattr(annotation, "__metadata__"):
            annotation = get_args(annotation)[0]
            continue
        if get_origin(annotation) in (Union, types.UnionType):
            rest = [each for each in get_args(annotation) if each is not type(None)]
            if len(rest) == 1:
                annotation = rest[0]
                continue
            return str
        return annotation


def _mapping(pairs: Collection[str]) -> dict[str, Any]:
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not of the form KEY=VALUE")
        values[key] = _value(value)
    return values


def _value(text: str) -> Any:  # noqa: ANN401 - a TOML value
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word


def _plain(value: object) -> str:
    if value is None or value in ((), [], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Collection) and not isinstance(value, (str, Mapping)):
        return ", ".join(map(str, value))
    return str(value)
