"""What happens to an example between its source and the batch."""
