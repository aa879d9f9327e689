"""Comparison of networks on the same images, from their tables of predictions."""

from .comparison import COMPARED, compare, compare_metrics
from .significance import DeLong, delong_test, holm, mcnemar_exact
from .table import format_comparison

__all__ = [
    "COMPARED",
    "DeLong",
    "compare",
    "compare_metrics",
    "delong_test",
    "format_comparison",
    "holm",
    "mcnemar_exact",
]
