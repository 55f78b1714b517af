"""Folders of images and how they are prepared."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcomp.errors import SamplesError
from onnxcomp.samples import Limits, Preprocess, load_samples
from tests.samples.make import X, early_refusal, npz, refusal, spec, stacked, values

NCHW = spec("image", "N", 3, 4, 6)
RAW = Preprocess(scale=1)


def picture(
    path: Path, height: int = 4, width: int = 6, seed: int = 0, mode: str = "RGB"
) -> np.ndarray:
    """Writes an image without loss and returns its pixels."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_a_folder_of_images_in_natural_order(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    pixels = [picture(tmp_path / "cats" / f"{i}.png", seed=i) for i in (2, 10)]
    (tmp_path / "labels.txt").write_text("ignored")
    samples = load_samples(tmp_path, [NCHW], preprocess=RAW)
    assert len(samples) == 2
    assert np.array_equal(stacked(samples, "image")[:, 0], np.stack(pixels).transpose(0, 3, 1, 2))
    assert samples.first()["image"].dtype == np.float32
    assert "2 images from folder" in samples.description
    assert "(scale=1.0)" in samples.description


def test_scale_mean_and_std_per_channel(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    options = Preprocess.parse("mean=0.485:0.456:0.406,std=0.229:0.224:0.225")
    found = load_samples(tmp_path / "a.png", [NCHW], preprocess=options).first()["image"][0]
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(found, expected.transpose(2, 0, 1), rtol=1e-6)


def test_layout_nhwc_and_bgr(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    options = Preprocess(scale=1, layout="nhwc", color="bgr")
    wanted = spec("image", 1, 4, 6, 3, dtype="uint8")
    found = load_samples(tmp_path, [wanted], preprocess=options).first()["image"]
    assert found.dtype == np.uint8
    assert np.array_equal(found[0], pixels[..., ::-1])


def test_gray(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", mode="L")
    options = Preprocess(scale=1, color="gray")
    found = load_samples(tmp_path, [spec("image", 1, 1, 4, 6)], preprocess=options).first()["image"]
    assert np.array_equal(found[0, 0], pixels)


def test_gray_images_and_palettes_become_rgb(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", mode="L")
    Image.fromarray(pixels).convert("P").save(tmp_path / "b.png")
    for feed in load_samples(tmp_path, [NCHW], preprocess=RAW):
        assert np.array_equal(feed["image"][0], np.stack([pixels] * 3))


def test_an_input_without_batch_axis(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png")
    found = load_samples(tmp_path, [spec("image", 3, 4, 6)], preprocess=RAW).first()["image"]
    assert np.array_equal(found, pixels.transpose(2, 0, 1))


def test_a_fixed_batch(tmp_path: Path) -> None:
    pixels = [picture(tmp_path / f"{i}.png", seed=i) for i in range(5)]
    samples = load_samples(tmp_path, [spec("image", 2, 3, 4, 6)], preprocess=RAW)
    assert len(samples) == 2
    assert np.array_equal(samples.first()["image"], np.stack(pixels[:2]).transpose(0, 3, 1, 2))
    assert samples.notes == ("1 images left over that do not fill a batch",)
    text = early_refusal(tmp_path, spec("image", 8, 3, 4, 6), preprocess=RAW)
    assert "5 images, the model takes 8 at a time" in text


@pytest.mark.parametrize(
    ("size", "crop", "shape"),
    [
        (None, None, (40, 60)),
        (20, None, (20, 30)),
        ((10, 12), None, (10, 12)),
        (20, 16, (16, 16)),
        (None, (8, 10), (8, 10)),
        (80, None, (80, 120)),
    ],
)
def test_size_and_crop(
    tmp_path: Path, size: int | tuple[int, int] | None, crop: int | None, shape: tuple[int, int]
) -> None:
    picture(tmp_path / "a.png", 40, 60)
    options = Preprocess(size=size, crop=crop)
    found = load_samples(tmp_path, [spec("image", 1, 3, *shape)], preprocess=options).first()[
        "image"
    ]
    assert found.shape == (1, 3, *shape)
    text = early_refusal(tmp_path, spec("image", 1, 3, 7, 7), preprocess=options)
    assert f"the shape is [1,3,{shape[0]},{shape[1]}], the model takes [1,3,7,7]" in text


def test_size_of_a_tall_image(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 60, 40)
    options = Preprocess(size=20)
    found = load_samples(tmp_path, [spec("image", 1, 3, None, None)], preprocess=options).first()
    assert found["image"].shape == (1, 3, 30, 20)


def test_crop_is_from_the_middle(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 6, 8)
    options = Preprocess(scale=1, crop=4)
    found = load_samples(tmp_path, [spec("image", 1, 3, 4, 4)], preprocess=options).first()["image"]
    assert np.array_equal(found[0], pixels[1:5, 2:6].transpose(2, 0, 1))


def test_resample_changes_the_result(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 40, 60)
    wanted = spec("image", 1, 3, 20, 30)
    nearest, bilinear = (
        load_samples(tmp_path, [wanted], preprocess=Preprocess(size=20, resample=name)).first()[
            "image"
        ]
        for name in ("nearest", "bilinear")
    )
    assert not np.array_equal(nearest, bilinear)


def test_limit_spreads_over_the_folder(tmp_path: Path) -> None:
    pixels = [picture(tmp_path / f"{i}.png", seed=i) for i in range(6)]
    samples = load_samples(tmp_path, [NCHW], preprocess=RAW, limit=2)
    expected = np.stack([pixels[1], pixels[4]]).transpose(0, 3, 1, 2)
    assert np.array_equal(stacked(samples, "image")[:, 0], expected)
    assert "2 images spread evenly over 6" in samples.description


def test_the_digest_depends_on_pixels_and_options(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    digests = [
        load_samples(tmp_path, [NCHW], preprocess=p).digest() for p in (RAW, Preprocess(), RAW)
    ]
    assert digests[0] == digests[2] != digests[1]


def test_images_without_options_show_what_to_say(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    text = early_refusal(tmp_path, NCHW)
    assert "images need to know how the model takes them" in text
    suggested = text.rsplit("--preprocess ", 1)[1].rstrip(")")
    assert suggested == "size=4x6,layout=nchw,scale=1/255,mean=0,std=1"
    assert len(load_samples(tmp_path, [NCHW], preprocess=Preprocess.parse(suggested))) == 1
    assert "size=224x224,layout=nhwc" in early_refusal(tmp_path, spec("image", None, None, None, 3))
    assert "size=224x224,layout=nchw" in early_refusal(tmp_path, spec("image", 1, 3, "H", "W"))


def test_options_without_images(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=values(2, 1, 3))
    assert "preprocess options are for images only" in early_refusal(path, X, preprocess=RAW)


def test_models_that_take_no_image(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert "one input, this one has 2" in early_refusal(tmp_path, NCHW, X, preprocess=RAW)
    assert "images do not fit the shape [N,3]" in early_refusal(tmp_path, X, preprocess=RAW)


def test_an_image_that_is_too_small_is_named_early(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 20, 20)
    picture(tmp_path / "b.png", 10, 20)
    text = early_refusal(tmp_path, spec("image", 1, 3, 16, 16), preprocess=Preprocess(crop=16))
    assert (
        'b.png", input "image": the image is 10x20, smaller than the crop (set size as well)'
        in text
    )


def test_an_image_of_another_shape_is_named_early(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", 5, 6)
    assert 'b.png", input "image": the shape is [1,3,5,6]' in early_refusal(
        tmp_path, NCHW, preprocess=RAW
    )


def test_integer_inputs_take_whole_numbers_only(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    wanted = spec("image", 1, 3, 4, 6, dtype="uint8")
    text = refusal(tmp_path, wanted, preprocess=Preprocess())
    assert "set scale=1, mean=0, std=1" in text


def test_damaged_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 40, 60)
    content = (tmp_path / "a.png").read_bytes()
    options = Preprocess(size=(4, 6))
    (tmp_path / "a.png").write_bytes(content[:-200])
    assert 'a.png": the image is damaged' in refusal(tmp_path, NCHW, preprocess=options)
    (tmp_path / "a.png").write_bytes(b"hello")
    assert "is not an image that can be read" in early_refusal(tmp_path, NCHW, preprocess=options)
    (tmp_path / "a.png").write_bytes(b"")
    assert "is not an image that can be read" in early_refusal(tmp_path, NCHW, preprocess=options)


@pytest.mark.parametrize("error", [MemoryError(), struct.error("two\nlines"), ZeroDivisionError()])
def test_what_decoders_raise(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    picture(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", fail)
    assert 'a.png": the image is damaged: ' in refusal(tmp_path, NCHW, preprocess=RAW)


def test_images_of_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "a.png")
    assert "images of mode I;16 are not supported" in refusal(tmp_path, NCHW, preprocess=RAW)


def test_images_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", 40, 60)
    text = early_refusal(tmp_path, NCHW, preprocess=RAW, limits=Limits(image_pixels=2000))
    assert "60x40 pixels, at most 2000 are accepted" in text
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert 'a.png": ' in early_refusal(tmp_path, NCHW, preprocess=RAW)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    text = early_refusal(tmp_path, NCHW, preprocess=RAW)
    assert "needs Pillow, which is not installed (pip install 'onnxcomp[images]')" in text


def test_the_text_of_options_reads_back() -> None:
    for text in (
        "size=256,crop=224,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=nchw,color=rgb,resample=bilinear",
        "size=224x320,scale=1/127.5,mean=1,layout=nhwc,color=bgr,resample=lanczos",
        "",
    ):
        options = Preprocess.parse(text)
        assert Preprocess.parse(str(options)) == options
    assert Preprocess.parse("size=224x320").size == (224, 320)
    assert Preprocess.parse("scale=1/127.5").scale == 1 / 127.5
    assert Preprocess.parse(" size = 8 , ").size == 8


def test_options_from_a_toml_file(tmp_path: Path) -> None:
    expected = Preprocess(size=256, crop=(224, 200), mean=(0.5,), scale=1.0)
    path = tmp_path / "p.toml"
    for head in ("", "[preprocess]\n"):
        path.write_text(
            head + 'size = 256\ncrop = [224, 200]\nmean = 0.5\nscale = 1\nlayout = "nchw"\n'
        )
        assert Preprocess.parse(str(path)) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("size=abc", "preprocess: size: must be a number of pixels"),
        ("size=0", "preprocess: size: must be a number of pixels"),
        ("size=1x2x3", "preprocess: size: must be a number of pixels"),
        ("size=99999999999", "preprocess: size: must be a number of pixels"),
        ("sise=3", 'preprocess: no option "sise" (options are size, crop,'),
        ("layout=chw", "preprocess: layout: Input should be 'nchw' or 'nhwc'"),
        ("mean=1:2", "preprocess: mean: 2 numbers for 3 channels"),
        ("std=0", "std not 0"),
        ("scale=nan", "must be finite"),
        ("scale=1/0", "preprocess: scale: "),
        ("224", 'preprocess: "224" is not of the form name=value'),
        ("size=1,size=2", 'preprocess: "size" is given twice'),
    ],
)
def test_bad_options(text: str, problem: str) -> None:
    with pytest.raises(SamplesError) as caught:
        Preprocess.parse(text)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_toml(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    for content, problem in (
        ("size = ", "is not valid TOML"),
        ("size = 'x'", 'p.toml": size: must be'),
        ("preprocess = 3", "must be a table"),
        ("#" * (1 << 20) + "##", "is larger than"),
    ):
        path.write_text(content)
        with pytest.raises(SamplesError, match=problem):
            Preprocess.from_toml(path)
    with pytest.raises(SamplesError, match="No such file"):
        Preprocess.parse("none.toml")
