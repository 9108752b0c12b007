"""Models as programs that run without vit_jax: StableHLO by jax.export, and ONNX."""
