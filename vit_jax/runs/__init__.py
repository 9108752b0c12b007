"""Manage many runs: sweeps, launches on rented machines, and reports."""
