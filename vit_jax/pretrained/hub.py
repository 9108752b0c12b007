"""Download from the Hugging Face hub, and list the original repository's models that are available there.

HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE have their usual meaning.

The table of names follows google-research/vision_transformer (README.md, vit_jax.ipynb, configs/augreg.py) and, for the
hub, timm 1.0.31 default_cfgs and transformers 4 convert_vit_timm_to_pytorch.py. The original buckets have been closed
since February 2026 (issue 321), so models that are only there are not listed. timm tags its 1000-class Mixers
in21k_ft_in1k, although they were trained only on ImageNet.
"""

import dataclasses
import hashlib
import os
import re
from pathlib import Path

from vit_jax.types import UserError

FILES = ["config.json", "preprocessor_config.json", "model.safetensors.index.json", "model*.safetensors"]
TOKENIZER_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "spiece.model", "tokenizer.model"]
OLDER_FILES = ["pytorch_model.bin", "pytorch_model.pth", "*.npz"]


def download(name: str) -> Path:
    """Download a model OWNER/NAME[@revision] into the hub's cache if it is missing, and return its folder."""
    owner, revision = _parsed(name)
    files = FILES + TOKENIZER_FILES
    folder = _snapshot(owner, revision, files)
    if not list(folder.glob("*.safetensors")):
        folder = _snapshot(owner, revision, files + OLDER_FILES)
    return folder


def download_tokenizer(name: str) -> Path:
    """Download the tokenizer of a model OWNER/NAME[@revision] into the hub's cache, and return its folder."""
    return _snapshot(*_parsed(name), TOKENIZER_FILES)


def _parsed(name: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if match is None:
        raise UserError(f"'hf:{name}' is not a model of the hub; expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION.")
    return match[1], match[2]


def check_name(name: str, flag: str) -> None:
    """Raise UserError unless a name has the form OWNER/NAME."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is None:
        raise UserError(f"{flag}={name} is not a model of the hub; expected OWNER/NAME.")


def upload(folder: Path, name: str) -> str:
    """Upload a folder as the model OWNER/NAME, created as private if it is new, and return its address."""
    import huggingface_hub
    from huggingface_hub import errors

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    hub = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model by vit_jax")
    except (
        errors.HfHubHTTPError,
        errors.LocalTokenNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
        ValueError,
    ) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"--push={name} failed ({type(error).__name__}: {reason}); log in with `hf auth login` or set HF_TOKEN to a token that "
            f"may write there. The folder {folder} is complete: `hf upload {name} {folder}` uploads it too."
        ) from None
    return f"{endpoint}/{name}"


def _snapshot(name: str, revision: str | None, files: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    reference = f"hf:{name}" + (f"@{revision}" if revision else "")
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files, endpoint=endpoint)
        )
    except errors.GatedRepoError:
        raise UserError(
            f"{reference} is gated; accept its terms at {endpoint}/{name}, then log in with `hf auth login` or set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{reference} is not on the hub ({endpoint}), or is private; check OWNER/NAME, or log in with `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{reference} has no revision {revision!r}; omit it for the newest.") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        reason = "HF_HUB_OFFLINE is set" if is_offline else f"{endpoint} cannot be reached"
        raise UserError(
            f"{reference} is not in the cache and {reason}. Go online, set HF_ENDPOINT to a mirror, or copy the model's folder "
            f"here and give its path ({type(error).__name__})."
        ) from None
    except Exception as error:  # the client does not catch errors of its network library
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:150]}"
        raise UserError(
            f"{reference} could not be downloaded ({reason}); run the same command again to continue."
        ) from None
    for path in folder.rglob("*.safetensors"):
        _verify(path, reference)
    return folder


def _verify(path: Path, reference: str) -> None:
    """Compare a cached file with its SHA-256, which is its name in the cache, and remove it if they differ."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return
    with open(blob, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise UserError(
            f"{reference}: {path.name} is damaged and was removed from the cache; run the same command again to download it."
        )


@dataclasses.dataclass(frozen=True)
class OriginalModel:
    """A model of the original repository: its name, training data, image size in pixels, and hub references to try."""

    name: str
    data: str
    resolution: int
    places: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """The number of parameters with a head of 1000 classes, at 224 pixels."""
        return _PARAMETERS[re.sub(r"-(224|i21k|i1k)\b.*", "", self.name.rpartition("/")[2]).replace("ViT-", "")]

    @property
    def accuracy(self) -> float | None:
        """The published accuracy on ImageNet's validation images in %, or None."""
        return next((found for pattern, found in _ACCURACIES.items() if re.fullmatch(pattern, self.name)), None)


# Folder -> training data and resolution.
_FOLDERS = {
    "imagenet21k": ("ImageNet-21k", 224),
    "imagenet21k+imagenet2012": ("ImageNet-21k, fine-tuned on ImageNet", 384),
    "imagenet1k": ("ImageNet", 224),
    "sam": ("ImageNet, by SAM (arXiv:2010.01412)", 224),
}
# Of models trained only on ImageNet-21k, timm/ has neither head nor representation layer, and google/ has no head.
_HUB_NAMES = {
    "imagenet21k/ViT-B_32": "timm/vit_base_patch32_224.orig_in21k google/vit-base-patch32-224-in21k",
    "imagenet21k/ViT-B_16": "timm/vit_base_patch16_224.orig_in21k google/vit-base-patch16-224-in21k",
    "imagenet21k/ViT-L_32": "timm/vit_large_patch32_224.orig_in21k google/vit-large-patch32-224-in21k",
    "imagenet21k/ViT-L_16": "timm/vit_large_patch16_224.orig_in21k google/vit-large-patch16-224-in21k",
    "imagenet21k/ViT-H_14": "timm/vit_huge_patch14_224.orig_in21k google/vit-huge-patch14-224-in21k",
    "imagenet21k/R50+ViT-B_16": "timm/vit_base_r50_s16_224.orig_in21k",
    "imagenet21k/Mixer-B_16": "timm/mixer_b16_224.goog_in21k",
    "imagenet21k/Mixer-L_16": "timm/mixer_l16_224.goog_in21k",
    "imagenet21k+imagenet2012/ViT-B_32": "google/vit-base-patch32-384",
    "imagenet21k+imagenet2012/ViT-B_16-224": "timm/vit_base_patch16_224.orig_in21k_ft_in1k google/vit-base-patch16-224",
    "imagenet21k+imagenet2012/ViT-B_16": "timm/vit_base_patch16_384.orig_in21k_ft_in1k google/vit-base-patch16-384",
    "imagenet21k+imagenet2012/ViT-L_32": "timm/vit_large_patch32_384.orig_in21k_ft_in1k google/vit-large-patch32-384",
    "imagenet21k+imagenet2012/ViT-L_16-224": "google/vit-large-patch16-224",
    "imagenet21k+imagenet2012/ViT-L_16": "google/vit-large-patch16-384",
    "imagenet21k+imagenet2012/R50+ViT-B_16": "timm/vit_base_r50_s16_384.orig_in21k_ft_in1k",
    "imagenet1k/Mixer-B_16": "timm/mixer_b16_224.goog_in21k_ft_in1k",
    "imagenet1k/Mixer-L_16": "timm/mixer_l16_224.goog_in21k_ft_in1k",
    "sam/ViT-B_32": "timm/vit_base_patch32_224.sam_in1k",
    "sam/ViT-B_16": "timm/vit_base_patch16_224.sam_in1k",
}
# AugReg (arXiv:2106.10270): pretraining run, timm's architecture, and the checkpoints on the hub: "up" is the run
# itself, "0.03-384" is fine-tuned from it on ImageNet with learning rate 0.03 at 384 pixels.
_AUGREG = (
    ("Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0", "vit_tiny_patch16", "up 0.03-224 0.03-384"),
    ("S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0", "vit_small_patch32", "up 0.03-224 0.03-384"),
    ("S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0", "vit_small_patch16", "up 0.03-224 0.03-384"),
    ("B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0", "vit_base_patch32", "up 0.03-224"),
    ("B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0", "vit_base_patch32", "0.03-384"),
    ("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", "vit_base_patch16", "up 0.01-224 0.01-384"),
    ("B_8-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", "vit_base_patch8", "up 0.01-224"),
    ("L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1", "vit_large_patch16", "up 0.01-224 0.01-384"),
    ("S_16-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0", "vit_small_patch16", "0.01-224 0.01-384"),
    ("B_32-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.1-sd_0.1", "vit_base_patch32", "0.01-224 0.01-384"),
    ("B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1", "vit_base_patch16", "0.01-224 0.01-384"),
    ("R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0", "vit_tiny_r_s16_p8", "up 0.03-224 0.03-384"),
    ("R26_S_32-i21k-300ep-lr_0.001-aug_light0-wd_0.03-do_0.1-sd_0.1", "vit_small_r26_s32", "0.03-224"),
    ("R26_S_32-i21k-300ep-lr_0.001-aug_medium2-wd_0.03-do_0.0-sd_0.0", "vit_small_r26_s32", "up 0.03-384"),
    ("R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1", "vit_large_r50_s32", "0.01-224"),
    ("R50_L_32-i21k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0", "vit_large_r50_s32", "up 0.01-384"),
)
# The recommended run for a size (configs/augreg.py) if it is on the hub: augreg/B_16.
_RECOMMENDED = {f"augreg/{_AUGREG[i][0].partition('-')[0]}": f"augreg/{_AUGREG[i][0]}" for i in (0, 2, 5, 11)}


# With a head of 1000 classes at 224 pixels, by size; a test counts them.
_PARAMETERS = {
    "Ti_16": 5_717_416, "S_32": 22_878_952, "S_16": 22_050_664, "B_32": 88_224_232, "B_16": 86_567_656, "B_8": 86_576_872,
    "L_32": 306_535_400, "L_16": 304_326_632, "H_14": 632_045_800, "R_Ti_16": 6_337_704, "R26_S_32": 36_431_912,
    "R50+B_16": 98_659_112, "R50_L_32": 328_994_856, "Mixer-B_16": 59_880_472, "Mixer-L_16": 208_196_168,
}  # fmt: skip
# Published accuracies by a regular expression of names: arXiv:2010.11929 table 5, 2105.01601 table 3, 2106.01548 table
# 2, and 2106.10270 table 3, for models fine-tuned at 384 pixels.
_ACCURACIES = {
    r"imagenet21k\+imagenet2012/ViT-B_32": 81.28, r"imagenet21k\+imagenet2012/ViT-B_16": 83.97,
    r"imagenet21k\+imagenet2012/ViT-L_32": 80.99, r"imagenet21k\+imagenet2012/ViT-L_16": 85.15,
    r"imagenet1k/Mixer-B_16": 76.44, r"imagenet1k/Mixer-L_16": 71.76, r"sam/ViT-B_32": 73.6, r"sam/ViT-B_16": 79.9,
    **{
        rf"augreg/{size}-i21k-.*-res_384": accuracy
        for size, accuracy in {
            "Ti_16": 78.22, "S_32": 79.58, "S_16": 83.73, "B_32": 83.59, "B_16": 85.49, "L_16": 85.59, "R_Ti_16": 75.40,
            "R26_S_32": 83.85, "R50_L_32": 85.99,
        }.items()
    },
}  # fmt: skip


def _original_models() -> dict[str, OriginalModel]:
    models = []
    for name, hub_names in _HUB_NAMES.items():
        data, resolution = _FOLDERS[name.partition("/")[0]]
        places = tuple(f"hf:{hub_name}" for hub_name in hub_names.split())
        models.append(OriginalModel(name, data, 224 if name.endswith("-224") else resolution, places))
    for run, architecture, checkpoints in _AUGREG:
        pretrained, tag = ("ImageNet-21k", "augreg_in21k") if "-i21k-" in run else ("ImageNet", "augreg_in1k")
        for checkpoint in checkpoints.split():
            if checkpoint == "up":
                name, side, weights, data = f"augreg/{run}", "224", tag, pretrained
            else:
                rate, _, side = checkpoint.partition("-")
                name = f"augreg/{run}--imagenet2012-steps_20k-lr_{rate}-res_{side}"
                weights = f"{tag}_ft_in1k" if pretrained == "ImageNet-21k" else tag
                data = f"{pretrained}, fine-tuned on ImageNet"
            place = f"hf:timm/{architecture}_{side}.{weights}"
            models.append(OriginalModel(name, data, int(side), (place,)))
    return {model.name: model for model in models}


ORIGINAL = _original_models()


def find(name: str) -> OriginalModel | None:
    """Return a model of the original repository, or None if the name is unknown.

    The folder may be omitted, with imagenet21k/ tried first: ViT-B_16 was trained on ImageNet-21k. "augreg/B_16" is the
    recommended run for that size. A suffix .npz is ignored.
    """
    name = name.removesuffix(".npz")
    for candidate in (name, f"imagenet21k/{name}", f"imagenet21k+imagenet2012/{name}", f"augreg/{name}"):
        candidate = _RECOMMENDED.get(candidate, candidate)
        if candidate in ORIGINAL:
            return ORIGINAL[candidate]
    return None
