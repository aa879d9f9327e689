"""A table of probabilities for images of one's own, by any timm model."""

from .prediction import Summary, predict

__all__ = ["Summary", "predict"]
