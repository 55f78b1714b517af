"""The protobuf wire format, as far as it is put together here by hand."""

from __future__ import annotations


def varint(number: int) -> bytes:
    """Returns a number as protobuf writes it: seven bits to a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def tag(field: int, kind: int) -> bytes:
    """Returns what a field begins with: its number and its kind (0 a number, 2 so many bytes)."""
    return varint(field << 3 | kind)
