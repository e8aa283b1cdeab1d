"""Export a Depth-Structured Music Recurrence transformer to ONNX, and run it without torch.

On a device: `from dsmr_export.runtime import Bundle, Stream`. On a workstation: the command `dsmr-export`.
"""

__version__ = "0.1.0"
