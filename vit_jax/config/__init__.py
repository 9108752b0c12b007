"""Configs: their keys, reading them, and building what they name."""
