"""Datasets as published, or one's own, to folders that timm's scripts and readers take."""

from .lists import Columns
from .medmnist import prepare_medmnist
from .own import prepare_images
from .published import prepare

__all__ = ["Columns", "prepare", "prepare_images", "prepare_medmnist"]
