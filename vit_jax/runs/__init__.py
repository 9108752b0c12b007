"""Many runs: sweeps, launches on rented machines, and reports."""
