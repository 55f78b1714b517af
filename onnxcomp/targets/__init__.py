"""Where models run: one table per execution provider, and the loader."""

from onnxcomp.targets.table import Family, Fixed, Target, Weight, load_target

__all__ = ["Family", "Fixed", "Target", "Weight", "load_target"]
