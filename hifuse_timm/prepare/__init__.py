"""The paper's datasets, from what their providers publish to folders that timm's scripts and readers take."""

from .preparation import prepare

__all__ = ["prepare"]
