"""Other libraries' models: one file for each format."""
