"""Write the model card of an exported folder: README.md as displayed on the Hugging Face hub."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

LOADING = {
    "timm": 'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:OWNER/NAME"',
    "hf": "from transformers import AutoModelForImageClassification as Model\n\nmodel = Model.from_pretrained('FOLDER')",
    "workdir": 'import vit_jax as vj\n\nmodel = vj.load("FOLDER")\nmodel.top("photo.jpg")',
}
LIBRARY = {"timm": "timm", "hf": "transformers", "workdir": "vit_jax"}
# Config keys that make up the recipe.
RECIPE = ("init", "optim", "batch_size", "steps", "epochs", "ema_decay", "seed", "data.preprocess")
MOST_CLASSES = 20


def make_card(
    to: str, loaded: Any, size: int, record: Mapping[str, Any] | None, metrics: Mapping[str, Any], notes: Sequence[str]
) -> str:
    """Return the card of a loaded model with `size` parameters.

    record: config.json of the run that trained it, or None; metrics: its latest results. Unknown parts say "fill in".
    """
    config = (record or {}).get("config", {})
    classes = loaded.class_names[:MOST_CLASSES]
    more = f", and {len(loaded.class_names) - len(classes):,} more" if len(loaded.class_names) > len(classes) else ""
    data = config.get("data", {}).get("source", {})
    trained = [f"- data: {_code({k: v for k, v in data.items() if k not in ('path', 'data_dir')})}"] if data else []
    if record and record["data"].get("num_examples"):
        trained.append(f"- training examples: {record['data']['num_examples']:,}")
    parts = {key: config.get(key) if "." not in key else config["data"].get("preprocess") for key in RECIPE if config}
    trained += [f"- {key}: {_code(value)}" for key, value in parts.items() if value is not None]
    trained += [f"- task: {_code(config['task'])}"] if config.get("task") else []
    trained += [f"- code: vit_jax {_code(record['git_commit'])}"] if record and record.get("git_commit") else []
    results = [f"| {name} | {_number(name, value)} |" for name, value in sorted(metrics.items()) if "/" in name]
    sections = [
        f"---\nlibrary_name: {LIBRARY[to]}\npipeline_tag: image-classification\nlicense: other  # fill in\n"
        "tags:\n- image-classification\n- vit_jax\n---\n\n# Model card",
        f"A {loaded.spec.get('type', 'model')} with {size:,} parameters, for images of {' x '.join(map(str, loaded.image_shape))}"
        f" and {len(loaded.class_names):,} classes: {', '.join(classes)}{more}.",
        f"```python\n{LOADING[to]}\n```",
        f"Preprocessing: `{loaded.preprocess_spec or 'none'}`.",
        "## Training\n\n" + ("\n".join(trained) or "Not known; fill in."),
        "## Results\n\n" + ("| metric | value |\n| --- | --- |\n" + "\n".join(results) if results else "Fill in."),
        "## Licence and intended use\n\nFill in: the licence, what the images are, and what the model should not be used for.",
    ]
    sections += ["## Notes\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join(sections) + "\n"


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _number(name: str, value: Any) -> str:
    return f"{100 * value:.2f} %" if name.endswith(("accuracy", "top5")) else f"{value:,.4g}"
