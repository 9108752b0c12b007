"""Transform examples between their source and the batch."""
