"""Translate words of timm, torchvision, transformers, Lightning and big_vision into ours, for hints in messages."""

import re

# Their flag or config key -> our config key.
KEYS = {
    "lr": "optim.lr", "learning_rate": "optim.lr", "base_lr": "optim.lr", "peak_lr": "optim.lr", "blr": "optim.lr",
    "batch_size": "batch_size", "bs": "batch_size", "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size", "global_batch_size": "batch_size", "input.batch_size": "batch_size",
    "epochs": "epochs", "num_epochs": "epochs", "num_train_epochs": "epochs", "max_epochs": "epochs", "total_epochs": "epochs",
    "steps": "steps", "max_steps": "steps", "total_steps": "steps", "num_steps": "steps", "num_train_steps": "steps",
    "warmup": "optim.schedule.warmup_steps", "warmup_steps": "optim.schedule.warmup_steps",
    "warmup_epochs": "optim.schedule.warmup_steps", "warmup_ratio": "optim.schedule.warmup_steps",
    "weight_decay": "optim.weight_decay", "wd": "optim.weight_decay", "opt": "optim.rule", "optimizer": "optim.rule",
    "optimiser": "optim.rule", "sched": "optim.schedule", "scheduler": "optim.schedule", "lr_scheduler_type": "optim.schedule",
    "schedule": "optim.schedule", "momentum": "optim.rule.momentum", "clip_grad": "optim.clip_norm",
    "grad_clip_norm": "optim.clip_norm", "max_grad_norm": "optim.clip_norm", "gradient_clip_val": "optim.clip_norm",
    "layer_decay": "optim.layer_decay", "seed": "seed", "model": "model.variant", "arch": "model.variant",
    "model_name": "model.variant", "variant": "model.variant", "drop_path": "model.drop_path", "drop_rate": "model.dropout",
    "dropout": "model.dropout", "patch_size": "model.patch_size", "precision": "model.dtype", "amp": "model.dtype",
    "bf16": "model.dtype", "fp16": "model.dtype", "dtype": "model.dtype", "amp_dtype": "model.dtype",
    "gradient_checkpointing": "model.remat", "grad_checkpointing": "model.remat",
    "smoothing": "task.label_smoothing", "label_smoothing": "task.label_smoothing",
    "label_smoothing_factor": "task.label_smoothing", "mixup": "task.mix", "cutmix": "task.mix", "mixup_alpha": "task.mix",
    "model_ema": "ema_decay", "model_ema_decay": "ema_decay", "ema": "ema_decay", "accum_freq": "grad",
    "gradient_accumulation_steps": "grad", "grad_accum_steps": "grad", "img_size": "image_size", "input_size": "image_size",
    "image_size": "image_size", "resolution": "image_size", "workers": "data.threads", "num_workers": "data.threads",
    "dataloader_num_workers": "data.workers", "aa": "data.preprocess", "auto_augment": "data.preprocess",
    "reprob": "data.preprocess", "hflip": "data.preprocess", "pp": "data.preprocess", "transform": "data.preprocess",
    "input.pp": "data.preprocess", "pretrained": "init", "finetune": "init", "model_init": "init",
    "initial_checkpoint": "init", "checkpoint_hist": "checkpoint.keep", "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep", "ckpt_steps": "checkpoint.every", "logging_steps": "log.every",
    "log_interval": "log.every", "log_training_steps": "log.every", "log_wandb": "log.wandb",
    "freeze": "freeze", "teacher": "teacher", "distillation_type": "teacher",
}  # fmt: skip
# An example of a value, for keys that are not numbers.
VALUES = {
    "optim.rule": "\"{'type': 'adam', 'b1': 0.9, 'b2': 0.95}\"", "optim.schedule": "\"{'type': 'cosine', 'warmup_steps': 0.1}\"",
    "task.mix": "\"{'type': 'Mixup', 'alpha': 0.2}\"", "grad": "\"{'type': 'accumulate.Accumulate', 'microbatches': 4}\"",
    "init": "\"{'ref': 'hf:OWNER/NAME'}\"", "model.variant": "S/16", "model.dtype": "bfloat16", "model.remat": "full",
    "data.preprocess": "'inception_crop(64)|flip'", "ema_decay": "0.999", "log.wandb": "PROJECT",
    "optim.schedule.warmup_steps": "0.1", "freeze": "'^(?!head)'", "teacher": "REF",
}  # fmt: skip
# Their flags without a key here.
FLAGS = {
    "output_dir": "--workdir=DIR", "output": "--workdir=DIR", "log_dir": "--workdir=DIR", "save_dir": "--workdir=DIR",
    "out": "--workdir=DIR", "work_dir": "--workdir=DIR", "default_root_dir": "--workdir=DIR",
    "resume": "the same command with the same --workdir, which resumes",
    "resume_from_checkpoint": "the same command with the same --workdir, which resumes",
    "ckpt_path": "the same command with the same --workdir, which resumes",
    "num_classes": "nothing: the number of classes follows from the data",
    "nb_classes": "nothing: the number of classes follows from the data",
    "data": "--config=configs/scratch.py:data=folder:PATH", "data_dir": "--config=configs/scratch.py:data=folder:PATH",
    "data_path": "--config=configs/scratch.py:data=folder:PATH", "dataset": "--config=configs/scratch.py:data=folder:PATH",
    "train_dir": "--config=configs/scratch.py:data=folder:PATH",
    "device": "the variable JAX_PLATFORMS=cpu, cuda or tpu", "gpu": "the variable CUDA_VISIBLE_DEVICES",
    "gpus": "the variable CUDA_VISIBLE_DEVICES", "eval": "vit evaluate --model=DIR --data=SOURCE",
    "evaluate": "vit evaluate --model=DIR --data=SOURCE", "validate": "vit evaluate --model=DIR --data=SOURCE",
}  # fmt: skip
# Their transform -> ours; None if a task or model does this itself.
TRANSFORMS: dict[str, str | None] = {
    "randomresizedcrop": "random_resized_crop({})", "randomresizedcropandinterpolation": "random_resized_crop({})",
    "rrc": "random_resized_crop({})", "randomhorizontalflip": "flip", "horizontalflip": "flip", "hflip": "flip",
    "fliplr": "flip", "resize": "resize_small({})", "smallestmaxsize": "resize_small({})", "resizesmall": "resize_small({})",
    "centercrop": "central_crop({})", "randomcrop": "pad_crop({}, 4)", "pad": "pad_crop(32, 4)",
    "colorjitter": "color_jitter(0.4, 0.4, 0.4, 0.1)", "randomgrayscale": "grayscale(0.2)", "grayscale": "grayscale(1.0)",
    "randaugment": "rand_augment(9)", "randaug": "randaug(2, 10)", "trivialaugmentwide": "rand_augment(9)",
    "autoaugment": "autoaugment()", "randomerasing": "random_erasing(0.25)", "coarsedropout": "random_erasing(0.25)",
    "randomrotation": "rotate(15.0)", "rotate": "rotate(15.0)", "gaussianblur": "gaussian_blur()",
    "randomsolarize": "maybe(0.2, 'solarize()')", "threeaugment": "three_augment()", "inceptioncrop": "inception_crop({})",
    "totensor": None, "topiltoimage": None, "pilimage": None, "normalize": None, "maybetotensor": None, "toimage": None,
    "convertimagedtype": None, "todtype": None, "decode": None, "decodejpegandinceptioncrop": "inception_crop({})",
    "valuerange": None, "onehot": None, "keep": None,
}  # fmt: skip
_TIMM = re.compile(r"(?:hf[-_]hub:|timm/)*((?:vit|deit3?|mixer|flexivit)_\w+)(\.\w+)?")
_TIMM_SIZE = re.compile(
    r"(?:vit|deit3?|mixer)_(tiny|small|medium|base|large|so400m|huge|giant|gigantic|[sblh])_?(?:patch)?(\d+)"
)
_SIZE = re.compile(
    r"(?:vit[-_/]?)?(mu|tiny|small|medium|base|large|so400m|huge|giant|gigantic|ti|s|m|b|l|h|g)[-_/]?(\d+)", re.I
)
_LETTERS = {
    "tiny": "Ti", "ti": "Ti", "small": "S", "medium": "M", "base": "B", "large": "L", "so400m": "So400m", "huge": "H",
    "giant": "g", "gigantic": "G", "mu": "mu",
}  # fmt: skip


def plain(word: str) -> str:
    """Return a flag or key in lower case, without leading dashes and with underscores for other dashes."""
    return word.lstrip("-").replace("-", "_").lower()


def key_hint(word: str, value: str = "") -> str | None:
    """Return what to write here for another library's flag or key, or None for an unknown word."""
    word = plain(word)
    if word in FLAGS:
        return FLAGS[word]
    key = KEYS.get(word)
    if key is None:
        return None
    if key in VALUES:
        value = variant_of(value) or VALUES[key] if key == "model.variant" else VALUES[key]
    if key == "batch_size" and not value.isdecimal():
        value = ""
    return f"--config.{key}={value or 'VALUE'}"


def transform_hint(name: str, argument: str = "") -> str | None:
    """Return what to do here for another library's transform, or None for an unknown name.

    argument: the first argument it was given.
    """
    key = re.sub(r"[_\W]", "", name).lower()
    if key not in TRANSFORMS:
        return None
    ours = TRANSFORMS[key]
    if ours is None:
        return "leave it out: images stay uint8, and the task normalises them (task.mean and task.std)"
    return f"write {ours.format(argument or 224)!r}"


def variant_of(name: str) -> str | None:
    """Return the size name that another library's model name stands for, such as S/16 for vit_small_patch16_224."""
    name = name.rpartition("/")[2] if name.count("/") and not _SIZE.fullmatch(name) else name
    match = _TIMM_SIZE.match(name) or _SIZE.fullmatch(name)
    if match is None:
        return None
    letter = match[1] if match[1] == "g" else match[1].lower()
    return f"{_LETTERS.get(letter, letter.upper() if letter != 'g' else letter)}/{match[2]}"


def model_hint(name: str) -> str:
    """Return our equivalent of another library's model name as the end of a message; empty for an unknown name."""
    variant, timm = variant_of(name), _TIMM.fullmatch(name)
    random = f"model.variant={variant} for random weights" if variant else ""
    tag = timm[2] or ".TAG" if timm else ""
    weights = f"--config=configs/finetune.py:model=hf:timm/{timm[1]}{tag},data=... for timm's weights" if timm else ""
    both = ", or ".join(filter(None, (random, weights)))
    return f"; expected {both}" if both else ""
