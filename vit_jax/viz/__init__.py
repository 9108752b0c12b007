"""Draw figures of runs and models."""
