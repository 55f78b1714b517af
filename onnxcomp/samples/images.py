"""Samples from image files."""

from __future__ import annotations

import hashlib
import struct
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from typing_extensions import override

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.samples.core import Source, spread
from onnxcomp.samples.feeds import Array, check_shape, fixed_size, shape_text
from onnxcomp.samples.files import hash_file
from onnxcomp.samples.limits import DEFAULT_LIMITS, Limits, file_place, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from PIL import Image

    from onnxcomp.samples.preprocess import Preprocess
    from onnxcomp.signature import TensorSpec

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
)
# What Pillow's decoders raise for damaged files.
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    struct.error,
)
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM", "TIFF")


class ImageSource(Source):
    """Images as input of a model that takes one image, or a batch of fixed size."""

    def __init__(
        self,
        paths: Sequence[Path],
        inputs: Sequence[TensorSpec],
        preprocess: Preprocess,
        *,
        place: str,
        limit: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._spec = image_input(inputs)
        self._preprocess = preprocess
        self._limits = limits
        self._batch = (fixed_size((self._spec.shape or (1,))[0]) or 1) if self._rank == 4 else 1
        total = len(paths)
        if limit is not None and limit * self._batch < total:
            # A sorted folder often has one class after the other.
            paths = [paths[i] for i in spread(limit * self._batch, total)]
        left = len(paths) % self._batch
        self._paths = paths[: len(paths) - left]
        if not self._paths:
            raise SamplesError(f"{place}: {total} images, the model takes {self._batch} at a time")
        self.notes = (f"{left} images left over that do not fill a batch",) if left else ()
        chosen = f"{len(paths)} images" + (
            f" spread evenly over {total}" if len(paths) < total else ""
        )
        batches = f" in batches of {self._batch}" if self._batch > 1 else ""
        self.description = f"{chosen} from {place}{batches} ({preprocess})"
        for path in self._paths:
            self._check(path)

    @override
    def __len__(self) -> int:
        return len(self._paths) // self._batch

    @override
    def place(self, index: int) -> str:
        first = self._paths[index * self._batch]
        return (
            file_place(first)
            if self._batch == 1
            else f"{file_place(first)} and the {self._batch - 1} images after it"
        )

    @override
    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Mapping[str, object]]]:
        for index in indices:
            yield index, {self._spec.name: self._sample(index)}

    @override
    def digest(self) -> str:
        state = hashlib.blake2b(str(self._preprocess).encode(), digest_size=16)
        for path in self._paths:
            hash_file(state, path)
        return state.hexdigest()

    def _check(self, path: Path) -> None:
        """Finds out from the header of an image whether it will fit the model."""
        with _opened(path, self._limits) as image:
            width, height = image.size
        resized = self._preprocess.resized(height, width)
        top, left, height, width = self._preprocess.cropped(*resized)
        place = f"{file_place(path)}, input {quoted(self._spec.name)}"
        if top < 0 or left < 0:
            size = f"{resized[0]}x{resized[1]}"
            raise SamplesError(
                f"{place}: the image is {size}, smaller than the crop", hint="set size as well"
            )
        check_shape(self._shape(height, width), self._spec, place)

    def _shape(self, height: int, width: int) -> tuple[int, ...]:
        channels = self._preprocess.channels
        planar = self._preprocess.layout == "nchw"
        inner = (channels, height, width) if planar else (height, width, channels)
        return inner if self._rank == 3 else (self._batch, *inner)

    @property
    def _rank(self) -> int:
        return 4 if self._spec.shape is None else len(self._spec.shape)

    def _sample(self, index: int) -> Array:
        paths = self._paths[index * self._batch : (index + 1) * self._batch]
        arrays = [self._image(path) for path in paths]
        if len({array.shape for array in arrays}) > 1:
            raise SamplesError(
                f"{self.place(index)}: the images have different sizes", hint="set size or crop"
            )
        return arrays[0] if self._rank == 3 else np.stack(arrays)

    def _image(self, path: Path) -> Array:
        options = self._preprocess
        with _opened(path, self._limits) as image:
            pixels = _pixels(image, options, path)
        if options.color == "bgr":
            pixels = pixels[..., ::-1]
        values = (pixels * np.float64(options.scale) - options.mean) / options.std
        if options.layout == "nchw":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(self._cast(values, path))

    def _cast(self, values: Array, path: Path) -> Array:
        dtype = self._spec.dtype
        if dtype is None or dtype.kind not in "iu":
            return values.astype(dtype or np.float32)
        rounded = np.rint(values)
        limits = np.iinfo(dtype)
        if (
            np.abs(values - rounded).max() > 1e-6
            or rounded.min() < limits.min
            or rounded.max() > limits.max
        ):
            hint = "the model takes pixels as they are: set scale=1, mean=0, std=1"
            raise SamplesError(
                f"{file_place(path)}: the values do not fit into {dtype.name}", hint=hint
            )
        return rounded.astype(dtype)


def image_input(inputs: Sequence[TensorSpec]) -> TensorSpec:
    """Returns the input that takes images."""
    required = [spec for spec in inputs if not spec.optional]
    if len(required) != 1:
        hint = "use npz files or a Python function instead"
        raise SamplesError(
            f"images fit a model with one input, this one has {len(required)}", hint=hint
        )
    spec = required[0]
    if spec.shape is not None and len(spec.shape) not in (3, 4):
        raise SamplesError(
            f"input {quoted(spec.name)}: images do not fit the shape {shape_text(spec.shape)}"
        )
    return spec


def suggestion(inputs: Sequence[TensorSpec]) -> str:
    """Returns options that fit the shape of the image input, as an example."""
    shape = image_input(inputs).shape or ()
    dims = [fixed_size(dim) for dim in shape[-3:]]
    layout = "nhwc" if dims and dims[-1] in (1, 3) else "nchw"
    height, width = (dims[:2] if layout == "nhwc" else dims[1:]) or (None, None)
    size = f"size={height}x{width}" if height and width else "size=224x224"
    return f"{size},layout={layout},scale=1/255,mean=0,std=1"


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[Image.Image]:
    """Opens an image without decoding it, and turns what goes wrong into one clear error."""
    try:
        from PIL import UnidentifiedImageError
    except ImportError:
        hint = "pip install 'onnxcomp[images]'"
        raise SamplesError(
            "reading images needs Pillow, which is not installed", hint=hint
        ) from None
    with open_regular(path) as file, warnings.catch_warnings():
        # Pillow warns about sizes, which have a limit of their own here, and about odd metadata.
        warnings.simplefilter("ignore")
        try:
            with _identified(file) as image:
                if image.size[0] * image.size[1] > limits.image_pixels:
                    size = f"{image.size[0]}x{image.size[1]}"
                    raise SamplesError(
                        f"{file_place(path)}: {size} pixels, at most {limits.image_pixels} are accepted"
                    )
                yield image
        except UnidentifiedImageError:
            raise SamplesError(f"{file_place(path)} is not an image that can be read") from None
        except _DAMAGED as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise SamplesError(f"{file_place(path)}: the image is damaged: {text}") from error


@contextmanager
def _identified(file: BinaryIO) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        opened = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise SamplesError(f"file {quoted(file.name, 200)}: {error}") from None
    with opened as image:
        yield image


def _pixels(image: Image.Image, options: Preprocess, path: Path) -> Array:
    """Returns height x width x channels from 0 to 255."""
    from PIL.Image import Resampling

    if image.mode[0] in "IF":
        hint = "convert it to 8 bits"
        raise SamplesError(
            f"{file_place(path)}: images of mode {image.mode} are not supported", hint=hint
        )
    converted = image.convert("L" if options.color == "gray" else "RGB")
    height, width = options.resized(converted.height, converted.width)
    if (width, height) != converted.size:
        converted = converted.resize((width, height), Resampling[options.resample.upper()])
    top, left, height, width = options.cropped(height, width)
    if (width, height) != converted.size:
        converted = converted.crop((left, top, left + width, top + height))
    return np.asarray(converted).reshape(height, width, options.channels)
