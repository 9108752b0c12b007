"""Every key of a training config with its default, once, each with its reason."""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """A config without model, data and evaluators; recipes fill those in."""
    return ml_collections.ConfigDict(
        {
            # Everything random is a function of the seed, the step and the example's place in the global order.
            "seed": 0,
            # The length of the run: one of the two.
            "steps": placeholder(int),
            "epochs": placeholder(float),
            # Images in a step, over all devices.
            "batch_size": 128,
            # "jit" over the mesh below, or "pmap": data parallel with whole copies of the state.
            "parallel": "jit",
            # Named axes of the devices, one of them -1 for what is left. The batch is divided over data and fsdp, parameters
            # and optimiser over fsdp, heads and hidden units over tensor.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            # (regex of parameter names, mesh axis or None for each dimension), ...: what these find is divided so, and no other
            # way; see vit_jax/sharding.py.
            "sharding": placeholder(list),
            # What SIZE stands for in the preprocess specs, where SIZE*7//6 is so much of it: pixels; if not given, those of the
            # model in `init`.
            "image_size": placeholder(int),
            # Without a type: the model that `init` names, with the fields given here changed.
            "model": {"type": "vit.ViT"},
            # "loss_name" is softmax_xent, sigmoid_xent or bce; "mix" may be {"type": "Mixup", ...}, CutMix or MixupOrCutMix.
            "task": {"type": "classify.Classify", "loss_name": "softmax_xent", "label_smoothing": 0.0},
            # Or {"type": "accumulate.Accumulate", "microbatches": n} where a batch does not fit into memory, or sam.Sam or
            # sam.Gsam, whose `inner` may be that.
            "grad": {"type": "gradient.Plain"},
            "data": {
                "source": {"type": "fake.Fake"},
                "preprocess": "",
                # Threads that read and prepare images, and how many batches they may be ahead.
                "threads": 2,
                "prefetch": 4,
                # The images lie on the devices as uint8, and are cropped and flipped in the step: for small images that fit.
                "resident": False,
                # So many processes instead of the threads, on hosts of many cores: Python lets threads take turns.
                "workers": 0,
                # How often each image follows itself, augmented anew (repeated augmentation, arXiv:1901.09335).
                "repeats": 1,
                # Decoded images are kept in memory up to this many MiB.
                "cache_mb": 2048,
                # The share of unreadable images above which a run stops.
                "max_unreadable": 0.01,
            },
            "optim": {
                "rule": {"type": "adam", "b1": 0.9, "b2": 0.999},
                "schedule": {"type": "cosine", "warmup_steps": 0},
                "lr": 1e-3,
                # Multiplied by the learning rate; on the parameters whose name the regex finds.
                "weight_decay": 0.0,
                "decay": "kernel$",
                # (regex, {"lr": factor, "weight_decay": factor}), ...: the first regex that finds a name counts.
                "multipliers": placeholder(list),
                "clip_norm": 1.0,
                # Each block learns by this factor slower than the next (arXiv:2111.06377); none by default.
                "layer_decay": placeholder(float),
            },
            # Decay of a running average of the weights, which is then what is evaluated, the weights themselves as NAME_raw;
            # none by default.
            "ema_decay": placeholder(float),
            # {"ref": MODEL, "head": "auto", "posemb": "auto", "allow": REGEX} begins from the weights of another run or of a
            # published model. `head` is keep, reset (and without the representation layer) or map (by the classes' names); auto
            # keeps it where the classes are the same. `posemb` is bilinear or bicubic; auto is as the model's authors do. Of
            # the parameters that `allow` finds some may be missing or left over; `trust` allows code from outside vit_jax.
            "init": placeholder(dict),
            # The model that a task such as distill.Distill learns from: any reference, as in `init`.
            "teacher": placeholder(str),
            # Parameters whose name the regex finds stay as they begin.
            "freeze": placeholder(str),
            # [{"below": n, KEY: VALUE, ...}, ...]: with fewer than n training images, keys that have no value get these; the
            # first such row counts, and one without `below` is for all sizes.
            "by_size": placeholder(list),
            # `best` names a metric whose best checkpoint is kept besides the last `keep`.
            "checkpoint": {"every": 1000, "keep": 2, "best": placeholder(str), "best_mode": "max"},
            # Besides metrics.jsonl: TensorBoard's events, and Weights & Biases, of which `wandb` names a project.
            "log": {"every": 50, "tensorboard": True, "wandb": placeholder(str)},
            # name -> evaluator; `every` says after how many steps it runs, besides the end.
            "evals": {},
        }
    )
