"""Tests of the folders of experiments/."""
