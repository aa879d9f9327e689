"""Calibration on validation images: a temperature, thresholds, and a bound for deciding."""

from .fitting import calibrate

__all__ = ["calibrate"]
