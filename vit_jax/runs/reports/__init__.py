"""Reports: compare runs with each other, over seeds, and with a paper."""
