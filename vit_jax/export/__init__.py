"""Export models as programs that run without vit_jax: StableHLO through jax.export, and ONNX."""
