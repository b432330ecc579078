"""Masked autoencoders for acoustic scenes, trained on Ray.

Nothing is imported here, so that `raymae.audio.decode` costs a CPU worker no torch and the loop costs a GPU box no Ray.
"""

__version__ = "0.1.0"
