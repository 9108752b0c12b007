"""Train YOLOS: detection by a plain ViT with detection tokens (arXiv:2106.00666).

    python -m vit_jax.main --config=configs/detect.py:init=MODEL,data=PATH --workdir=DIR

    init   a pretrained ViT such as a DeiT; without it random weights. data: the folder of COCO 2017, with annotations/,
           train2017/ and val2017/. variant: Ti, S or B

Published average precision on COCO val 2017 (table 2 and the repository's table), from DeiT weights for ImageNet-1k: Ti
28.7 after 300 epochs at up to 512 px, S 36.1 and B 42.0 after 150 epochs at 800 px. None of them was run here.

AdamW, 2.5e-5 for S and B and 5e-5 for Ti, batch 8, weight decay 1e-4, gradients clipped at 0.1, half cosine, 100
tokens; S and B add positions between the blocks. The original trains on images of many sizes, 480 to 800 pixels,
interpolating positions; here images are scaled by a factor between 0.6 and 1.7 and cropped to 512 x 864.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import arguments, common

SIZE = (512, 864)
# variant: (learning rate, epochs)
VARIANTS = {"S": (2.5e-5, 150), "B": (2.5e-5, 150), "Ti": (5e-5, 300)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "init=MODEL,data=PATH[,variant=S]"."""
    given = arguments.parse(arg, init="", data="COCO", variant=tuple(VARIANTS))
    lr, epochs = VARIANTS[given["variant"]]
    config = common.get_config()
    config.steps, config.epochs, config.batch_size = placeholder(int), float(epochs), 8
    config.model = {"type": "vit.ViT", "variant": f"{given['variant']}/16", "mlp": "gelu"}
    if given["init"]:
        del config.init
        config.init = {"ref": given["init"], "head": "reset", "posemb": "auto", "allow": placeholder(str)}
        config.model = {}
    config.task = {"type": "detect.Detect", "between": given["variant"] != "Ti"}
    source = {"type": "coco.Coco", "path": given["data"], "bad_boxes": "drop"}
    config.data.source = source | {"split": "train2017"}
    config.data.preprocess = f"scale_crop({SIZE}, 0.6, 1.7)|flip|pad_boxes(100)"
    config.optim.rule = {"type": "adam"}
    config.optim.lr, config.optim.weight_decay, config.optim.clip_norm = lr, 1e-4, 0.1
    config.optim.schedule = {"type": "cosine", "warmup_steps": 0}
    config.evals.test = {
        "type": "coco_map.CocoMap",
        "source": source | {"split": "val2017"},
        "preprocess": f"resize({SIZE})|pad_boxes(100)",
        "batch_size": 4,
    }
    return config
