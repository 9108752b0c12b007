"""Start vit_jax.main without the pictures of its report, which take longer to draw than a tiny run takes to train."""

from vit_jax import interrupts, main
from vit_jax.train import fit
from vit_jax.xla_env import restart_tuned

if __name__ == "__main__":
    restart_tuned()
    fit.write_report = lambda *_: None
    interrupts.leave(main.main())
