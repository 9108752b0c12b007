"""Inspect a trained model: what it attends to, what it is fed, and how faithful an explanation is."""
