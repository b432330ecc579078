"""Hyper-parameter sweeps on Ray Tune: spaces, points, trials and results."""
