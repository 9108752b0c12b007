"""Train semantic segmentation by a head on a pretrained ViT or Swin.

    python -m vit_jax.main --config=configs/segment.py:init=MODEL,data=DATA --workdir=DIR
    python -m vit_jax.main --config=configs/segment.py:init=MODEL,data=ade20k:PATH,head=mask --workdir=DIR

    data   folder:PATH (images/{train,val}, masks/{train,val} and classes.txt), ade20k:PATH, voc:PATH or cityscapes:PATH
           in their original layout; ADE20K needs a classes.txt, the last column of its objectInfo150.txt without header
    head   linear: DINOv2's protocol, a frozen backbone, batch norm and a linear layer (arXiv:2304.07193, section 7.4); mask:
           Segmenter's mask transformer (arXiv:2105.05633, section 4.1); upernet: UPerNet on a Swin (arXiv:2103.14030, section 4.3)
    tune   own: as in the papers, only the head for linear and everything otherwise; head; all
    size   pixels of the crops; 512, or 518 for patches of 14 pixels

Published mean IoU on ADE20K's validation images. Linear, DINOv2 S/B/L/g: 44.3 / 47.3 / 47.7 / 49.0; with the last four
layers, 640 px and several scales 47.2 / 51.3 / 53.1 / 53.0 (table 10). Segmenter, single scale, S/B/L/16 at 512 px:
45.3 / 48.5 for S and B, Ti 38.1, and L at 640 px 51.8 (table 3). UPerNet on Swin-T/S/B: 44.5 / 47.6 / 48.1 (with
several scales 46.1 / 49.5 / 49.7; the repository's table). None of them was run here.

The optimisers follow the papers' code: AdamW, 1e-3 and 1e-4 weight decay over 40,000 steps of 16 (linear); SGD, 1e-3
over 160,000 steps of 8 (mask); AdamW, 6e-5 and 0.01 over 160,000 steps of 16 (upernet); all decay linearly, while
Segmenter's decays with a power of 0.9. Crops are drawn without a limit on the fraction of one class, and color_jitter
changes the colours.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import arguments, common

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# Cityscapes' names of the 19 evaluated classes, and their ids in *_labelIds.png.
CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19, "traffic sign": 20,
    "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31,
    "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
# (source, training split, validation split, canvas that every image fits into)
DATA = {
    "folder": ({}, "train", "val", 1024),
    "ade20k": (
        {"masks": "annotations/{split}", "values": tuple(range(1, 151)), "ignore": (0,)}, "training", "validation", 2100,
    ),
    "voc": (
        {"images": "JPEGImages", "masks": "SegmentationClass", "names": "ImageSets/Segmentation/{split}.txt", "classes": VOC},
        "train", "val", 512,
    ),
    "cityscapes": (
        {
            "images": "leftImg8bit/{split}", "masks": "gtFine/{split}", "image_suffix": "_leftImg8bit",
            "mask_suffix": "_gtFine_labelIds", "classes": tuple(CITYSCAPES), "values": tuple(CITYSCAPES.values()),
            "ignore": tuple(i for i in range(34) if i not in CITYSCAPES.values()),
        },
        "train", "val", 2048,
    ),
}  # fmt: skip
# (head, layers, optimiser, learning rate, weight decay, steps, batch)
HEADS = {
    "linear": ({"type": "Linear"}, (-1,), {"type": "adam"}, 1e-3, 1e-4, 40_000, 16),
    "mask": ({"type": "MaskTransformer"}, (-1,), {"type": "sgd", "momentum": 0.9}, 1e-3, 0.0, 160_000, 8),
    "upernet": ({"type": "UperNet"}, (0, 1, 2, 3), {"type": "adam"}, 6e-5, 0.01, 160_000, 16),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is "init=MODEL,data=DATA[,head=linear][,tune=own][,size=512]"."""
    given = arguments.parse(arg, init="", data="folder:DATA", head=tuple(HEADS), tune=("own", "head", "all"), size=512)
    kind, _, place = given["data"].partition(":")
    if kind not in DATA or not place:
        raise ValueError(f"found data={given['data']}, expected one of {', '.join(f'{kind}:PATH' for kind in DATA)}")
    options, train, test, canvas = DATA[kind]
    head, layers, rule, lr, decay, steps, batch_size = HEADS[given["head"]]
    size, source = given["size"], {"type": "segments.SegmentFolder", "path": place, **options}
    config = common.get_config()
    config.steps, config.batch_size = steps, batch_size
    if given["init"]:
        config.model = {}
        del config.init
        config.init = {"ref": given["init"], "head": "reset", "posemb": "auto", "allow": placeholder(str)}
    else:
        config.model = {"type": "vit.ViT", "variant": "S/16"}
    frozen = given["tune"] == "head" or (given["tune"] == "own" and given["head"] == "linear")
    config.freeze = "^backbone/" if frozen else placeholder(str)
    config.task = {"type": "segment.Segment", "head": head, "layers": layers}
    config.data.source = source | {"split": train}
    config.data.preprocess = f"scale_crop({size})|flip|color_jitter(0.5, 0.5, 0.5, 0.07)"
    config.optim.rule, config.optim.lr, config.optim.weight_decay = rule, lr, decay
    config.optim.clip_norm = placeholder(float)
    config.optim.schedule = {"type": "linear", "warmup_steps": 1500 / 40_000 if given["head"] != "mask" else 0}
    config.evals.test = {
        "type": "miou.MeanIou",
        "source": source | {"split": test},
        "preprocess": f"own_size({canvas})|resize({size})",
        "batch_size": 2,
        "every": steps // 10,
    }
    return config
