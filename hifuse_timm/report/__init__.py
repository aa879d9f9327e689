"""A page of what evaluations found: one HTML file that needs nothing from a network.

Everything here needs the extra `medical`.
"""

from .gallery import Example, add_pictures, find_mistakes, find_uncertain
from .page import render_page, write_report
from .reading import Run, read_runs

__all__ = [
    "Example",
    "Run",
    "add_pictures",
    "find_mistakes",
    "find_uncertain",
    "read_runs",
    "render_page",
    "write_report",
]
