"""Figures of runs and models."""
