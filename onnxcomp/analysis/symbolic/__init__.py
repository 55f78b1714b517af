"""Dimensions that are not numbers: their algebra, and how they follow through a model."""
