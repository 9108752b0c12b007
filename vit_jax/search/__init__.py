"""Similar pictures: an index of a folder's features, queries by a picture or a part of one, and near-duplicates."""
