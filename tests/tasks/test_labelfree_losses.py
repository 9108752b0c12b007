"""The losses of objectives without labels, against their formulas written from the papers in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import sampled
from tests.peers import torch
from vit_jax import trees
from vit_jax.config.factory import build
from vit_jax.models.vit import ViT
from vit_jax.tasks.beit import Beit
from vit_jax.tasks.dino import Dino, EncodedViews
from vit_jax.tasks.dinov2 import DinoV2, koleo, sinkhorn_knopp
from vit_jax.tasks.gram import Gram
from vit_jax.tasks.ibot import Ibot
from vit_jax.tasks.ijepa import Ijepa
from vit_jax.tasks.lejepa import Lejepa, sigreg
from vit_jax.tasks.mae import Mae
from vit_jax.tasks.masks import block_masks, random_masks
from vit_jax.tasks.simmim import Simmim
from vit_jax.tasks.teacher import Teacher
from vit_jax.tasks.vqkd import VqKd, nearest
from vit_jax.types import UserError

RNG = np.random.default_rng(0)
IMAGE = {"image": jax.ShapeDtypeStruct((16, 16, 3), "uint8")}
VIEWS = {"views": jax.ShapeDtypeStruct((2, 16, 16, 3), "uint8"), "crops": jax.ShapeDtypeStruct((3, 8, 8, 3), "uint8")}
IMAGES = {"image": jnp.asarray(RNG.integers(0, 256, (4, 16, 16, 3), np.uint8))}
VIEWED = {key: jnp.asarray(RNG.integers(0, 256, (4, *x.shape), np.uint8)) for key, x in VIEWS.items()}
KEY = jax.random.key(0)


def vit(**fields):
    defaults = {"pool": "tok", "mask_token": True, "num_heads": 2, "posemb": "sincos2d"}
    return ViT(0, 8, 1, 8, patch_size=4, **defaults | fields)


def begun(task, spec):
    """The first parameters; one program is compiled in place of one for each operation, here and below."""
    return jax.jit(lambda: task.init(KEY, spec))()


def perturbed(params):
    """Parameters without zeros, so that nothing is hidden."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), params)


def wide(x):
    return np.asarray(x, np.float64)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x):
    return np.log(softmax(x))


def test_simmim_is_the_mean_absolute_error_of_masked_pixels(agrees):
    task = Simmim(vit(pool="gap"), mean=0.5, std=0.5, unit=1, mask_ratio=0.5)
    params = perturbed(begun(task, IMAGE))
    batch = task.prepare(IMAGES, KEY, {})
    assert np.asarray(batch["masked"]).sum(axis=1).tolist() == [8] * 4
    loss, _ = jax.jit(task.loss)(params, {}, batch, KEY)
    tokens = wide(jax.jit(task.tokens)(params["backbone"], batch["image"], KEY, masked=batch["masked"]))
    rebuilt = tokens @ wide(params["decoder"]["kernel"]) + wide(params["decoder"]["bias"])
    pixels = (wide(IMAGES["image"]) / 255 - 0.5) / 0.5
    image = rebuilt.reshape(4, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(4, 16, 16, 3)
    mask = np.kron(wide(batch["masked"]).reshape(4, 4, 4), np.ones((1, 4, 4)))[..., None]
    agrees("SimMIM: loss", "numpy float64", loss, (np.abs(image - pixels) * mask).sum() / mask.sum() / 3, 1e-5)


def test_the_network_sees_no_masked_pixel():
    task = Simmim(vit(pool="gap"), unit=1, mask_ratio=0.5)
    params = perturbed(begun(task, IMAGE))
    masked = task.prepare(IMAGES, KEY, {})["masked"]
    pixels = np.kron(np.asarray(masked).reshape(4, 4, 4), np.ones((1, 4, 4), bool))[..., None]
    other = jnp.asarray(np.where(pixels, 7, np.asarray(IMAGES["image"])).astype(np.uint8))
    found = [jax.jit(task.tokens)(params["backbone"], x, KEY, masked=masked) for x in (IMAGES["image"], other)]
    np.testing.assert_array_equal(*found)


def tokenizer():
    task = VqKd(vit(pool="gap", mask_token=False), teacher=None, teacher_width=8, codes=5, code_width=3, decoder_width=8,
                decoder_heads=2, mean=0.5, std=0.5)  # fmt: skip
    return task, perturbed(begun(task, IMAGE))


def test_beit_is_the_cross_entropy_of_the_codes_of_masked_patches(agrees):
    coder, weights = tokenizer()
    teacher = Teacher(coder, {"params": weights}, (16, 16, 3))
    task = Beit(vit(pool="gap"), teacher=teacher, codes=5, smallest_block=2, mask_ratio=0.4)
    params = perturbed(begun(task, IMAGE))
    batch = task.prepare(IMAGES, KEY, task.constants)
    codes = np.asarray(jax.jit(coder.predict)({"params": weights}, IMAGES)["codes"])
    np.testing.assert_array_equal(batch["codes"], codes)
    loss, (metrics, _) = jax.jit(task.loss)(params, {}, batch, KEY)
    tokens = wide(jax.jit(task.tokens)(params["backbone"], batch["image"], KEY, masked=batch["masked"]))
    logits = tokens @ wide(params["decoder"]["kernel"]) + wide(params["decoder"]["bias"])
    masked = np.asarray(batch["masked"])
    losses = -np.take_along_axis(log_softmax(logits), codes[..., None], axis=2)[..., 0]
    agrees("BEiT: loss", "numpy float64", loss, np.mean([losses[i][masked[i]].mean() for i in range(4)]), 1e-5)
    hits = [np.mean(logits[i][masked[i]].argmax(axis=1) == codes[i][masked[i]]) for i in range(4)]
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(hits))


def test_vqkd_rebuilds_by_cosine_and_moves_its_codes(agrees):
    coder, weights = tokenizer()
    state = {"codebook": weights["codebook"] / np.linalg.norm(weights["codebook"], axis=1, keepdims=True)}
    theirs = jnp.asarray(RNG.normal(size=(4, 16, 8)), jnp.float32)
    loss, (metrics, stats) = jax.jit(coder.loss)(weights, state, IMAGES | {"teacher": theirs}, KEY)
    projected = wide(jax.jit(coder._project)(weights, IMAGES["image"], KEY))
    book = wide(state["codebook"])
    chosen = (projected @ book.T).argmax(axis=2)
    np.testing.assert_array_equal(nearest(jnp.asarray(projected, jnp.float32), state["codebook"]), chosen)
    decode = jax.jit(coder._decoder.apply)
    rebuilt = wide(decode({"params": weights["decoder"]}, jnp.asarray(book[chosen], jnp.float32)))
    cosine = (rebuilt * wide(theirs)).sum(axis=2) / np.linalg.norm(rebuilt, axis=2) / np.linalg.norm(theirs, axis=2)
    expected = (1 - cosine).mean() + np.square(projected - book[chosen]).mean()
    agrees("VQ-KD: loss", "numpy float64", loss, expected, 1e-5)
    after = coder.update(weights, state, stats, jnp.int32(0))["codebook"]
    moved = book.copy()
    for code in np.unique(chosen):
        mean = projected[chosen == code].sum(axis=0)
        moved[code] = 0.99 * book[code] + 0.01 * mean / np.linalg.norm(mean)
        moved[code] /= np.linalg.norm(moved[code])
    agrees("VQ-KD: codebook after a step", "numpy float64", after, moved, 1e-6)
    assert float(metrics["codes_used"]) == len(np.unique(chosen)) / 5


def ibot(cls=Ibot, **options):
    task = cls(vit(), steps=10, outputs=6, hidden=8, bottleneck=4, mask_prob=0.7, smallest_block=1, **options)
    params = perturbed(begun(task, VIEWS))
    state = {**task.init_state(params), "teacher": perturbed(params)}
    return task, params, state, jax.jit(task.prepare)(VIEWED, jax.random.key(3), {})


def by_formula(task, params, state, batch, targets, patch_targets):
    """Equations 2 and 3 of arXiv:2111.07832 from the same scores, in float64."""
    masked = np.asarray(batch["masked"])
    seen = jax.jit(task.encode)(params, batch["views"], KEY, batch["masked"])
    crops = jax.jit(task.encode)(params, batch["crops"], KEY)
    scores = np.concatenate([wide(task.score(params, x.features)) for x in (seen, crops)], axis=1)
    pairs = [
        -(targets[:, i] * log_softmax(scores[:, j] / 0.1)).sum(axis=-1).mean()
        for i in range(2)
        for j in range(5)
        if i != j
    ]
    patches = wide(task._score_patches(params, seen.tokens))
    losses = -(patch_targets * log_softmax(patches / 0.1)).sum(axis=-1)
    shares = [losses[i, v][masked[i, v]].mean() if masked[i, v].any() else 0.0 for i in range(4) for v in range(2)]
    return np.mean(pairs) + np.mean(shares)


@pytest.mark.parametrize("patch_outputs", [None, 7])
def test_ibot_adds_the_cross_entropy_of_masked_patches(agrees, patch_outputs):
    task, params, state, batch = ibot(patch_outputs=patch_outputs)
    state |= {"center": jnp.asarray(RNG.normal(size=(1, 6)), jnp.float32)}
    state |= {"patch_center": jnp.asarray(RNG.normal(size=(1, patch_outputs or 6)), jnp.float32)}
    loss, (_, stats) = jax.jit(task.loss)(params, state, batch, KEY)
    whole = jax.jit(task.encode)(state["teacher"], batch["views"])
    views, patches = (
        wide(task.score(state["teacher"], whole.features)),
        wide(task._score_patches(state["teacher"], whole.tokens)),
    )
    targets, of_patches = (
        softmax((x - wide(state[name])) / 0.04) for x, name in ((views, "center"), (patches, "patch_center"))
    )
    agrees("iBOT: loss", "numpy float64", loss, by_formula(task, params, state, batch, targets, of_patches), 1e-5)
    agrees("iBOT: patch centre", "numpy float64", stats["patch_center"][0], patches.mean(axis=(0, 1, 2)), 1e-6)


def sinkhorn(scores, temperature):
    """Algorithm 1 of arXiv:2006.09882's appendix, as its authors write it: columns are examples."""
    q = np.exp(scores / temperature).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(axis=1, keepdims=True) * q.shape[0]
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def test_sinkhorn_knopp_is_that_of_its_authors(agrees):
    scores = RNG.normal(size=(9, 5))
    counts = np.array([True] * 7 + [False] * 2)
    found = sinkhorn_knopp(jnp.asarray(scores, jnp.float32), 0.5, jnp.asarray(counts))
    agrees("Sinkhorn-Knopp", "numpy float64", found[:7], sinkhorn(scores[:7], 0.5), 1e-5)


def test_dinov2_assigns_in_equal_shares_and_spreads_features(agrees):
    task, params, state, batch = ibot(DinoV2, patch_outputs=7, teacher_temperature=(0.3, 0.3))
    loss, (_, stats) = jax.jit(task.loss)(params, state, batch, KEY)
    masked = np.asarray(batch["masked"])
    whole = jax.jit(task.encode)(state["teacher"], batch["views"])
    views, patches = (
        wide(task.score(state["teacher"], whole.features)),
        wide(task._score_patches(state["teacher"], whole.tokens)),
    )
    targets = sinkhorn(views.reshape(8, 6), 0.3).reshape(4, 2, 6)
    of_patches = np.zeros(patches.shape)
    of_patches[masked] = sinkhorn(patches[masked], 0.3)
    seen = wide(jax.jit(task.encode)(params, batch["views"], KEY, batch["masked"]).features)
    apart = 0.0
    for view in range(2):
        unit = seen[:, view] / np.linalg.norm(seen[:, view], axis=1, keepdims=True)
        distances = np.linalg.norm(unit[:, None] - unit[None], axis=2) + 9 * np.eye(4)
        apart -= np.log(distances.min(axis=1)).mean()
    expected = by_formula(task, params, state, batch, targets, of_patches) + 0.1 * apart
    agrees("DINOv2: loss", "numpy float64", loss, expected, 1e-5)
    assert not stats
    assert not task.decomposable


def test_koleo_is_minus_the_log_of_the_distance_to_the_nearest(agrees):
    features = RNG.normal(size=(16, 8))
    unit = torch.nn.functional.normalize(torch.tensor(features), dim=1)
    products = unit @ unit.T
    products.fill_diagonal_(-1)
    nearest_ones = unit[products.argmax(dim=1)]
    expected = -torch.log(torch.nn.PairwiseDistance(2, eps=1e-8)(unit, nearest_ones) + 1e-8).mean()
    agrees("KoLeo", "torch float64", koleo(jnp.asarray(features, jnp.float32)), expected.item(), 1e-5)


def test_gram_anchoring_compares_the_similarities_of_patches(agrees):
    student, teacher = RNG.normal(size=(2, 3, 2, 5, 8))
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (student, teacher)]
    grams = [np.einsum("bvnd,bvmd->bvnm", x, x) for x in unit]
    found = Gram(weight=2.0)(*(jnp.asarray(x, jnp.float32) for x in (student, teacher)))
    agrees("Gram anchoring", "numpy float64", found, 2 * np.square(grams[0] - grams[1]).mean(), 1e-6)


def test_the_gram_teacher_is_a_copy_of_every_so_many_steps():
    gram, old = Gram(start=4, every=3), {"w": jnp.zeros(2)}
    for step in range(10):
        old = gram.update(old, {"w": jnp.full(2, step + 1.0)}, jnp.int32(step))
        assert float(old["w"][0]) == max((n for n in (4, 7, 10) if n <= step + 1), default=0)


@pytest.mark.parametrize("cls", sampled([Dino, Ibot, DinoV2], DinoV2))
def test_any_self_distillation_takes_the_gram_part(cls):
    options = {"mask_prob": 0.7, "smallest_block": 1} if issubclass(cls, Ibot) else {}
    task, plain = (
        cls(vit(), steps=10, outputs=6, hidden=8, bottleneck=4, gram=gram, **options) for gram in (Gram(), None)
    )
    params = perturbed(begun(task, VIEWS))
    state = {**task.init_state(params), "gram": perturbed(params)["backbone"]}
    batch = jax.jit(task.prepare)(VIEWED, jax.random.key(3), {})
    (loss, (metrics, stats)), (without, _) = (
        jax.jit(task.loss)(params, state, batch, KEY),
        jax.jit(plain.loss)(params, state, batch, KEY),
    )
    assert float(metrics["gram"]) > 0.01
    assert float(loss) == pytest.approx(float(without + metrics["gram"]), rel=1e-5)
    after = jax.jit(task.update)(params, state, stats, jnp.int32(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_ijepa_is_the_smooth_error_of_normalised_features(agrees):
    model = vit(pool="gap", mask_token=False)
    task = Ijepa(model, steps=10, predictor_width=8, predictor_depth=1, predictor_heads=2)
    params = perturbed(begun(task, IMAGE))
    state = {"teacher": perturbed(params["backbone"])}
    batch = jax.jit(task.prepare)(IMAGES, KEY, {})
    targets, context = np.asarray(batch["targets"]), np.asarray(batch["context"])
    assert not (targets.any(axis=1) & context).any()
    assert len({tuple(row) for row in targets.sum(axis=2).tolist()}) == 1
    loss, _ = jax.jit(task.loss)(params, state, batch, KEY)
    features = torch.tensor(wide(jax.jit(task.tokens)(state["teacher"], IMAGES["image"])))
    features = torch.nn.functional.layer_norm(features, (8,))
    embed, encode = (jax.jit(functools.partial(model.apply, method=way)) for way in (model.embed, model.encode))
    predict = jax.jit(task._predictor((4, 4)).apply)
    embedded = embed({"params": params["backbone"]}, task.normalize(IMAGES["image"]))
    errors = []
    for i in range(4):  # each image and block alone, without padding
        at = np.flatnonzero(context[i])[None]
        encoded = encode({"params": params["backbone"]}, embedded[i : i + 1, at[0]])
        for block in targets[i]:
            asked = np.flatnonzero(block)[None]
            every = jnp.ones((1, at.size + asked.size), bool)
            predicted = predict({"params": params["predictor"]}, encoded, jnp.asarray(at), jnp.asarray(asked), every)
            theirs = features[i : i + 1, asked[0]]
            errors.append(torch.nn.functional.smooth_l1_loss(torch.tensor(wide(predicted)), theirs).item())
    agrees("I-JEPA: loss", "torch float64", loss, np.mean(errors), 1e-5)
    after = task.update(params, state, {}, jnp.int32(5))["teacher"]["cls" if "cls" in params["backbone"] else "embed"]
    before, new = (jax.tree.leaves(x["embed"])[0] for x in (state["teacher"], params["backbone"]))
    agrees("I-JEPA: teacher", "numpy", jax.tree.leaves(after)[0], 0.998 * wide(before) + 0.002 * wide(new), 1e-6)


def test_lejepa_is_the_distance_from_the_mean_and_the_epps_pulley_statistic(agrees):
    embeddings = RNG.normal(size=(6, 5, 4))
    directions = RNG.normal(size=(4, 3))
    directions /= np.linalg.norm(directions, axis=0)
    t = np.linspace(0, 3, 17)
    values = []
    for view in range(5):
        for m in range(3):
            x = embeddings[:, view] @ directions[:, m]
            apart = np.abs(np.exp(1j * t[:, None] * x).mean(axis=1) - np.exp(-(t**2) / 2)) ** 2
            values.append(6 * 2 * np.trapezoid(apart * np.exp(-(t**2) / 2), t))
    found = sigreg(jnp.asarray(embeddings, jnp.float32), jnp.asarray(directions, jnp.float32))
    agrees("LeJEPA: SIGReg", "numpy float64", found, np.mean(values), 1e-5)


def test_a_standard_normal_has_less_sigreg_than_a_constant():
    directions = jnp.eye(4)
    normal = jnp.asarray(RNG.normal(size=(512, 1, 4)), jnp.float32)
    assert sigreg(normal, directions) < 1.5 < sigreg(jnp.zeros((512, 1, 4)), directions)


def test_random_masks_are_of_whole_cells_and_as_many_as_asked():
    masks = np.asarray(random_masks(KEY, 5, (4, 8), 0.5, unit=2)).reshape(5, 2, 2, 4, 2)
    cells = masks.any(axis=(2, 4))
    np.testing.assert_array_equal(cells, masks.all(axis=(2, 4)))
    assert cells.sum(axis=(1, 2)).tolist() == [4] * 5
    assert len(np.unique(cells.reshape(5, -1), axis=0)) > 1


def test_block_masks_are_blocks_and_never_more_than_asked():
    masks = np.asarray(block_masks(KEY, jnp.array([75] * 30 + [0, 10]), (14, 14))).reshape(32, 14, 14)
    counts = masks.sum(axis=(1, 2))
    assert counts[:30].max() <= 75
    assert counts[:30].mean() > 60
    assert counts[30] == 0
    # Neighbours of masked patches are masked far more often than chance, 75 of 196, has it.
    assert (masks[:30, 1:] & masks[:30, :-1]).sum() / masks[:30, :-1].sum() > 0.7


def without_views(cls, **options):
    return lambda: cls(vit(), **options).init(KEY, IMAGE)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (without_views(Ibot, outputs=4), r"Ibot compares two views.*views\(2"),
        (without_views(Lejepa), r"Lejepa compares two views.*views\(2"),
        (lambda: Simmim(vit(mask_token=False)), "give model.mask_token=True"),
        (lambda: Simmim(vit(), mask_ratio=1.0), "mask_ratio is 1.0"),
        (lambda: Simmim(vit(), unit=3).init(KEY, IMAGE), "3 x 3 patches do not tile 4 x 4"),
        (lambda: Beit(vit(), smallest_block=16).init(KEY, IMAGE), "masks 6 of 4 x 4 patches, fewer than"),
        (lambda: Beit(vit(), smallest_block=2).prepare(IMAGES, KEY, {}), "no tokenizer.*vqkd.VqKd"),
        (lambda: tokenizer()[0].prepare(IMAGES, KEY, {}), "no teacher.*--config.teacher"),
        (lambda: Ijepa(vit()), "give model.pool='gap' and no class token"),
        (lambda: Ijepa(vit(pool="gap"), target_scale=(0.2, 0.1)), "target_scale"),
        (lambda: Ijepa(vit(pool="gap"), target_scale=(0.01, 0.02)).init(KEY, IMAGE), "do not fit 4 x 4 patches"),
        (lambda: Lejepa(vit(), weight=1.0), "task.weight=1.0"),
        (lambda: Ibot(vit(), mask_ratio=(0.5, 0.1)), "the smaller share first"),
        (lambda: DinoV2(vit(), koleo_weight=-1.0), "task.koleo_weight is -1.0"),
        (lambda: Gram(every=0), "task.gram"),
    ],
)  # fmt: skip
def test_mistakes_get_a_message(wrong, says):
    with pytest.raises(UserError, match=says):
        wrong()


def test_the_part_encoded_has_features_and_patches():
    task = Dino(vit(), outputs=6, hidden=8, bottleneck=4)
    found = jax.jit(task.encode)(begun(task, VIEWS), VIEWED["views"])
    assert isinstance(found, EncodedViews)
    assert found.features.shape == (4, 2, 8)
    assert found.tokens.shape == (4, 2, 16, 8)


def test_learned_positions_are_interpolated_for_small_crops():
    """The small crops are 2 x 2 patches of 4 pixels, the views and the table 4 x 4."""
    task = Dino(vit(posemb="learn", posemb_grid=(4, 4)), outputs=6, hidden=8, bottleneck=4)
    params = perturbed(begun(task, VIEWS))
    assert params["backbone"]["posemb"]["table"].shape == (1, 1 + 16, 8)
    grads = jax.jit(jax.grad(lambda p: task.loss(p, task.init_state(params), VIEWED, KEY)[0]))(params)
    assert np.isfinite(trees.global_norm(grads))
    assert np.asarray(grads["backbone"]["posemb"]["table"]).any(axis=(0, 2)).all()
    plain = Dino(vit(posemb="learn"), outputs=6, hidden=8, bottleneck=4)
    with pytest.raises(UserError, match=r"17 tokens; found an image of 5.*posemb_grid"):
        jax.eval_shape(lambda: plain.loss(params, plain.init_state(params), VIEWED, KEY))


@pytest.mark.parametrize("cls", sampled([Mae, Ijepa, Ibot, Simmim], Ijepa, Ibot))
def test_a_network_with_rotary_positions_learns_without_labels(cls):
    rope = build({"type": "Axial"}, "model.rope")
    model = vit(rope=rope, pool="tok" if cls is Ibot else "gap", mask_token=cls in (Ibot, Simmim), num_heads=1)
    options = {Mae: {"decoder_width": 8, "decoder_heads": 2, "decoder_depth": 1}, Simmim: {"unit": 1}}.get(cls, {})
    small = {"predictor_width": 8, "predictor_depth": 1, "predictor_heads": 2}
    heads = {"outputs": 6, "hidden": 8, "bottleneck": 4, "smallest_block": 1}
    task = cls(model, **options, **(small if cls is Ijepa else heads if cls is Ibot else {}))
    spec, examples = (VIEWS, VIEWED) if cls is Ibot else (IMAGE, IMAGES)
    params = begun(task, spec)
    batch = jax.jit(task.prepare)(examples, KEY, {})
    loss, grads = jax.jit(jax.value_and_grad(lambda p: task.loss(p, task.init_state(params), batch, KEY)[0]))(params)
    assert np.isfinite(loss)
    assert trees.global_norm(grads) > 0
