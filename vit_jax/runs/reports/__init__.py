"""Report on runs: compare them with each other, over seeds, and with a paper."""
