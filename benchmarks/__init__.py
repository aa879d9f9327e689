"""Counts and measurements of HiFuse and of the networks in the paper's Table 4, run as `python -m benchmarks`."""
