import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.optim import rules

SHAPES = {
    "block": {
        "attn": {"query": {"kernel": (16, 2, 8), "bias": (2, 8)}, "out": {"kernel": (2, 8, 16)}},
        "mlp": {"up": {"kernel": (16, 64)}},
    },
    "head": {"kernel": (16, 10)},
}
PARAMS = jax.tree.map(jnp.zeros, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
GRADS = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), PARAMS)


def updates(rule):
    return rule.update(GRADS, rule.init(PARAMS), PARAMS)[0]


def test_muon_makes_matrices_nearly_orthogonal_at_the_size_of_adam():
    block = updates(rules.muon(rms=0.2))["block"]
    matrices = {
        "query": block["attn"]["query"]["kernel"].reshape(16, 16),
        "out": block["attn"]["out"]["kernel"].reshape(16, 16),
        "up": block["mlp"]["up"]["kernel"],
    }
    for name, matrix in matrices.items():
        values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * max(matrix.shape) ** 0.5)
        assert 0.6 < values.min() <= values.max() < 1.3, name  # the five iterations end in this band
        assert 0.15 < jnp.sqrt(jnp.square(matrix).mean()) < 0.21, name


def test_the_singular_vectors_are_those_of_the_gradient():
    update = updates(rules.muon())["block"]["mlp"]["up"]["kernel"]
    u, _, vt = np.linalg.svd(GRADS["block"]["mlp"]["up"]["kernel"], full_matrices=False)
    rotated = u.T @ update @ vt.T
    off_diagonal = rotated - np.diag(np.diag(rotated))
    assert np.abs(off_diagonal).max() < 0.02 * np.diag(rotated).min()


def test_everything_else_goes_by_adam():
    ours, adam = updates(rules.muon(b1=0.8, b2=0.9)), updates(rules.adam(b1=0.8, b2=0.9))
    np.testing.assert_allclose(ours["head"]["kernel"], adam["head"]["kernel"])
    np.testing.assert_allclose(ours["block"]["attn"]["query"]["bias"], adam["block"]["attn"]["query"]["bias"])
