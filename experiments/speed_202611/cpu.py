"""Our step beside big_vision's on the CPU: python experiments/speed_202611/cpu.py CHECKOUT [flags of `vit bench step`].

CHECKOUT is a clone of google-research/big_vision. Both take the steps of their vit_s16_i1k on random images, in turns.
"""

import importlib.machinery
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = "BIG_VISION"  # the variable of the environment that says where it is
# What big_vision imports and its train step never calls.
UNUSED = (
    *("tensorflow", "tensorflow.io", "tensorflow.io.gfile", "tensorflow_datasets", "tensorflow_text"),
    *("clu", "clu.metric_writers", "clu.periodic_actions", "clu.parameter_overview", "clu.preprocess_spec"),
    *("pandas", "tqdm", "flaxformer", "flaxformer.architectures", "flaxformer.architectures.bert"),
    *("flaxformer.architectures.bert.bert", "flaxformer.architectures.bert.configs"),
)


def make(
    *,
    training: bool,
    batch_size: int,
    image_shape: tuple[int, int, int],
    num_classes: int,
    model: dict[str, Any],
    dtype: str,
    **_: Any,
) -> Callable[[int], None]:
    """big_vision as a peer (see vit_jax/perf/peer.py): the lines of update_fn, which stands inside its main.

    Its model is that of its config in the sizes of ours. Images are floats on the device, normalised already, and labels
    one-hot, as its input pipeline gives them.
    """
    if not training:
        raise ValueError("only its train step is measured")
    import_stand_ins()
    sys.path.insert(0, os.environ[CHECKOUT])
    import big_vision.optax as bv_optax
    import big_vision.utils as u
    import flax
    import jax
    import numpy as np
    import optax
    from big_vision.configs import vit_s16_i1k
    from big_vision.models import vit

    config = vit_s16_i1k.get_config()
    size = {key: model[key] for key in ("width", "depth", "mlp_dim", "num_heads")}
    patch = {"patch_size": (model["patch_size"],) * 2, "dtype_mm": dtype, "variant": None}
    network = vit.Model(num_classes=num_classes, **{**config.model, **size, **patch})
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.standard_normal((batch_size, *image_shape), np.float32))
    labels = jax.nn.one_hot(rng.integers(0, num_classes, batch_size), num_classes)
    params = flax.core.unfreeze(jax.jit(network.init)(jax.random.PRNGKey(0), images[:1])["params"])
    total = {"total_steps": 100_000, "batch_size": batch_size, "data_size": 1_281_167}
    tx, _ = bv_optax.make(config, params, sched_kw=total)
    key = jax.random.PRNGKey(42)

    def update(params, opt, images, labels):
        rng = jax.random.fold_in(key, bv_optax.get_count(opt, jittable=True))
        rng, (images, labels), _ = u.get_mixup(rng, config.mixup.p)(images, labels)
        rng, rng_model = jax.random.split(rng, 2)

        def loss_fn(params):
            logits, _ = network.apply({"params": params}, images, train=True, rngs={"dropout": rng_model})
            return getattr(u, config.loss)(logits=logits, labels=labels)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, loss

    step, state = jax.jit(update, donate_argnums=(0, 1)), [params, tx.init(params)]

    def run(steps: int) -> None:
        for _ in range(steps):
            *state[:], loss = step(*state, images, labels)
            jax.block_until_ready(loss)

    run.about = f"big_vision, {dtype}"  # type: ignore[attr-defined]
    return run


def import_stand_ins() -> None:
    """Puts empty modules in place of those that are not needed."""
    import flax.training.checkpoints  # noqa: F401, which looks for TensorFlow

    for name in UNUSED:
        module = MagicMock()
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    sys.modules["tensorflow"].Tensor = sys.modules["tensorflow"].Variable = ()


def main(checkout: str, *flags: str) -> int:
    """Runs the comparison."""
    command = [sys.executable, "-m", "vit_jax", "bench", "step", f"--config={ROOT / 'configs' / 'vit_s16_i1k.py'}"]
    command += ["--num_classes=1000", "--peer=experiments.speed_202611.cpu:make", *flags]
    environment = os.environ | {CHECKOUT: str(Path(checkout).expanduser().resolve()), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) > 1 else __doc__)
