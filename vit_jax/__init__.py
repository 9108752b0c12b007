"""Vision Transformers in JAX: pretrain, fine-tune, evaluate, understand and scale."""

__version__ = "0.2.0"
