"""A small model to look inside, and the same network in torch and float64 with the attention and its gradients."""

import jax
import numpy as np
import torch

from vit_jax import inference
from vit_jax.config.factory import build_task
from vit_jax.explain.network import Network

SIZE, CLASSES = 16, ("cat", "dog", "$\\frac", "été", "<b>")


def random_params(shapes, seed=0):
    """Parameters with no leaf at its default."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), shapes)


def network(model=None, classes=CLASSES, task="classify.Classify", **fields) -> Network:
    spec = {"image": jax.ShapeDtypeStruct((SIZE, SIZE, 3), "uint8")}
    vit = {"type": "vit.ViT", "width": 8, "depth": 3, "mlp_dim": 16, "num_heads": 2, "patch_size": 4}
    model = (model or vit) | fields
    made = build_task({"type": task}, model, class_names=classes, spec=spec)
    params = random_params(jax.eval_shape(lambda: made.init(jax.random.key(0), spec)))
    loaded = inference.Loaded(model, made, {"params": params}, f"resize({SIZE})", (SIZE, SIZE, 3), classes)
    return Network("model", loaded)


def images(count=3, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


class Traced:
    """The forward pass of `network` for a class token or averaged patches, written from arXiv:2010.11929, with its gradients."""

    def __init__(self, net: Network, pixels, targets, block: int):
        flat = {k: torch.tensor(np.asarray(v, np.float64)) for k, v in net.loaded.arrays.items()}
        stride = net.module.stride or net.module.patch_size
        x = torch.tensor(pixels.astype(np.float64) / 255 * 2 - 1).permute(0, 3, 1, 2)
        x = torch.nn.functional.conv2d(x, flat["embed/kernel"].permute(3, 2, 0, 1), flat["embed/bias"], stride=stride)
        x = x.flatten(2).transpose(1, 2)
        if "cls" in flat:
            x = torch.cat([flat["cls"].expand(len(x), -1, -1), x], dim=1)
        x = x + flat["posemb/table"]
        self.weights = []

        def norm(x, name):
            return torch.nn.functional.layer_norm(x, x.shape[-1:], flat[f"{name}/scale"], flat[f"{name}/bias"], 1e-6)

        for i in range(net.module.depth):
            at = f"encoder/block_{i}"
            y = norm(x, f"{at}/norm1")
            q, k, v = (
                torch.einsum("bnd,dkh->bknh", y, flat[f"{at}/attn/{n}/kernel"])
                + flat[f"{at}/attn/{n}/bias"][None, :, None]
                for n in ("query", "key", "value")
            )
            a = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)
            a.requires_grad_(True)
            a.retain_grad()
            self.weights.append(a)
            x = x + torch.einsum("bknh,khd->bnd", a @ v, flat[f"{at}/attn/out/kernel"]) + flat[f"{at}/attn/out/bias"]
            y = norm(x, f"{at}/norm2") @ flat[f"{at}/mlp/up/kernel"] + flat[f"{at}/mlp/up/bias"]
            y = torch.nn.functional.gelu(y, approximate="tanh")
            x = x + y @ flat[f"{at}/mlp/down/kernel"] + flat[f"{at}/mlp/down/bias"]
            if i == block:
                x.retain_grad()
                tokens = x
        x = norm(x, "encoder/norm")
        pooled = x[:, 0] if "cls" in flat else x.mean(dim=1)
        logits = pooled @ flat["head/kernel"] + flat["head/bias"]
        logits[torch.arange(len(x)), torch.tensor(targets).long()].sum().backward()
        self.gradients = [a.grad for a in self.weights]
        self.tokens, self.token_gradients = tokens.detach().numpy(), tokens.grad.numpy()
        self.weights = [a.detach().numpy() for a in self.weights]
        self.gradients = [g.numpy() for g in self.gradients]
        self.prefix = int("cls" in flat)
