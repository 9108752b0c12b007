"""Load the parameters of one model into another."""
