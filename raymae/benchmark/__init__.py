"""Benchmarks of raymae against common alternatives: both sides in one run, outputs compared first, ratios printed."""
