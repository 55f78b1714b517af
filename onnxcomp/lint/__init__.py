"""Finds what is wrong or slow in a quantized model, from whatever tool it comes."""

from __future__ import annotations

from onnxcomp.lint.report import Found, LintReport, codes, lint

__all__ = ["Found", "LintReport", "codes", "lint"]
