"""What a command did, as a record that can be printed, stored and used to repeat it."""

from onnxcomp.report.environment import Environment
from onnxcomp.report.record import Contribution, Gate, ModelRow, Report, Spread, Step

__all__ = ["Contribution", "Environment", "Gate", "ModelRow", "Report", "Spread", "Step"]
