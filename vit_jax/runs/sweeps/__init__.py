"""Run sweeps: many runs from one file, on this machine or on a Ray cluster."""
