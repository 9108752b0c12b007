"""Configs: their keys, and code that reads them and builds the parts that they name."""
