"""Checkpoints and workdirs on disk."""
