"""MLP-Mixers at 224 px: two trained on ImageNet-1k, and two fine-tuned from the published weights of ImageNet-21k."""

from vit_jax.runs.sweeps.space import Sweep, chain, product

TRAINED = product({"config": [f"configs/mixer.py:data=i1k,variant={variant}" for variant in ("B/16", "L/16")]})
TUNED = product(
    {
        "config": [
            f"configs/finetune.py:data=imagenet,size=224,model=imagenet21k/Mixer-{name}" for name in ("B_16", "L_16")
        ]
    },
    # What finetune.py measures as `test`, under the name that the table has a column for.
    [
        {
            "evals": {
                "val": {
                    "type": "classification.Classification",
                    "source": {"type": "tfds.Tfds", "name": "imagenet2012", "split": "validation"},
                    "preprocess": "resize(SIZE)",
                    "batch_size": 64,
                }
            }
        }
    ],
)


def get_sweep() -> Sweep:
    """Four runs."""
    return Sweep(config="configs/mixer.py", runs=chain(TUNED, TRAINED), metric="val/accuracy")
