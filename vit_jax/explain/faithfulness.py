"""Measure how faithful a map of importance is: deletion and insertion, and whether it depends on the weights."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from vit_jax import trees
from vit_jax.explain.method import HeatMap, Look
from vit_jax.explain.network import Network
from vit_jax.tasks.task import Weights

STEPS = 20
BLUR = 5.0  # pixels, as in arXiv:1806.07421 for images of 224 pixels
NOISE, SHUFFLES = 4, 4  # random maps, and networks with shuffled weights, over which scores are averaged


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """Scores of a method's maps, each a mean over the images.

    deletion, insertion: the area under the probability of the class while the pixels are removed, or inserted into a
    blurred image, the most important first (arXiv:1806.07421, section 3.2); a faithful map has low deletion and high
    insertion. random_*: for noise maps on the same grid. randomized_*: for maps of the same network with shuffled
    weights, scored on the trained network. correlation: Spearman's, between the maps and those with shuffled weights
    (arXiv:1810.03292, section 3); near 1, the map does not depend on the learned weights.
    """

    deletion: float
    insertion: float
    random_deletion: float
    random_insertion: float
    randomized_deletion: float
    randomized_insertion: float
    correlation: float


def score(method: HeatMap, look: Look, seed: int = 0) -> Faithfulness:
    """Return the scores of a method's maps for a network with known targets."""
    network, targets = look.network, look.targets
    assert targets is not None
    maps, rng = look.arrays["map"], np.random.default_rng(seed)
    others = []
    for number in range(SHUFFLES):
        weights = shuffle(network.loaded.weights, number)
        shuffled = Network(network.name, dataclasses.replace(network.loaded, weights=weights))
        others.append(method.maps(shuffled, look.images, targets))

    def mean(maps: np.ndarray) -> tuple[float, float]:
        found = [
            deletion_insertion(lambda x, t=target: network.probs(x)[:, t], image, one, network.mean_color)
            for image, one, target in zip(look.images, network.to_pixels(maps), targets, strict=True)
        ]
        deletion, insertion = np.mean(found, axis=0)
        return float(deletion), float(insertion)

    grid = network.grid if hasattr(network.module, "features") else maps.shape[1:]
    noise = [mean(rng.random((len(maps), *grid))) for _ in range(NOISE)]
    correlations = [spearman(one, other) for several in others for one, other in zip(maps, several, strict=True)]
    scores = (mean(maps), np.mean(noise, axis=0).tolist(), np.mean([mean(x) for x in others], axis=0).tolist())
    return Faithfulness(*(x for pair in scores for x in pair), correlation=float(np.mean(correlations)))


def deletion_insertion(
    predict: Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n"]],
    image: UInt8[np.ndarray, "h w c"],
    importance: Float[np.ndarray, "h w"],
    color: UInt8[np.ndarray, " c"],
    steps: int = STEPS,
) -> tuple[float, float]:
    """Return the areas under predict(images) while pixels become `color`, and while they are put into a blurred image.

    The most important pixels come first, in `steps` equal parts; the areas use the trapezoidal rule over fractions from
    0 to 1.
    """
    order = np.argsort(-importance.ravel(), kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    counts = np.linspace(0, len(order), steps + 1).round()
    first = (rank.reshape(image.shape[:2])[None] < counts[:, None, None])[..., None]
    blurred = gaussian_filter(image.astype(np.float64), (BLUR, BLUR, 0)).round().astype(np.uint8)
    removed, inserted = np.where(first, color, image), np.where(first, image, blurred)
    curves = predict(np.concatenate([removed, inserted])).reshape(2, -1).astype(np.float64)
    deletion, insertion = ((curves[:, 1:] + curves[:, :-1]) / 2).mean(axis=1)
    return float(deletion), float(insertion)


def shuffle(variables: Weights, seed: int) -> Weights:
    """Shuffle the entries of each array of variables, which keeps their distribution.

    Initial weights would not work for a head initialized to zero: no class would have a gradient.
    """
    rng = np.random.default_rng(seed)
    flat = trees.flatten(variables)
    mixed = {name: rng.permutation(np.asarray(jax.device_get(x)).ravel()).reshape(x.shape) for name, x in flat.items()}
    return trees.unflatten(variables, mixed)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation of two maps; 0 if one is constant."""
    ranks = [rankdata(x) for x in (one, other)]
    if min(x.std() for x in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def table(scores: Sequence[tuple[str, Faithfulness]]) -> str:
    """Format the scores as lines of text, each method next to its noise maps and shuffled weights."""
    width = max(len(name) for name, _ in scores)
    head = f"{'':<{width}}  deletion  random  shuffled  insertion  random  shuffled  correlation"
    lines = [
        f"{name:<{width}}  {x.deletion:8.3f}  {x.random_deletion:6.3f}  {x.randomized_deletion:8.3f}  {x.insertion:9.3f}  "
        f"{x.random_insertion:6.3f}  {x.randomized_insertion:8.3f}  {x.correlation:11.3f}"
        for name, x in scores
    ]
    return "\n".join([head, *lines])
