"""Turn a data set into batches."""
