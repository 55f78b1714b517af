"""Sensitivity of layers as one HTML page that needs nothing else."""

from __future__ import annotations

import json
import math
from html import escape
from typing import TYPE_CHECKING

from onnxcomp.report.html import _POLICY, _STYLE
from onnxcomp.report.record import plain

if TYPE_CHECKING:
    from onnxcomp.analysis.sensitivity import LayerSensitivity, Sensitivity

_WIDTH, _HEIGHT, _EDGE = 720, 300, 46
_LEAST_SHARE = 1e-4


def to_page(found: Sensitivity, model: str, metric: str) -> str:
    """Returns a page with a plot of damage against time saved, and a row for each layer.

    Args:
        found: What to show. Names in it may come from anybody; they are escaped.
        model: The model's name.
        metric: What damage is measured in.
    """
    data = json.dumps(plain(found.to_json()), allow_nan=False).replace("<", "\\u003c")
    rows = "\n".join(_row(layer, found) for layer in found.layers)
    left = f"<p>{found.left} layers were not reached in time.</p>" if found.left else ""
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>onnxcomp sensitivity</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>onnxcomp sensitivity</h1>\n<p><code>{_text(model)}</code>: damage with everything in "
        f"int8 is {found.everything:.3g} ({_text(metric)})</p>\n{left}\n"
        f"<h2>Damage against time saved</h2>\n{_plot(found)}\n<h2>Layers</h2>\n<table>\n<thead><tr>"
        '<th>layer</th><th>operator</th><th>damage</th><th class="number">alone in int8</th>'
        '<th class="number">alone in float</th><th class="number">saves</th></tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table>\n"
        f'<script type="application/json" id="sensitivity">\n{data}\n</script>\n</body>\n</html>\n'
    )
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _row(layer: LayerSensitivity, found: Sensitivity) -> str:
    largest = max((each.damage for each in found.layers), default=0.0)
    share = layer.damage / largest if largest else 0.0
    saves = "" if layer.gain is None else f"{layer.gain * 1e6:+.0f} &micro;s"
    return (
        f'<tr><td class="names">{_text(layer.name)}</td><td>{_text(layer.op_type)}</td>'
        f'<td><span class="bar" style="width: {share * 8:.2f}rem"></span></td>'
        f'<td class="number">{layer.alone:.3g}</td><td class="number">{layer.back:.3g}</td>'
        f'<td class="number">{saves}</td></tr>'
    )


def _plot(found: Sensitivity) -> str:
    """Points with the time saved to the right and the damage, in powers of ten, upwards."""
    layers = [layer for layer in found.layers if layer.gain is not None]
    largest = max((layer.damage for layer in layers), default=0.0)
    if not layers or not largest:
        return "<p>no layer does any damage</p>"
    gains = [layer.gain or 0.0 for layer in layers]
    low, high = min(0.0, *gains), max(0.0, *gains)
    reach = (high - low) or 1.0
    points = []
    for layer, gain in zip(layers, gains, strict=True):
        share = max(layer.damage / largest, _LEAST_SHARE)
        x = _EDGE + (gain - low) / reach * (_WIDTH - 2 * _EDGE)
        y = _EDGE - math.log10(share) / -math.log10(_LEAST_SHARE) * (_HEIGHT - 2 * _EDGE)
        points.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--mark)" fill-opacity=".6">'
            f"<title>{_text(layer.name)}: {layer.damage:.3g}, {gain * 1e6:+.0f} us</title></circle>"
        )
    zero = _EDGE + -low / reach * (_WIDTH - 2 * _EDGE)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" role="img">'
        f'<line x1="{zero:.1f}" y1="{_EDGE / 2}" x2="{zero:.1f}" y2="{_HEIGHT - _EDGE / 2}" '
        f'stroke="var(--line)"/><text x="{_WIDTH - _EDGE}" y="{_HEIGHT - 8}" text-anchor="end" '
        f'font-size="12" fill="currentColor">saves up to {high * 1e6:.0f} &micro;s</text>'
        f'<text x="8" y="16" font-size="12" fill="currentColor">damage, up to {largest:.3g}</text>'
        f"{''.join(points)}</svg>"
    )


def _text(value: str) -> str:
    return escape("".join(letter if letter.isprintable() else "?" for letter in value))
