"""Where a network looks: Grad-CAM heat maps of any timm model, and figures like the paper's Figure 4 (Section 4.5).

Everything here needs the extra `explain`.
"""

from ..images import open_image as load_image
from .cam import find_branches, find_layer, grad_cam
from .figure import explain
from .overlay import draw_heat_map, find_last_layer, heat_map

__all__ = [
    "draw_heat_map",
    "explain",
    "find_branches",
    "find_last_layer",
    "find_layer",
    "grad_cam",
    "heat_map",
    "load_image",
]
