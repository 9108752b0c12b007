"""Training configs: data only, one file per recipe."""
