"""Where the tests find the repository and the data beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
SHARED = ROOT.parent / "shared"
"""Recordings and metadata beside the repository; the tests that use them skip where there are none."""
