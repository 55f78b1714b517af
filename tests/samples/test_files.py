"""npy files, folders, and files that are damaged, hostile or not files at all."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from typing_extensions import override

from onnxcomp.samples import Limits, Samples, load_samples
from tests.samples.make import X, early_refusal, npz, refusal, spec, stacked, values


def npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def npy_with_header(
    path: Path, header: str, data: bytes = b"", version: bytes = b"\x01\x00"
) -> Path:
    text = header.encode()
    length = (
        struct.pack("<H", len(text)) if version == b"\x01\x00" else struct.pack("<I", len(text))
    )
    path.write_bytes(b"\x93NUMPY" + version + length + text + data)
    return path


def test_npy_file_of_all_samples(tmp_path: Path) -> None:
    data = values(4, 1, 3)
    samples = load_samples(str(npy(tmp_path / "a.npy", data)), [X])
    assert np.array_equal(stacked(samples), data)
    _, validation = samples.split()
    assert np.array_equal(stacked(validation), data[1::2])


def test_npy_file_needs_a_model_with_one_input(tmp_path: Path) -> None:
    text = early_refusal(npy(tmp_path / "a.npy", values(4, 3)), X, spec("y", 1))
    assert "an npy file fits a model with one input, this one has 2" in text


def test_the_content_counts_when_the_suffix_says_nothing(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", x=values(2, 1, 3)).rename(tmp_path / "a.dat")
    npy(tmp_path / "b.npy", values(2, 1, 3)).rename(tmp_path / "b")
    assert len(load_samples(tmp_path / "a.dat", [X])) == 2
    assert len(load_samples(tmp_path / "b", [X])) == 2
    (tmp_path / "c.txt").write_text("hello")
    assert 'c.txt" is not a file of samples' in early_refusal(tmp_path / "c.txt", X)


def folder_of(tmp_path: Path, count: int) -> np.ndarray:
    data = values(count, 1, 3)
    for i, row in enumerate(data):
        npz(tmp_path / f"s{i}.npz", x=row)
    return data


def test_folder_with_one_file_per_sample_in_natural_order(tmp_path: Path) -> None:
    data = folder_of(tmp_path, 12)
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / ".hidden.npz").write_bytes(b"")
    samples = load_samples(tmp_path, [X])
    assert np.array_equal(stacked(samples), data)  # s2 comes before s10
    assert "12 samples in 12 files of folder" in samples.description
    calibration, validation = samples.split()
    assert np.array_equal(stacked(calibration), data[::2])
    assert np.array_equal(stacked(validation), data[1::2])


def test_folder_of_files_with_several_samples_each(tmp_path: Path) -> None:
    first, second = values(3, 1, 3), values(2, 1, 3, seed=1)
    npy(tmp_path / "a.npy", first)
    (tmp_path / "inner").mkdir()
    npy(tmp_path / "inner" / "b.npy", second)
    samples = load_samples(tmp_path, [X])
    assert np.array_equal(stacked(samples), np.concatenate([first, second]))


def test_folder_with_a_limit_is_sampled_evenly(tmp_path: Path) -> None:
    data = folder_of(tmp_path, 12)
    samples = load_samples(tmp_path, [X], limit=3)
    assert np.array_equal(stacked(samples), data[[2, 6, 10]])
    assert "3 files spread evenly over 12" in samples.description


def test_a_bad_file_in_a_folder_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, 3)
    npz(tmp_path / "s1.npz", x=values(1, 4))
    assert 's1.npz", input "x": the shape is [1,4]' in early_refusal(tmp_path, X)
    npz(tmp_path / "s1.npz", x=np.full((1, 3), np.nan, "f4"))
    assert 's1.npz", input "x": 3 of 3 values are not finite numbers (NaN)' in refusal(tmp_path, X)


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    folder_of(tmp_path, 3)
    before = load_samples(tmp_path, [X]).digest()
    (tmp_path / "s2.npz").rename(tmp_path / "s7.npz")
    assert load_samples(tmp_path, [X]).digest() == before
    npz(tmp_path / "s7.npz", x=values(1, 3, seed=9))
    assert load_samples(tmp_path, [X]).digest() != before


def test_folders_without_samples(tmp_path: Path) -> None:
    assert "has no npz, npy or image files" in early_refusal(tmp_path, X)
    folder_of(tmp_path, 1)
    npy(tmp_path / "a.npy", values(1, 3))
    assert "mixes npy and npz" in early_refusal(tmp_path, X)
    assert "more than 1 files" in early_refusal(tmp_path, X, limits=Limits(files=1))


def test_linked_folders_are_not_followed(tmp_path: Path) -> None:
    data = folder_of(tmp_path, 2)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert np.array_equal(stacked(load_samples(tmp_path, [X])), data)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in early_refusal(tmp_path / "none.npz", X)
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    assert "cannot read" in early_refusal(tmp_path / "loop.npz", X)
    (tmp_path / "gone.npz").symlink_to(tmp_path / "none.npz")
    assert "No such file" in early_refusal(tmp_path, X)
    assert "not a path" in early_refusal("a\0b", X)


@pytest.mark.parametrize("name", ["pipe.npz", "pipe.npy", "pipe"])
def test_a_pipe_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert "is not a regular file" in early_refusal(tmp_path / name, X)


def test_a_device_is_refused() -> None:
    assert "is not a regular file" in early_refusal("/dev/zero", X)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=values(2, 1, 3))
    path.chmod(0)
    assert "Permission denied" in early_refusal(path, X)


def test_a_folder_that_is_called_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").mkdir()
    assert "has no npz, npy or image files" in early_refusal(tmp_path / "a.npz", X)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.npz").symlink_to(tmp_path / "a.npz", target_is_directory=True)
    assert "has no npz, npy or image files" in early_refusal(tmp_path / "b", X)


def test_empty_files(tmp_path: Path) -> None:
    for name in ("a.npz", "a.npy"):
        (tmp_path / name).write_bytes(b"")
        assert f'{name}" is empty' in early_refusal(tmp_path / name, X)


def test_npz_that_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"hello")
    assert 'a.npz" is not an npz file, or it is truncated' in early_refusal(tmp_path / "a.npz", X)


def test_npz_without_arrays(tmp_path: Path) -> None:
    assert "holds no arrays" in early_refusal(npz(tmp_path / "a.npz"), X)


def test_npz_with_something_else_inside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.txt", "hello")
        archive.writestr("x.npy", "hello")
    assert 'key "x.txt": not an array in npy format' in early_refusal(tmp_path / "a.npz", X)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", "hello world")
    assert 'key "x": not an array in npy format' in early_refusal(tmp_path / "a.npz", X)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_npz_with_a_key_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for _ in range(2):
            archive.writestr("x.npy", b"")
    assert 'the key "x" is there twice' in early_refusal(tmp_path / "a.npz", X)


class Trap:
    """Says so when it is unpickled."""

    @override
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("unpickled",))


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_pickled_objects_are_never_loaded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.array([Trap()], dtype=object)
    save = np.savez if name == "a.npz" else lambda path, x: np.save(path, x)
    save(tmp_path / name, x=array)
    text = early_refusal(tmp_path / name, X)
    assert "holds pickled Python objects, which are never loaded" in text
    assert not (tmp_path / "unpickled").exists()


def test_too_much_data(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=values(4, 1, 3), y=values(4, 1, 3))
    assert "holds 2 arrays, at most 1" in early_refusal(path, X, limits=Limits(members=1))
    assert "would unpack to 352 bytes" in early_refusal(path, X, limits=Limits(total_bytes=100))
    path = npz(tmp_path / "b.npz", x=values(4, 1, 3))
    assert "one sample would take 12 bytes" in refusal(path, X, limits=Limits(sample_bytes=11))


def test_a_zip_bomb_is_refused_from_its_directory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (8 << 20, 1, 3)}
    )
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_BZIP2) as archive,
        archive.open("x.npy", "w") as member,
    ):
        member.write(header.getvalue())
        for _ in range(96):
            member.write(bytes(1 << 20))
    assert (tmp_path / "a.npz").stat().st_size < 4096
    assert "a ratio of at most 10000 is accepted" in early_refusal(tmp_path / "a.npz", X)
    limits = Limits(ratio=10**6)
    assert load_samples(tmp_path / "a.npz", [X], limits=limits).first()["x"].tolist() == [[0, 0, 0]]


def patched(path: Path, field: int, value: bytes) -> Path:
    """Overwrites bytes of the first entry of the directory of a zip file."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02") + field
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


def test_zip_features_that_are_not_supported(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=values(4, 1, 3))
    text = early_refusal(patched(path, 10, b"\x5d\x00"), X)
    assert 'key "x": the zip compression zstd is not supported' in text
    path = npz(tmp_path / "a.npz", x=values(4, 1, 3))
    assert 'key "x": the array is encrypted' in early_refusal(patched(path, 8, b"\x01"), X)


def test_a_wrong_checksum(tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = npz(tmp_path / "a.npz", compression, x=values(4, 1, 3))
        assert "its checksum is wrong" in refusal(patched(path, 16, b"\0\0\0\0"), X)


def test_lzma_may_not_ask_for_any_memory(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", zipfile.ZIP_LZMA, x=values(4, 1, 3))
    content = path.read_bytes()
    start = content.index(b"\x05\x00\x5d")
    path.write_bytes(content[: start + 3] + b"\xff\xff\xff\xff" + content[start + 7 :])
    assert "the array is damaged: Memory usage limit" in early_refusal(path, X)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1, 3), }", "truncated: 48 bytes"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4, -1, 3), }", "header is damaged"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 1, 3), }", "header is damaged"),
        ("{'descr': '<f4', 'fortran_order': 0, 'shape': (4, 1, 3), }", "header is damaged"),
        ("{'descr': '<f4', 'shape': (4, 1, 3), }", "header is damaged"),
        ("{'descr': 'what', 'fortran_order': False, 'shape': (4, 1, 3), }", "header is damaged"),
        ("__import__('os').mkdir('evil')", "header is damaged"),
        ("(" * 5000, "header is damaged"),
        ("[" * 50 + "]" * 50, "header is damaged"),
        ("", "header is damaged"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,), }", "not supported"),
        (f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(1,) * 65}, }}", "65 dimensions"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (10**30,), }", "header is damaged"),
        (f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30},), }}", "truncated"),
        (f"{{'descr': '|O', 'fortran_order': False, 'shape': {(4,)}, }}", "never loaded"),
    ],
)
def test_hostile_npy_headers(tmp_path: Path, header: str, problem: str) -> None:
    text = early_refusal(npy_with_header(tmp_path / "a.npy", header, bytes(10)), X)
    assert "a.npy" in text
    assert problem in text


def test_a_huge_npy_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff")
    assert "the npy header has 4294967295 bytes" in early_refusal(path, X)
    path.write_bytes(b"\x93NUMPY\x09\x00\xff\xff\xff\xff")
    assert "this version of the npy format is not supported" in early_refusal(path, X)


def test_more_bytes_than_announced(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", values(4, 1, 3))
    path.write_bytes(path.read_bytes() + b"abc")
    assert "3 bytes follow the array" in early_refusal(path, X)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_every_truncation_is_one_clear_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (npz if name == "a.npz" else lambda path, x: npy(path, x))(path, x=values(2, 1, 3))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert name in refusal(path, X)


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
def test_damaged_bytes_never_give_wrong_values(tmp_path: Path, compression: int) -> None:
    """Every change of a byte is either harmless or one clear error, with no traceback."""
    data = np.arange(12, dtype="float32").reshape(4, 1, 3)
    content = npz(tmp_path / "a.npz", compression, x=data).read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "b.npz"
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            found = stacked(load_samples(path, [X]))
        except Exception as error:  # noqa: BLE001 (the point of the test)
            assert type(error).__name__ == "SamplesError"  # noqa: PT017
            refused += 1
        else:
            assert np.array_equal(found, data)
    assert refused > 150


def test_a_file_that_changes_while_in_use(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", values(4, 1, 3))
    samples: Samples = load_samples(path, [X])
    npy(path, values(5, 1, 3))
    assert "a.npy" in refusal(samples)
    path = npz(tmp_path / "a.npz", x=values(4, 1, 3))
    samples = load_samples(path, [X])
    npz(path, x=values(5, 1, 3))
    assert "a.npz" in refusal(samples)


def test_members_packed_in_many_small_pieces(tmp_path: Path) -> None:
    """A deflate stream flushed after every few bytes unpacks to the same values."""
    data = values(50, 1, 3)
    buffer = io.BytesIO()
    np.save(buffer, data)
    raw = buffer.getvalue()
    pack = zlib.compressobj(wbits=-15)
    packed = b"".join(
        pack.compress(raw[i : i + 7]) + pack.flush(zlib.Z_SYNC_FLUSH) for i in range(0, len(raw), 7)
    )
    packed += pack.flush()
    name, crc = b"x.npy", zlib.crc32(raw)
    sizes = struct.pack("<IIIHH", crc, len(packed), len(raw), len(name), 0)
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 8, 0, 0) + sizes + name + packed
    entry = b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 0) + sizes
    entry += struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)
    (tmp_path / "a.npz").write_bytes(local + entry + end)
    assert np.array_equal(stacked(load_samples(tmp_path / "a.npz", [X])), data)
