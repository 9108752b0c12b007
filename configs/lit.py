"""Train LiT (arXiv:2111.07991): a text tower tuned to the locked tower of a trained image model.

    vit features --model=MODEL --data=pairs:captions.csv --out=features.npy
    python -m vit_jax.main --config=configs/lit.py:data=pairs:captions.csv,model=MODEL,features=features.npy --workdir=DIR

`model` is any reference. With `features` the locked tower does not run in training, and images are not even read;
without, it runs on augmented images. `width` is the width of the model's features. The paper's L/16 from ImageNet-21k
with a text tower of size L reaches 75.7 % zero-shot on ImageNet with public data (table 1); its small recipe is a
learning rate of 1e-3, weight decay 1e-4 and no change of the image tower (section 4). There is no published number for
the mini's setting.
"""

import ml_collections

from configs import arguments, towers


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=DATA,model=REF[,features=FILE,width=768,tokenizer=FILE,size=mini|B,tokens=N]"."""
    given = arguments.parse(
        arg,
        data="pairs:pairs.jsonl",
        model="B/16",
        features="",
        width=768,
        tokenizer="tokenizer.json",
        size="mini",
        tokens=32,
    )
    config = towers.get_config(given, {"type": "lit.Lit"}, {"pool": "last", "out_dim": given["width"]})
    config.model = {}
    config.image_size = None
    config.init = {"ref": given["model"], "head": "reset"}
    config.freeze = "^backbone/"
    if given["features"]:
        config.data.source.features = given["features"]
        config.data.preprocess = f"drop('image')|tokenize({given['tokenizer']!r}, {given['tokens']})"
        config.data.eval_preprocess = "resize(SIZE)"
        config.task.image_shape = (224, 224, 3)
    return config
