"""Decides how each weight is stored: bits, blocks, and whether it stays packed when the model runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from onnxcomp.ir.ops import is_op
from onnxcomp.quant.blocks import BlockScheme
from onnxcomp_passes.quantize.weight_sites import chosen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp_passes.quantize.weight_sites import Site

Form = Literal["packed", "kernel", "unpacked"]
Format = Literal["auto", "qdq", "unpacked", "matmulnbits"]

DEFAULT_BLOCK = {2: 32, 3: 32, 4: 32, 8: 128}
# Block sizes that onnxruntime's kernel has.
KERNEL_BLOCKS = (16, 32, 64, 128, 256)
# Rows multiplied at a time from which on the kernel is slower than float, measured on x64 (AVX512-VNNI);
# with 8 bits, or in blocks of 128 and more, it never was. Without entry: never slower.
_SLOWER_FROM = {2: 4, 4: 12}
_NEVER_SLOWER_BLOCK = 128
# What a recurrent network gets wrong it gets wrong in every step: measured on a voice encoder, blocks of 32
# brought 8 bits from 12 to 20 dB.
_RECURRENT_BLOCK = 32
# Opsets in which standard operators can say it.
_PACKED = {2: 25, 4: 21, 8: 21}
_UNPACKED = {2: 25, 3: 18, 4: 21, 8: 6}
_TABLE = {4: 18, 8: 6}
PER_COLUMN_OPSET = 13


@dataclass(frozen=True, eq=False)
class Plan:
    """How one weight is stored.

    Attributes:
        site: The weight.
        scheme: Its numbers.
        form: How readers that multiply with it get it; the others compute it when the model is loaded, or
            pick its rows.
        rows: How many rows are multiplied with it at a time, 0 when that is not known.
        table: Its numbers for readers that pick rows of it.
    """

    site: Site
    scheme: BlockScheme
    form: Form
    rows: int = 0
    table: BlockScheme | None = None

    @property
    def opset(self) -> int:
        """The first opset that can say it."""
        bits, needed = self.scheme.bits, 0
        if self.site.is_matrix or self.site.is_tied:
            if self.form == "packed":
                whole = bits == 8 and not self.scheme.block
                needed = PER_COLUMN_OPSET if whole else _PACKED[bits]
            elif self.form == "unpacked":
                needed = _UNPACKED[bits]
        elif not self.site.is_table:
            needed = _UNPACKED[bits]
        return max(needed, 0 if self.table is None else _TABLE[self.table.bits])

    @property
    def nbytes(self) -> int:
        """Bytes of numbers, scales and zero points."""
        site, scale = self.site, self.site.tensor.dtype.itemsize
        depth, total = site.depth, 0
        columns = site.tensor.size // max(depth, 1)
        if not self.site.is_table:
            copies = 1 if self.form == "unpacked" else sum(u.kind != "table" for u in site.uses)
            total += copies * self.scheme.nbytes(depth, columns, int(scale))
        if self.table is not None:
            total += self.table.nbytes(site.shape[1], site.shape[0], int(scale))
        return total

    def within(self, opset: int) -> Plan:
        """Returns what can be said in an opset: 8 bits instead of fewer."""
        if self.opset <= opset:
            return self
        table = None if self.table is None else BlockScheme("int8", 0)
        form: Form = "packed" if self.form == "packed" and opset >= PER_COLUMN_OPSET else "unpacked"
        if self.form == "kernel":
            form = "kernel"
        scheme = self.scheme if self.form == "kernel" else BlockScheme("int8", 0)
        return replace(self, scheme=_stacked(self.site, scheme), form=form, table=table)


@dataclass(frozen=True)
class Wishes:
    """What the user asked for.

    Attributes:
        bits: Bits of matrices.
        stored_bits: Bits of weights that no kernel keeps packed.
        table_bits: Bits of tables.
        block: Rows that share a scale; None for what fits the bits, 0 for all rows.
        symmetric: Whether there are no zero points.
        format: How matrices are written.
        bits_of: Bits by pattern of names.
    """

    bits: int
    stored_bits: int
    table_bits: int
    block: int | None
    symmetric: bool
    format: Format
    bits_of: Mapping[str, int]

    def plan(self, site: Site, rows: int, *, ranked: bool) -> Plan | None:
        """Returns how to store a weight, None to leave it in float.

        Args:
            site: The weight.
            rows: How many rows are multiplied with it at a time, 0 when that is not known.
            ranked: Whether the rank of what picks its rows is known.
        """
        bits = self._bits(site)
        if bits == 0:
            return None
        table = self._table(site, bits, ranked=ranked) if "table" in site.kinds else None
        if site.is_table and table is not None:
            return Plan(site, table, "unpacked", rows, table)
        if site.is_matrix or (site.is_tied and table is not None):
            form = self._form(bits, rows)
            if form == "packed" and is_miscomputed(site, bits):
                form = "unpacked"
            if site.is_tied and form == "unpacked":
                return Plan(site, self._unpacked(site, bits), form, rows)
            if form != "unpacked":
                return Plan(site, self._packed(bits, form), form, rows, table)
        return Plan(site, self._unpacked(site, bits), "unpacked", rows)

    def _bits(self, site: Site) -> int:
        for pattern, bits in self.bits_of.items():
            if chosen(site, (pattern,)):
                return bits
        if site.is_table:
            return self.table_bits
        return self.bits if site.is_matrix or site.is_tied else self.stored_bits

    def _block(self, bits: int) -> int:
        return DEFAULT_BLOCK[bits] if self.block is None else self.block

    def _form(self, bits: int, rows: int) -> Form:
        if bits == 3 or self.format == "unpacked":
            return "unpacked"
        if self.format == "matmulnbits":
            return "kernel"
        block = self._block(bits)
        if block and block not in KERNEL_BLOCKS:
            return "unpacked"
        limit = _SLOWER_FROM.get(bits, 0)
        is_slower = 0 < limit <= rows and not (bits > 2 and block >= _NEVER_SLOWER_BLOCK)
        return "unpacked" if self.format == "auto" and is_slower else "packed"

    def _packed(self, bits: int, form: Form) -> BlockScheme:
        block = self._block(bits)
        if form == "kernel" and block not in KERNEL_BLOCKS:
            block = DEFAULT_BLOCK[bits]
        return self._scheme(bits, block)

    def _unpacked(self, site: Site, bits: int) -> BlockScheme:
        if bits == 8 and self.block is None and not site.is_matrix:
            block = divisor(site.depth, _RECURRENT_BLOCK) if _is_recurrent(site) else 0
            return _stacked(site, BlockScheme("int8", block))
        depth = site.shape[-2] if site.orientation == "columns" else site.depth
        return _stacked(site, self._scheme(bits, divisor(depth, self._block(bits))))

    def _scheme(self, bits: int, block: int) -> BlockScheme:
        if bits == 3:
            return BlockScheme("uint3", block, self.symmetric)
        if self.symmetric or bits == 8:
            return BlockScheme(f"int{bits}", block)  # type: ignore[arg-type]
        return BlockScheme(f"uint{bits}", block, symmetric=False)  # type: ignore[arg-type]

    def _table(self, site: Site, bits: int, *, ranked: bool) -> BlockScheme | None:
        if not site.is_table and not site.is_tied:
            return None
        if self._block_bits(site, bits) != 4 or site.shape[1] % 2:
            return BlockScheme("int8", 0)
        block = divisor(site.shape[1], self._block(4)) if ranked else 0
        return BlockScheme("uint4", block if block % 2 == 0 else 0)

    def _block_bits(self, site: Site, bits: int) -> int:
        return bits if site.is_table else self.table_bits


def is_miscomputed(site: Site, bits: int) -> bool:
    """Whether onnxruntime (1.31) gets a packed matrix wrong, without a word.

    It turns a matrix of 2 bits around when it makes MatMulNBits of it, and does so right only where the
    columns fill bytes. The operator itself is right.
    """
    return bits == 2 and site.tensor.size // max(site.depth, 1) % 4 != 0


def divisor(depth: int, block: int) -> int:
    """Returns the largest size of equal blocks up to `block`, 0 (all rows) when there is none near to it."""
    if not block or block >= depth:
        return 0
    for size in range(block, block // 4, -1):
        if depth % size == 0:
            return size
    return 0


def _is_recurrent(site: Site) -> bool:
    return any(is_op(use.node, "LSTM", "GRU", "RNN") for use in site.uses)


def _stacked(site: Site, scheme: BlockScheme) -> BlockScheme:
    """A stack of matrices has blocks of its own for each."""
    if scheme.block == 0 and site.orientation == "columns" and len(site.shape) > 2:
        return replace(scheme, block=site.shape[-2])
    return scheme
