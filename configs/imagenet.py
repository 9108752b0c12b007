"""Set up ImageNet-1k and -21k for training and evaluation in the recipes. Not a recipe itself.

Every recipe on ImageNet takes, in addition to its own keys,

    source   folder:PATH with train and val folders of class folders, or tfds:NAME; by default TFDS, already prepared
    evals    val, or all: also few-shot on ImageNet-1k, and for ImageNet-1k ImageNet-v2 and the ReaL labels; TFDS's
             imagenet2012, imagenet_v2 and imagenet2012_real must then be prepared

ImageNet-1k in TFDS is imagenet2012. ImageNet-21k is not in TFDS: prepare it as imagenet21k with one split named full,
or give a folder. A data set tfds:NAME is split in the same way.
"""

import ml_collections

ARGUMENTS: dict = {"source": "", "evals": ("val", "all")}
# Images in big_vision's recipes are resized with antialiasing here; big_vision trains on bilinear crops without
# antialiasing, and evaluates with area averaging ("area"), from which our resizing differs little. The shorter side is
# resized to 256 and cropped to the central 224 pixels, or in proportion for another image size.
RESIZE = "resize_small(SIZE*8//7)|central_crop(SIZE)"
# TFDS name, training split and evaluations, split as in big_vision. The last hundredth of ImageNet-1k's training images
# is for choosing settings, so that the validation images remain a test.
DATA = {
    "i1k": ("imagenet2012", "train[:99%]", {"val": "validation", "minival": "train[99%:]"}),
    "i21k": ("imagenet21k", "full[51200:]", {"val": "full[25600:51200]", "test": "full[:25600]"}),
}
# The initial logits of all classes: about the log of their frequency.
HEAD_BIAS = {"i1k": -6.9, "i21k": -10.0}


def fill(
    config: ml_collections.ConfigDict,
    given: dict,
    crop: str = "inception_crop(SIZE)|flip",
    resize: str = RESIZE,
    whole: bool = False,
) -> None:
    """Set image size, sources, preprocessing and evaluators of a config from a recipe's arguments; default data: i1k.

    whole: train on all training images of ImageNet-1k, without minival.
    """
    data = given.get("data", "i1k")
    name, train, held_out = DATA[data]
    if whole and data == "i1k":
        train, held_out = "train", {"val": "validation"}
    kind, _, place = (given["source"] or f"tfds:{name}").partition(":")
    if kind not in ("folder", "tfds") or not place:
        raise ValueError(f"found source={given['source']}, expected folder:PATH or tfds:NAME")
    source: dict = {"type": "tfds.Tfds", "name": place}
    if kind == "folder":
        source, train, held_out = {"type": "folder.Folder", "path": place}, "train", {"val": "val"}
    measured = {title: source | {"split": split} for title, split in held_out.items()}

    config.image_size = 224
    config.data.source = source | {"split": train}
    config.data.preprocess = crop
    # Many cores decode and augment for one accelerator.
    config.data.threads, config.data.prefetch = 32, 8
    for title, images in measured.items():
        config.evals[title] = _every(2_500, type="classification.Classification", source=images, preprocess=resize)
    if given["evals"] == "all":
        config.evals.update(_more(resize, data))


def _every(steps: int, **evaluator) -> dict:
    return evaluator | {"batch_size": 256, "threads": 32, "every": steps}


def _more(resize: str, data: str) -> dict:
    """Return the additional evaluators reported in papers, on TFDS data."""
    tfds = {"type": "tfds.Tfds"}
    few_shot = _every(
        10_000,
        type="fewshot.FewShot",
        # At least thirty images of each class (big_vision, configs/common_fewshot.py).
        train=tfds | {"name": "imagenet2012", "split": "train[:65000]"},
        source=tfds | {"name": "imagenet2012", "split": "validation"},
        preprocess="resize(SIZE*8//7)|central_crop(SIZE)",
    )
    if data == "i21k":
        return {"few_shot": few_shot}
    v2 = tfds | {"name": "imagenet_v2", "split": "test"}
    real = tfds | {"name": "imagenet2012_real", "split": "validation", "label_key": "real_label"}
    variants = {
        title: _every(2_500, type="imagenet.ImageNet", variant=title, source=source, preprocess=resize)
        for title, source in (("v2", v2), ("real", real))
    }
    return variants | {"few_shot": few_shot}
