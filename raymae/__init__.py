"""Masked autoencoders for acoustic scenes, trained on Ray.

Nothing is imported here, so that a CPU worker can import `raymae.audio.decode` without torch, and a GPU machine the
training loop without Ray.
"""

__version__ = "0.1.0"
