"""Search similar pictures: an index of a folder's features, queries by pictures or their parts, near-duplicates."""
