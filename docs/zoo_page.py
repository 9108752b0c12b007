"""Write docs/reference/zoo.md: python -m docs.zoo_page RESULTS.csv BENCHMARK.csv, of a checkout of timm.

They are results/results-imagenet.csv and a results/benchmark-infer-*.csv there. A model is listed where this library reads its
arrays; timm has to be installed (`make parity`).
"""

import csv
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "reference" / "zoo.md"
FAMILIES = {
    "ViT and hybrids": r"vit_(tiny|small|base|large|huge)_(patch\d+_\d+|r\d*_s\d+(_p\d+)?_\d+)\.(orig|augreg|sam)",
    "CLIP and SigLIP towers, fine-tuned": r"vit_(base|large|huge|so400m)_patch\d+_(clip|siglip)",
    "DeiT and DeiT-III": r"deit3?_",
    "BEiT": r"beit(v2)?_",
    "EVA-02": r"eva02_",
    "Swin": r"swin(v2)?_(tiny|small|base|large)",
    "Mixer": r"mixer_\w+\.goog",
}
# k-nearest neighbours and linear probe on ImageNet-1k, %: the README files of facebookresearch/dino and facebookresearch/dinov2.
FEATURES = [
    ("vit_small_patch16_224.dino", 21, 74.5, 77.0),
    ("vit_small_patch8_224.dino", 21, 78.3, 79.7),
    ("vit_base_patch16_224.dino", 85, 76.1, 78.2),
    ("vit_base_patch8_224.dino", 85, 77.4, 80.1),
    ("vit_small_patch14_dinov2.lvd142m", 21, 79.0, 81.1),
    ("vit_base_patch14_dinov2.lvd142m", 86, 82.1, 84.5),
    ("vit_large_patch14_dinov2.lvd142m", 300, 83.5, 86.3),
    ("vit_giant_patch14_dinov2.lvd142m", 1100, 83.5, 86.5),
    ("vit_small_patch14_reg4_dinov2.lvd142m", 21, 79.1, 80.9),
    ("vit_base_patch14_reg4_dinov2.lvd142m", 86, 82.0, 84.6),
    ("vit_large_patch14_reg4_dinov2.lvd142m", 300, 83.8, 86.7),
    ("vit_giant_patch14_reg4_dinov2.lvd142m", 1100, 83.7, 87.1),
]
HEAD = """# Pretrained zoo

Models that others published and that `hf:timm/NAME` loads, for every command and `vit_jax.load`. Their weights were not
downloaded here: that their arrays are read is checked by name and shape, and the networks by parity with random weights
([measurements](../measurements.md)). Most are on the hub as transformers' models too; `vit models` lists where those of
google-research/vision_transformer are. Fine-tune any of them with [`configs/finetune.py`](../guides/pretrained.md).

## Features

Without a head; accuracy on ImageNet-1k in %, as the authors state it.

| name | million parameters | nearest neighbours | linear probe |
| --- | --- | --- | --- |
"""
TABLE = """
## {}

| name | million parameters | GMACs | pixels | ImageNet-1k, % |
| --- | --- | --- | --- | --- |
"""
NOTE = """
Parameters, multiply-accumulate operations, image sizes and top-1 accuracies on ImageNet-1k's validation images are those that timm
measured (results/ of huggingface/pytorch-image-models, commit aa4b5850).
"""


def is_read(name: str) -> bool:
    """Whether the arrays that timm makes for a model are read here; they are zeros that take no memory."""
    import numpy as np

    from tests.peers import timm, torch
    from vit_jax.pretrained import swin
    from vit_jax.pretrained import timm as ours
    from vit_jax.types import UserError

    with torch.device("meta"):
        model = timm.create_model(name)
    arrays = {key: np.broadcast_to(np.float32(0), tuple(x.shape)) for key, x in model.state_dict().items()}
    config = {
        "architecture": name.partition(".")[0],
        "num_classes": model.num_classes,
        "pretrained_cfg": model.pretrained_cfg,
    }
    reader = swin if swin.matches(arrays, config) else ours
    try:
        reader.read(arrays, config, name)
    except UserError as error:
        print(f"left out {name}: {error}", file=sys.stderr)
        return False
    return True


def page(results: Path, benchmark: Path) -> str:
    """Return the text of the page."""
    with results.open() as file:
        rows = list(csv.DictReader(file))
    with benchmark.open() as file:
        macs = {(row["model"], row["infer_img_size"]): row["infer_gmacs"] for row in csv.DictReader(file)}
    text = HEAD + "".join(
        f"| `{name}` | {size:,} | {knn} | {probe} |\n" for name, size, knn, probe in FEATURES if is_read(name)
    )
    for family, pattern in FAMILIES.items():
        text += TABLE.format(family)
        for row in sorted(rows, key=lambda row: -float(row["top1"])):
            name, size = row["model"], row["img_size"]
            if re.match(pattern, name) and is_read(name):
                count = macs.get((name.partition(".")[0], size), "") or macs.get((name, size), "")
                text += (
                    f"| `{name}` | {float(row['param_count']):.1f} | {count} | {size} | {float(row['top1']):.1f} |\n"
                )
    return text + NOTE


if __name__ == "__main__":
    PAGE.write_text(page(Path(sys.argv[1]), Path(sys.argv[2])))
