"""Operators of onnxruntime's own domain that its optimizer and its exporters write into files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.channels.elementwise import like
from onnxcomp.analysis.channels.site import UNKNOWN_RANK

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Site


def biased(site: Site) -> None:
    """BiasGelu, FastGelu, BiasAdd: a bias is added first."""
    source, bias = site.axes(site.input(0)), site.axes(site.input(1))
    like(site, source, site.node.outputs[0])
    if source is not None and bias is not None:
        site.spread(bias, source)


def skip_layer_normalization(site: Site) -> None:
    """SkipLayerNormalization: a sum, normalized over the last axis; the sum may be a result as well."""
    source = site.axes(site.input(0))
    if source is None or any(output.name for output in site.node.outputs[1:3]):
        site.freeze("it also returns means, or " + UNKNOWN_RANK)
        return
    like(site, source, site.node.outputs[0])
    for output in site.node.outputs[3:]:
        like(site, source, output)
    for index in range(1, len(site.node.inputs)):
        site.spread(site.axes(site.input(index)) or [], source)
    site.mix(source[-1])


def embed_layer_normalization(site: Site) -> None:
    """EmbedLayerNormalization: rows of tables are picked and summed up, then normalized."""
    out = site.axes(site.node.outputs[0])
    if out is None:
        site.freeze(UNKNOWN_RANK)
        return
    for output in site.node.outputs[2:]:
        like(site, out, output)
    for axis in out[:-1]:
        site.keep(axis, "it is batch or sequence")
    for index in range(2, 5):
        table = site.axes(site.input(index))
        if table:
            site.keep(table[0], "its positions are picked by number")
            site.tie(table[-1], out[-1])
            site.makes(site.input(index), 1)
    for index in (5, 6):
        site.spread(site.axes(site.input(index)) or [], out)
    site.mix(out[-1])
