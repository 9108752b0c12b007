"""Parameters of one model put into another."""
