"""The original repository's names of its models, and the places that hold their weights.

Sources. google-research/vision_transformer: README.md (recommended AugReg files, "-224"), vit_jax.ipynb (what its buckets
hold), configs/augreg.py (a model's name stands for its recommended file), issue 223 (GSAM), issue 321 (since February 2026 the
buckets refuse anonymous readers). big_vision models/vit.py: recommended B/8. timm 1.0.31 default_cfgs: the .npz of which a
repository of the hub was made, and for orig_ and goog_ its comments and resolutions; it tags its Mixers of 1000 classes
in21k_ft_in1k, though the bucket and its docstrings have them trained on ImageNet alone. For google/: transformers 4
convert_vit_timm_to_pytorch.py, and the hub.
"""

import dataclasses
import re

# AugReg (arXiv:2106.10270): a pretraining run, its name on the hub without resolution and tag, what of it is there and what
# in the bucket alone. "up" is the run itself, 0.03-384 its fine-tuning on ImageNet with learning rate 0.03 at 384 pixels;
# "best" marks the recommended run of a size.
_AUGREG = (
    ("Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0", "vit_tiny_patch16", "up 0.03-224 0.03-384", "best"),
    ("S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0", "vit_small_patch32", "up 0.03-224 0.03-384", ""),
    ("S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0", "", "", "best up 0.01-384"),
    ("S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0", "vit_small_patch16", "up 0.03-224 0.03-384", "best"),
    ("B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0", "vit_base_patch32", "up 0.03-224", ""),
    ("B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0", "vit_base_patch32", "0.03-384", "best up 0.01-384"),
    (
        *("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", "vit_base_patch16"),
        *("up 0.01-224 0.01-384", "best 0.03-384"),
    ),
    ("B_8-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", "vit_base_patch8", "up 0.01-224", ""),
    ("B_8-i21k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0", "", "", "best up"),
    ("L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1", "vit_large_patch16", "up 0.01-224 0.01-384", ""),
    ("L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0", "", "", "best up 0.01-384"),
    ("S_16-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0", "vit_small_patch16", "0.01-224 0.01-384", ""),
    ("B_32-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.1-sd_0.1", "vit_base_patch32", "0.01-224 0.01-384", ""),
    ("B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1", "vit_base_patch16", "0.01-224 0.01-384", ""),
    ("R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0", "vit_tiny_r_s16_p8", "up 0.03-224 0.03-384", "best"),
    ("R26_S_32-i21k-300ep-lr_0.001-aug_light0-wd_0.03-do_0.1-sd_0.1", "vit_small_r26_s32", "0.03-224", ""),
    ("R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0", "", "", "best up 0.01-384"),
    ("R26_S_32-i21k-300ep-lr_0.001-aug_medium2-wd_0.03-do_0.0-sd_0.0", "vit_small_r26_s32", "up 0.03-384", ""),
    (
        *("R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1", "vit_large_r50_s32"),
        *("0.01-224", "best up 0.01-384"),
    ),
    ("R50_L_32-i21k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0", "vit_large_r50_s32", "up 0.01-384", ""),
)

# Folder of the bucket -> what its models were trained on, and the resolution.
_FOLDERS = {
    "imagenet21k": ("ImageNet-21k", 224),
    "imagenet21k+imagenet2012": ("ImageNet-21k, fine-tuned on ImageNet", 384),
    "imagenet1k": ("ImageNet", 224),
    "sam": ("ImageNet, by SAM (arXiv:2010.01412)", 224),
    "gsam": ("ImageNet, by GSAM (arXiv:2203.08065)", 224),
}
# What they hold -> the same on the hub. Of the models trained on ImageNet-21k alone, timm has neither the head nor the
# representation layer, google/ not the head.
_OTHERS = {
    "imagenet21k/ViT-B_32": "timm/vit_base_patch32_224.orig_in21k google/vit-base-patch32-224-in21k",
    "imagenet21k/ViT-B_16": "timm/vit_base_patch16_224.orig_in21k google/vit-base-patch16-224-in21k",
    "imagenet21k/ViT-B_8": "",
    "imagenet21k/ViT-L_32": "timm/vit_large_patch32_224.orig_in21k google/vit-large-patch32-224-in21k",
    "imagenet21k/ViT-L_16": "timm/vit_large_patch16_224.orig_in21k google/vit-large-patch16-224-in21k",
    "imagenet21k/ViT-H_14": "timm/vit_huge_patch14_224.orig_in21k google/vit-huge-patch14-224-in21k",
    "imagenet21k/R26+ViT-B_32": "",
    "imagenet21k/R50+ViT-B_16": "timm/vit_base_r50_s16_224.orig_in21k",
    "imagenet21k/R50+ViT-L_32": "",
    "imagenet21k/Mixer-B_16": "timm/mixer_b16_224.goog_in21k",
    "imagenet21k/Mixer-L_16": "timm/mixer_l16_224.goog_in21k",
    "imagenet21k+imagenet2012/ViT-B_32": "google/vit-base-patch32-384",
    "imagenet21k+imagenet2012/ViT-B_16-224": "timm/vit_base_patch16_224.orig_in21k_ft_in1k google/vit-base-patch16-224",
    "imagenet21k+imagenet2012/ViT-B_16": "timm/vit_base_patch16_384.orig_in21k_ft_in1k google/vit-base-patch16-384",
    "imagenet21k+imagenet2012/ViT-B_8": "",
    "imagenet21k+imagenet2012/ViT-L_32": "timm/vit_large_patch32_384.orig_in21k_ft_in1k google/vit-large-patch32-384",
    "imagenet21k+imagenet2012/ViT-L_16-224": "google/vit-large-patch16-224",
    "imagenet21k+imagenet2012/ViT-L_16": "google/vit-large-patch16-384",
    "imagenet21k+imagenet2012/R50+ViT-B_16": "timm/vit_base_r50_s16_384.orig_in21k_ft_in1k",
    "imagenet1k/Mixer-B_16": "timm/mixer_b16_224.goog_in21k_ft_in1k",
    "imagenet1k/Mixer-L_16": "timm/mixer_l16_224.goog_in21k_ft_in1k",
    "sam/ViT-B_32": "timm/vit_base_patch32_224.sam_in1k",
    "sam/ViT-B_16": "timm/vit_base_patch16_224.sam_in1k",
    **{f"sam/{name}": "" for name in ("ViT-S_16", "ViT-L_32", "ViT-L_16", "Mixer-B_32", "Mixer-B_16")},
    **{
        f"gsam/{name}": "" for name in ("ViT-B_16", "Mixer-B_32", "Mixer-B_16", "Mixer-S_32", "Mixer-S_16", "Mixer-S_8")
    },
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A name, what the model was trained on, the side of its images in pixels, and its places in the order to try."""

    name: str
    data: str
    resolution: int
    places: tuple[str, ...]


def places(name: str) -> tuple[str, ...] | None:
    """Where the weights of a model of the original are: "hf:OWNER/NAME" on the hub, "gs://BUCKET/FILE" in a bucket.

    A name is one of the table, alone (ViT-B_16 is the one trained on ImageNet-21k, as in the original) or with its folder, with
    or without .npz; augreg/B_16 is the recommended file of that size. Any other file of the folders is in a bucket alone.
    None for what is no such name.
    """
    name = re.sub(r"^gs://(vit|mixer)_models/", "", name).removesuffix(".npz")
    for candidate in (name, f"imagenet21k/{name}", f"imagenet21k+imagenet2012/{name}", f"augreg/{name}"):
        if candidate in _PLACES:
            return _PLACES[candidate]
    folders = "|".join(map(re.escape, ("augreg", "lit", *_FOLDERS)))
    return (_bucket(name),) if re.fullmatch(rf"({folders})/[\w.+-]+", name) else None


def table() -> list[Row]:
    """All that is known, for documentation."""
    rows = [
        Row(name, data, 224 if name.endswith("-224") else resolution, (*_hub(hub), _bucket(name)))
        for name, hub in _OTHERS.items()
        for data, resolution in [_FOLDERS[name.partition("/")[0]]]
    ]
    for run, stem, on_hub, alone in _AUGREG:
        data, tag = ("ImageNet-21k", "augreg_in21k") if "-i21k-" in run else ("ImageNet", "augreg_in1k")
        for step in (*on_hub.split(), *alone.split()):
            if step == "best":
                continue
            if step == "up":
                name, resolution, trained, what = f"augreg/{run}", "224", tag, data
            else:
                rate, _, resolution = step.partition("-")
                name = f"augreg/{run}--imagenet2012-steps_20k-lr_{rate}-res_{resolution}"
                trained = f"{tag}_ft_in1k" if data == "ImageNet-21k" else tag
                what = f"{data}, fine-tuned on ImageNet"
            hub = f"timm/{stem}_{resolution}.{trained}" if step in on_hub.split() else ""
            rows.append(Row(name, what, int(resolution), (*_hub(hub), _bucket(name))))
    return rows


def _hub(names: str) -> tuple[str, ...]:
    return tuple(f"hf:{name}" for name in names.split())


def _bucket(name: str) -> str:
    bucket = "mixer_models" if name.partition("/")[2].startswith("Mixer") else "vit_models"
    return f"gs://{bucket}/{name}.npz"


_PLACES = {row.name: row.places for row in table()}
_PLACES |= {
    f"augreg/{run.partition('-')[0]}": _PLACES[f"augreg/{run}"] for run, *_, alone in _AUGREG if "best" in alone
}
