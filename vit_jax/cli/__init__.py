"""The commands of `python -m vit_jax`, one file each."""
