"""Configs: data only, one file for each recipe."""
