"""Quantization: which tensor gets which numbers. Passes do the insertion."""
