"""Searches over settings on Ray Tune: what is tried, one trial, all of them, and what comes out."""
