"""npz files read member by member in bounded memory, whatever their compression.

`zipfile` reads the directory of the archive only. The members are unpacked here, because `zipfile`
lets bzip2 and LZMA hand out any amount of data for a few bytes, and lets LZMA claim a dictionary of
any size.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.samples.limits import DEFAULT_LIMITS, Limits, file_place, open_regular

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 64 << 10
_SMALL = 16 << 20  # below this size a high ratio is harmless (masks, zeros)
_SUPPORTED = {
    zipfile.ZIP_STORED: "stored",
    zipfile.ZIP_DEFLATED: "deflate",
    zipfile.ZIP_BZIP2: "bzip2",
    zipfile.ZIP_LZMA: "LZMA",
}
_OTHERS = {1: "shrink", 6: "implode", 9: "deflate64", 93: "zstd", 95: "xz", 98: "PPMd"}
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Member:
    """One array of an npz file: where its bytes are and how they are packed."""

    key: str
    method: int
    offset: int
    packed: int
    size: int
    crc: int


def read_members(path: Path, limits: Limits = DEFAULT_LIMITS) -> dict[str, Member]:
    """Reads the directory of an npz file and refuses what is not safe or not readable."""
    place = file_place(path)
    with open_regular(path) as file:
        if not file.read(1):
            raise SamplesError(f"{place} is empty")
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            OverflowError,
            EOFError,
            struct.error,
        ):
            raise SamplesError(f"{place} is not an npz file, or it is truncated") from None
        except OSError as error:
            raise SamplesError(
                f"{place} is not an npz file, or it is damaged: {error.strerror}"
            ) from None
    _check_totals(infos, place, limits)
    members: dict[str, Member] = {}
    for info in infos:
        member = _member(info, f"{place}, key {quoted(info.filename.removesuffix('.npy'))}", limits)
        if member.key in members:
            raise SamplesError(f"{place}: the key {quoted(member.key)} is there twice")
        members[member.key] = member
    return members


def _check_totals(infos: list[zipfile.ZipInfo], place: str, limits: Limits) -> None:
    if not infos:
        raise SamplesError(f"{place} holds no arrays")
    if len(infos) > limits.members:
        raise SamplesError(
            f"{place} holds {len(infos)} arrays, at most {limits.members} are accepted"
        )
    total = sum(info.file_size for info in infos)
    if total > limits.total_bytes:
        raise SamplesError(
            f"{place} would unpack to {total} bytes, at most {limits.total_bytes} are accepted"
        )


def _member(info: zipfile.ZipInfo, place: str, limits: Limits) -> Member:
    if not info.filename.endswith(".npy"):
        raise SamplesError(f"{place}: not an array in npy format")
    if info.flag_bits & _ENCRYPTED:
        raise SamplesError(f"{place}: the array is encrypted")
    if info.compress_type not in _SUPPORTED:
        name = _OTHERS.get(info.compress_type, f"method {info.compress_type}")
        hint = "write the file with numpy.savez or numpy.savez_compressed"
        raise SamplesError(f"{place}: the zip compression {name} is not supported", hint=hint)
    if info.file_size > _SMALL and info.file_size > limits.ratio * max(info.compress_size, 1):
        raise SamplesError(
            f"{place}: {info.compress_size} bytes would unpack to {info.file_size}, "
            f"a ratio of at most {limits.ratio} is accepted"
        )
    return Member(
        key=info.filename.removesuffix(".npy"),
        method=info.compress_type,
        offset=info.header_offset,
        packed=info.compress_size,
        size=info.file_size,
        crc=info.CRC,
    )


class MemberStream:
    """The unpacked bytes of one member. Several streams may share one open file."""

    def __init__(
        self, file: BinaryIO, member: Member, place: str, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._file = file
        self._member = member
        self._place = place
        self._position = _data_offset(file, member, place)
        self._packed_left = member.packed
        self._done = 0
        self._crc: int | None = 0
        self._decoder = self._new_decoder(limits)

    def readinto(self, target: memoryview) -> None:
        """Fills the target; checks the checksum with the last byte."""
        filled = 0
        while filled < len(target):
            piece = self._next(min(len(target) - filled, _CHUNK))
            target[filled : filled + len(piece)] = piece
            filled += len(piece)
        self._done += filled
        if self._crc is not None:
            self._crc = zlib.crc32(target, self._crc)
            if self._done == self._member.size and self._crc != self._member.crc:
                raise self._damaged("its checksum is wrong")

    def skip(self, count: int) -> None:
        """Goes on without handing out the bytes; without reading them where that is possible."""
        if self._decoder is None and count:
            self._position += count
            self._packed_left -= count
            self._done += count
            self._crc = None
            return
        while count > 0:
            piece = bytearray(min(count, _CHUNK))
            self.readinto(memoryview(piece))
            count -= len(piece)

    def _next(self, limit: int) -> bytes:
        if self._decoder is None:
            piece = self._raw(limit)
            if not piece:
                raise self._damaged("the file is truncated")
            return piece
        while True:
            raw = self._raw(_CHUNK) if self._decoder.needs_input else b""
            try:
                piece = self._decoder.decompress(raw, limit)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise self._damaged(str(error)) from None
            if piece:
                return piece
            if self._decoder.eof or (not raw and self._decoder.needs_input):
                raise self._damaged("the packed data end too early")

    def _raw(self, limit: int) -> bytes:
        try:
            self._file.seek(self._position)
            raw = self._file.read(min(limit, max(self._packed_left, 0)))
        except OSError as error:
            raise SamplesError(f"cannot read {self._place}: {error.strerror}") from None
        self._position += len(raw)
        self._packed_left -= len(raw)
        return raw

    def _new_decoder(self, limits: Limits) -> _Decoder | None:
        if self._member.method == zipfile.ZIP_STORED:
            return None
        if self._member.method == zipfile.ZIP_DEFLATED:
            return _Inflate()
        if self._member.method == zipfile.ZIP_BZIP2:
            return bz2.BZ2Decompressor()
        # A zip member holds version, size and properties, and then the same data as an .lzma file
        # after its header. "Size unknown" suits streams with and without an end marker.
        head = self._raw(9)
        if len(head) != 9 or head[2:4] != b"\x05\x00":
            raise self._damaged("the LZMA header is wrong")
        decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=limits.decoder_bytes)
        try:
            decoder.decompress(head[4:] + b"\xff" * 8)
        except lzma.LZMAError as error:
            raise self._damaged(str(error)) from None
        return decoder

    def _damaged(self, why: str) -> SamplesError:
        return SamplesError(f"{self._place}: the array is damaged: {why}")


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Inflate:
    """Raw deflate data with the interface of the other decompressors."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)


def _data_offset(file: BinaryIO, member: Member, place: str) -> int:
    # The local header repeats the name and has extra fields of its own length.
    try:
        file.seek(member.offset)
        local = file.read(30)
    except (OSError, ValueError) as error:
        raise SamplesError(f"cannot read {place}: {error}") from None
    if len(local) != 30 or local[:4] != b"PK\x03\x04":
        raise SamplesError(f"{place}: the file is truncated or damaged")
    name_length, extra_length = struct.unpack("<HH", local[26:30])
    return member.offset + 30 + int(name_length) + int(extra_length)
