"""Passes that change the form of a model: its opset, its interface, its functions."""
