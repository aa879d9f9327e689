"""Datasets as published, or one's own, to folders that timm's scripts and readers take."""

from .medmnist import prepare_medmnist
from .own import Columns, prepare_images
from .published import prepare

__all__ = ["Columns", "prepare", "prepare_images", "prepare_medmnist"]
