"""Classify images using only the names of the classes."""

from collections.abc import Mapping

import jax
import numpy as np

from vit_jax.data.files import read_lines
from vit_jax.data.pipeline import EvalData
from vit_jax.data.source import Example, Field, Label, Source, Text
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError

# "a photo of a {}." is CLIP's template for all classes (arXiv:2103.00020, section 3.1.4).
TEMPLATES = ("a photo of a {}.",)


class Prompts(Source):
    """Every class name in every template, as texts without images; the label is the class."""

    def __init__(self, names: tuple[str, ...], templates: tuple[str, ...]):
        self._names, self._templates = names, templates
        self.fields: dict[str, Field] = {"text": Text(), "label": Label(names)}

    def __len__(self) -> int:
        return len(self._names) * len(self._templates)

    def __getitem__(self, index: int) -> Example:
        label, template = divmod(index, len(self._templates))
        return {"text": self._templates[template].replace("{}", self._names[label]), "label": label}

    def name(self, index: int) -> str:
        return self[index]["text"]


class ZeroShot(Evaluator):
    """`accuracy` and `top5` of the class whose mean prompt is nearest to the image (arXiv:2103.00020, section 3.1.4).

    tokenize: the spec for the prompts, such as "tokenize('tokenizer.json', 64)". classes: a file with one readable
    class name per line, in the order of the source's classes; by default the classes' own names with "_" replaced by a
    space. templates: a file of lines that contain {} for the name. The unit vectors of a class's prompts are averaged
    and normalized again.
    """

    needs = ("image_embedding",)
    own_classes = True

    def __init__(
        self,
        source: Source,
        preprocess: str,
        tokenize: str,
        classes: str | None = None,
        templates: str | None = None,
        batch_size: BatchSize = 256,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        if not isinstance(source.fields.get("label"), Label):
            raise UserError("Found no class for each image, expected a source of classes such as folder.Folder.")
        own = tuple(name.replace("_", " ") for name in source.class_names)
        names = own if classes is None else tuple(read_lines(classes, f"file at classes={classes!r}"))
        if len(names) != len(own):
            raise UserError(f"Found {len(names)} names in classes={classes}, expected {len(own)}, one for each class.")
        patterns = TEMPLATES if templates is None else tuple(read_lines(templates, f"file at templates={templates!r}"))
        wrong = next((line for line in patterns if "{}" not in line), None)
        if wrong is not None:
            raise UserError(f"Found the template {wrong!r}, expected it to contain {{}} for the class name.")
        prompts = Prompts(names, patterns)
        self.passes["prompts"] = EvalData(prompts, tokenize, batch_size, threads=threads, cache_mb=cache_mb)

    def needs_in(self, name: str) -> tuple[str, ...]:
        """See Evaluator."""
        return ("text_embedding",) if name == "prompts" else self.needs

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        return Measured({"embedding": next(iter(outputs.values())), "label": batch["label"]})

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        images, labels = measured[""]["embedding"], measured[""]["label"]
        prompts, of_class = measured["prompts"]["embedding"], measured["prompts"]["label"]
        classes = np.stack([prompts[of_class == i].mean(axis=0) for i in range(len(self.spec.class_names))])
        classes /= np.maximum(np.linalg.norm(classes, axis=1, keepdims=True), 1e-12)
        near = images @ classes.T
        own = np.take_along_axis(near, labels[:, None], axis=1)
        rank = (near >= own).sum(axis=1) - 1  # a class as near as the correct one ranks first
        top5 = {"top5": float((rank < 5).mean())} if near.shape[1] > 5 else {}
        return {"accuracy": float((rank < 1).mean()), **top5, "num_examples": len(images)}
