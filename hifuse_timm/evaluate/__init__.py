"""Evaluation of any timm model on image folders: the metrics of the paper's Section 4.2, beside the paper's own."""

from ..files import check_writable
from ..files import write_json as save_json
from ..loading import PRECISIONS
from .average import average
from .evaluation import Evaluation, evaluate
from .selection import pick_best
from .table import format_result

__all__ = [
    "PRECISIONS",
    "Evaluation",
    "average",
    "check_writable",
    "evaluate",
    "format_result",
    "pick_best",
    "save_json",
]
