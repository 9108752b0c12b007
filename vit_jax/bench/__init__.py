"""Measurements of speed: each side is timed in turns with the others, in one run."""
