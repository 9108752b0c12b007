"""Share the parts of recipes with captions: data, two towers of one size, and evaluators. Not a recipe itself."""

import ml_collections

from configs import common

# Width, depth, hidden width and heads of the towers; "mini" learns on a laptop.
MINI = {"width": 192, "depth": 6, "mlp_dim": 768, "num_heads": 3}


def get_config(given: dict, task: dict, text: dict) -> ml_collections.ConfigDict:
    """Return a config for the data, tokenizer, size and tokens in `given`; `text`: further fields of the text tower."""
    kind, _, place = given["data"].partition(":")
    if kind not in ("pairs", "tfds") or not place:
        raise ValueError(f"found data={given['data']}, expected pairs:FILE_OR_FOLDER or tfds:NAME")
    tfds = {"type": "tfds_captions.TfdsCaptions", "name": place}
    source = {"type": "pairs.Pairs", "path": place} if kind == "pairs" else tfds
    mini = given["size"] == "mini"
    size = 64 if mini else 224
    tokenize = f"tokenize({given['tokenizer']!r}, {given['tokens']}"

    config = common.get_config()
    config.image_size = size
    config.epochs = 30.0
    config.batch_size = 256 if mini else 32_768
    shape = dict(MINI, patch_size=8) if mini else {"variant": given["size"]}
    config.model = {"type": "vit.ViT", **shape}
    tower = MINI if mini else {"variant": given["size"].partition("/")[0]}
    config.task = {**task, "text": {"type": "text.TextTransformer", **tower, **text}}
    config.data.source = source | {"split": "train"}
    config.data.preprocess = f"random_resized_crop(SIZE, 0.5)|{tokenize})" if mini else f"resize(SIZE)|{tokenize})"
    config.optim.rule.b2 = 0.95
    config.optim.lr = 1e-3
    config.optim.weight_decay = 1e-4
    config.optim.schedule = {"type": "cosine", "warmup_steps": 0.1}
    config.evals.test = {
        "type": "retrieval.Retrieval", "source": source | {"split": "test"},
        "preprocess": f"resize(SIZE)|{tokenize}, {5 if kind == 'tfds' else 1})", "batch_size": 256,
    }  # fmt: skip
    return config
