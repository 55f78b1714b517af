"""Where models run: one table per execution provider, and the loader."""

from onnxcomp.targets.load import load_target, target_names
from onnxcomp.targets.table import Family, Fixed, Refusal, Target, Weight

__all__ = ["Family", "Fixed", "Refusal", "Target", "Weight", "load_target", "target_names"]
