"""Train CapPa (arXiv:2306.07915): an image encoder whose decoder writes the caption, token by token and all at once.

    vit tokenizer --data=pairs:captions.csv --size=2000 --out=tokenizer.json
    python -m vit_jax.main --config=configs/cappa.py:data=pairs:captions.csv --workdir=DIR

Arguments as for configs/siglip.py. The paper's B/16 at 224 px (batches of 8,192, 64 tokens, six decoder blocks without
biases, 75 % of the examples predicted all at once, learning rate 1e-3 and weight decay 1e-4 with Adafactor; Adam here)
was trained on 9 billion private pairs. There is no published number for the mini's setting.
"""

import ml_collections

from configs import arguments, towers


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=DATA[,tokenizer=FILE,size=mini|B/16,tokens=N]"."""
    given = arguments.parse(arg, data="pairs:pairs.jsonl", tokenizer="tokenizer.json", size="mini", tokens=32)
    config = towers.get_config(given, {"type": "caption.Caption"}, {})
    decoder = {"decoder_width": 192, "decoder_depth": 3, "decoder_mlp_dim": 768, "decoder_heads": 3}
    config.task = {"type": "caption.Caption", **(decoder if given["size"] == "mini" else {})}
    config.model.pool = "map"
    config.data.eval_preprocess = "resize(SIZE)"
    config.evals = {}
    if given["size"] != "mini":
        config.batch_size = 8192
    return config
