"""How an image becomes the input of a model."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from typing_extensions import override

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.samples.limits import open_regular

_TOML_BYTES = 1 << 20
_MAX_SIDE = 16_384

Size = tuple[int, int]


def _size(value: object) -> object:
    if value is None:
        return None
    if isinstance(value, str):
        parts = value.lower().split("x")
        value = [
            int(part) if part.strip().isdecimal() and len(part) < 10 else part for part in parts
        ]
        value = value[0] if len(value) == 1 else value
    sides = value if isinstance(value, (list, tuple)) else [value]
    if len(sides) > 2 or not all(type(side) is int and 0 < side <= _MAX_SIDE for side in sides):
        raise ValueError(
            f"must be a number of pixels such as 224, or height x width such as 224x320, up to {_MAX_SIDE}"
        )
    return value


def _number(value: object) -> object:
    match = (
        re.fullmatch(r"\s*([0-9.]{1,20})\s*/\s*([0-9.]{1,20})\s*", value)
        if isinstance(value, str)
        else None
    )
    if match and float(match[2]):
        return float(match[1]) / float(match[2])
    return value


def _numbers(value: object) -> object:
    if isinstance(value, str):
        return [_number(part) for part in value.split(":")]
    return value if isinstance(value, (list, tuple)) else [value]


class Preprocess(BaseModel):
    """How an image becomes the input of a model: resize, crop, colours, scale, mean, std, layout.

    A value goes into the model as `(pixel * scale - mean) / std`, with pixels from 0 to 255. The
    orientation noted in a photo (EXIF) is not applied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    size: Annotated[int | Size | None, BeforeValidator(_size)] = None
    """Resize: one number is the length of the shorter side, `224x320` is height and width."""
    crop: Annotated[int | Size | None, BeforeValidator(_size)] = None
    """Cut this much out of the middle."""
    scale: Annotated[float, BeforeValidator(_number)] = 1 / 255
    """Factor for pixels, e.g. `1/255` or `1`."""
    mean: Annotated[tuple[float, ...], BeforeValidator(_numbers)] = (0.0,)
    """Subtracted after scaling, one number or one per channel: `0.485:0.456:0.406`."""
    std: Annotated[tuple[float, ...], BeforeValidator(_numbers)] = (1.0,)
    """Divisor after that, one number or one per channel."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Order of the axes; the batch axis is left out for a model input of three axes."""
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    """Channels and their order; `mean` and `std` are in this order too."""
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    """Filter for resizing, as Pillow names it."""

    @model_validator(mode="after")
    def _check(self) -> Preprocess:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name}: {len(values)} numbers for {self.channels} channels")
        if not all(map(math.isfinite, (self.scale, *self.mean, *self.std))) or 0 in self.std:
            raise ValueError("scale, mean and std must be finite numbers, std not 0")
        return self

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Reads a text like `size=256,crop=224,mean=0.5,std=0.5`, or the TOML file it names.

        Raises:
            SamplesError: If an option is unknown or has an impossible value.
        """
        if text.endswith(".toml"):
            return cls.from_toml(Path(text))
        options: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = item.partition("=")
            if not equals:
                raise SamplesError(f"preprocess: {quoted(item)} is not of the form name=value")
            if name.strip() in options:
                raise SamplesError(f"preprocess: {quoted(name.strip())} is given twice")
            options[name.strip()] = value.strip()
        return cls._validated(options, "preprocess")

    @classmethod
    def from_toml(cls, path: Path) -> Preprocess:
        """Reads the options from a TOML file, at the top level or in a table `[preprocess]`."""
        with open_regular(path) as file:
            content = file.read(_TOML_BYTES + 1)
        if len(content) > _TOML_BYTES:
            raise SamplesError(f"file {quoted(path, 200)} is larger than {_TOML_BYTES} bytes")
        try:
            options = tomllib.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise SamplesError(f"file {quoted(path, 200)} is not valid TOML: {error}") from None
        inner = options.get("preprocess", options)
        if not isinstance(inner, dict):
            raise SamplesError(f"file {quoted(path, 200)}: preprocess must be a table")
        return cls._validated(inner, f"file {quoted(path, 200)}")

    @property
    def channels(self) -> int:
        """Number of colour channels."""
        return 1 if self.color == "gray" else 3

    def resized(self, height: int, width: int) -> Size:
        """Returns height and width after resizing."""
        if not isinstance(self.size, int):
            return self.size or (height, width)
        if height <= width:
            return self.size, max(self.size * width // height, 1)
        return max(self.size * height // width, 1), self.size

    def cropped(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns top, left, height and width of what is cut out of a resized image."""
        crop = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        if crop is None:
            return 0, 0, height, width
        return (height - crop[0]) // 2, (width - crop[1]) // 2, *crop

    @override
    def __str__(self) -> str:
        texts = {
            name: _text(value) for name, value in self.model_dump(exclude_defaults=True).items()
        }
        return ",".join(f"{name}={text}" for name, text in texts.items())

    @classmethod
    def _validated(cls, options: dict[str, Any], place: str) -> Preprocess:
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            if first["type"] == "extra_forbidden":
                hint = f"options are {', '.join(cls.model_fields)}"
                raise SamplesError(f"{place}: no option {quoted(name)}", hint=hint) from None
            what = first["msg"].removeprefix("Value error, ")
            raise SamplesError(f"{place}: {name + ': ' if name else ''}{what}") from None


def _text(value: object) -> str:
    if isinstance(value, (tuple, list)):
        # Sizes are whole numbers, mean and std are not.
        return ("x" if all(isinstance(item, int) for item in value) else ":").join(map(str, value))
    return str(value)
