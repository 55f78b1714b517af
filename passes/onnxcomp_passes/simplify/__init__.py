"""Lossless passes: fewer nodes, same function."""
