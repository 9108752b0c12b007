"""Peers of `vit bench` that tests time; importing them takes no time."""

import sys
import time


def sleeper(*, batch_size, **request):
    """A peer that sleeps."""
    return lambda steps: time.sleep(1e-3 * steps)


def failing(**request):
    raise ValueError("no luck today")


def exits(**request):
    sys.exit("gone")
