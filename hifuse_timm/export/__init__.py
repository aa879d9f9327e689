"""Trained networks as files for other runtimes: ONNX, OpenVINO and torch.export's pt2.

Needs the extra `export`, and for int8 the extra `int8`.
"""

from .exporting import Exported, export

__all__ = ["Exported", "export"]
