"""Compute answers in one thread that gathers waiting images into batches of precompiled shapes."""

import asyncio
import concurrent.futures
import dataclasses
import functools
import logging
import queue
import threading

import jax
import numpy as np
from jaxtyping import Array, UInt8

from vit_jax.explain.network import Network
from vit_jax.inference import Loaded, Outputs
from vit_jax.tasks.task import Weights
from vit_jax.types import UserError

SIZES = (1, 2, 4, 8)  # images in a batch
MOST_PATCHES = 1024  # limit for sending the attention between patches
MOST_TEXTS = 32  # labels to compare a photograph with
# Outputs that are shown, if the model gives them; the first need a trained head.
OF_HEADS = ("probs", "values")
DENSE = ("segments", "numbers", "boxes", "box_scores", "box_labels")


@dataclasses.dataclass(frozen=True)
class Job:
    """A preprocessed image waiting for its outputs."""

    image: UInt8[np.ndarray, "h w c"]
    attention: bool
    answer: concurrent.futures.Future[Outputs]


class Engine:
    """Predicts preprocessed images in batches; `feature` is the feature of the index, if there is one.

    Outputs are rows of Task.predict's outputs and, with attention, `head` [rows, columns], what the head reads from the
    patches, and `patches` [n, n], how much each patch attends to each, in the last block, averaged over heads.
    """

    def __init__(self, reference: str, loaded: Loaded, feature: str | None = None):
        self.loaded, self._feature = loaded, feature
        self._network = Network(reference, loaded)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        images = jax.ShapeDtypeStruct((1, *loaded.image_shape), "uint8")
        shapes = jax.eval_shape(loaded.task.predict, loaded.weights, {"image": images})
        self.compares_texts = loaded.tokenizer is not None and "image_embedding" in shapes
        kept = {feature, "image_embedding"} if self.compares_texts else {feature}
        kept |= set(DENSE if loaded.has_untrained_head else OF_HEADS + DENSE)
        self._needs = [name for name in shapes if name in kept]
        self._texts = functools.lru_cache(64)(self._embed)
        self.has_attention = self._can_show()
        if not self._needs and not self.has_attention:
            raise UserError(
                f"{reference} has no trained head and no attention, so there is nothing to show; give --index=DIR, or fine-tune it."
            )
        self._explain = jax.jit(self._attention)

    def start(self) -> None:
        """Compile for every batch size, then start answering."""
        for size in SIZES:
            images = np.zeros((size, *self.loaded.image_shape), np.uint8)
            for attention in {False, self.has_attention}:
                self._run(images, attention)
        if self.compares_texts:
            self._embed(("a photograph",))
        self._thread.start()

    def stop(self) -> None:
        """Answer the waiting jobs, then end."""
        self._jobs.put(None)
        self._thread.join(30)

    async def predict(self, image: np.ndarray, attention: bool) -> Outputs:
        """Return the outputs for an image."""
        job = Job(image, attention and self.has_attention, concurrent.futures.Future())
        self._jobs.put(job)
        return await asyncio.wrap_future(job.answer)

    def match(self, outputs: Outputs, texts: tuple[str, ...]) -> np.ndarray:
        """Return the probability of each text for one image; raises UserError for a text that cannot be compared."""
        return self.loaded.match(outputs["image_embedding"][None], self._texts(texts)[: len(texts)])[0]

    def _embed(self, texts: tuple[str, ...]) -> np.ndarray:
        """Return the embeddings of texts, padded to MOST_TEXTS so that they are compiled once."""
        return self.loaded.embed_texts([*texts, *[texts[0]] * (MOST_TEXTS - len(texts))])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        return self._network.grid

    def _can_show(self) -> bool:
        try:
            self._network.need_attention("attention")
        except UserError:
            return False
        return self._network.grid[0] * self._network.grid[1] <= MOST_PATCHES

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            while len(jobs) < SIZES[-1] and not self._jobs.empty():
                found = self._jobs.get()
                if found is None:
                    self._jobs.put(None)
                    break
                jobs.append(found)
            for attention in (False, True):
                self._answer([job for job in jobs if job.attention == attention], attention)

    def _answer(self, jobs: list[Job], attention: bool) -> None:
        """Set the answers of jobs of one kind; cancelled jobs are skipped."""
        jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
        if not jobs:
            return
        size = next(size for size in SIZES if size >= len(jobs))
        images = np.stack([job.image for job in jobs] + [jobs[0].image] * (size - len(jobs)))
        try:
            outputs = self._run(images, attention)
        except Exception as error:  # the thread must survive
            logging.exception("A batch failed.")
            for job in jobs:
                job.answer.set_exception(error)
            return
        for row, job in enumerate(jobs):
            job.answer.set_result({name: x[row] for name, x in outputs.items()})

    def _run(self, images: np.ndarray, attention: bool) -> Outputs:
        outputs: Outputs = {}
        if self._needs:
            _, found = self.loaded.predictor(self.loaded.weights, {"image": images}, self._needs)
            outputs = {name: np.asarray(x)[: len(images)] for name, x in found.items()}
        return outputs | (jax.device_get(self._explain(self.loaded.weights, images)) if attention else {})

    def _attention(self, weights: Weights, images: Array) -> dict[str, Array]:
        """Return the parts of the last block's attention that the page draws."""
        last = self._network.attention_of(weights, images)[-1].mean(axis=1)
        first = self._network.prefix
        return {"head": self._network.read(last, None), "patches": last[:, first:, first:]}


class Slots:
    """A bounded number of concurrent requests; `take` returns whether one more was admitted."""

    def __init__(self, most: int):
        self.most, self.taken = most, 0

    def take(self) -> bool:
        """Take a slot if one is free."""
        if self.taken >= self.most:
            return False
        self.taken += 1
        return True

    def free(self) -> None:
        """Return a slot."""
        self.taken -= 1
