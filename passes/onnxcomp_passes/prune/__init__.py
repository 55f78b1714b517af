"""Passes that remove channels, heads and layers."""
