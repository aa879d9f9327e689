"""What the templates draw as SVG: lines and bands in the units of a chart."""

import numpy as np

from ..curves import Curve

__all__ = ["AREA", "draw_band", "draw_line", "draw_steps", "place"]

# Left, top, width and height of the part of a chart that its axes enclose, in the units of its SVG.
AREA = (46, 10, 244, 244)


def place(x, y) -> list[tuple[float, float]]:
    """Points of a chart whose axes go from 0 to 1, in its units, each but once where several follow that look the same.

    One decimal is a fraction of a pixel, and keeps the page small.
    """
    left, top, width, height = AREA
    points = np.stack([left + width * np.asarray(x), top + height * (1 - np.asarray(y))], axis=1).round(1)
    kept = np.append(True, (points[1:] != points[:-1]).any(1))
    return [(float(x), float(y)) for x, y in points[kept]]


def draw_line(x, y) -> str:
    """A path of SVG that is straight between its points."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in place(x, y))


def draw_steps(x, y) -> str:
    """A path of SVG on which each point holds from the one before it."""
    return draw_line(np.repeat(x, 2)[1:-1], np.repeat(y[1:], 2))


def draw_band(curve: Curve) -> str:
    """A closed path of SVG around the band of a curve; nothing where no resample counts."""
    if np.isnan(curve.lower).any():
        return ""
    x = np.concatenate([curve.grid, curve.grid[::-1]])
    return draw_line(x, np.concatenate([curve.lower, curve.upper[::-1]])) + "Z"
