"""What training costs: benchmarks, plans for machines that are not here, and compiled programs read."""
