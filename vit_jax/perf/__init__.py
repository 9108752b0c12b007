"""Measure the cost of training: benchmarks, plans for absent machines, and analysis of compiled programs."""
