"""Models that others published: found, downloaded, read as ours, and written in their formats."""
