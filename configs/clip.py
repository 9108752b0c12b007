"""Train CLIP (arXiv:2103.00020): image and text towers, by softmax over a batch's images and over its texts.

    vit tokenizer --data=pairs:captions.csv --size=2000 --out=tokenizer.json
    python -m vit_jax.main --config=configs/clip.py:data=pairs:captions.csv --workdir=DIR

Arguments as for configs/siglip.py. The text tower is causal and read at the end token. The paper's ViT-B/16 (appendix
F: width 512, 12 blocks and 8 heads for 77 tokens, batches of 32,768, 32 epochs of 400 million private pairs, b2=0.98,
learning rate 5e-4, weight decay 0.2) reaches 68.6 % zero-shot on ImageNet (table 11). There is no published number for
the mini's setting.
"""

import ml_collections

from configs import arguments, towers

TEXT = {"width": 512, "depth": 12, "mlp_dim": 2048, "num_heads": 8}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "data=DATA[,tokenizer=FILE,size=mini|B/16,tokens=N]"."""
    given = arguments.parse(arg, data="pairs:pairs.jsonl", tokenizer="tokenizer.json", size="mini", tokens=32)
    mini = given["size"] == "mini"
    out = towers.MINI["width"] if mini else 512
    text = {"causal": True, "pool": "eos", "out_dim": out, "out_bias": False, "mlp": "quick_gelu", "norm_eps": 1e-5}
    task = {"type": "clip.Clip", "projection": out}
    task |= {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
    config = towers.get_config(given, task, text if mini else text | TEXT)
    config.model.update({"pool": "tok", "pre_norm": True, "embed_bias": False, "mlp": "quick_gelu", "norm_eps": 1e-5})
    config.optim.rule.b2 = 0.98
    config.optim.lr = 1e-3 if mini else 5e-4
    config.optim.weight_decay = 0.2
    return config
