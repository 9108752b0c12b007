"""Train SigLIP (arXiv:2303.15343): image and text towers, by a sigmoid loss over all pairs of a batch.

    vit tokenizer --data=pairs:captions.csv --size=2000 --out=tokenizer.json
    python -m vit_jax.main --config=configs/siglip.py:data=pairs:captions.csv --workdir=DIR

`data` is pairs:PATH, a table or a folder with captions, or tfds:NAME; `tokenizer` a file from `vit tokenizer`; `size`
"mini", for a laptop, or, for example, B/16. The paper's B/16 at 224 px with 64 tokens, batches of 32,768, b2=0.95 and a
learning rate of 1e-3 reaches 73.4 % zero-shot on ImageNet after 9 billion examples from the private WebLI (section 4.1
and table 1; our loss is its equation 1, from t' = ln 10 and b = -10). There is no published number for the mini's
setting.
"""

import ml_collections

from configs import arguments, towers


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=DATA[,tokenizer=FILE,size=mini|B/16,tokens=N]"."""
    given = arguments.parse(arg, data="pairs:pairs.jsonl", tokenizer="tokenizer.json", size="mini", tokens=32)
    mini = given["size"] == "mini"
    text = {"pool": "last", "out_dim": towers.MINI["width"] if mini else None}
    config = towers.get_config(given, {"type": "siglip.Siglip"}, text)
    config.model.pool = "map"
    return config
