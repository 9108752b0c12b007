"""Run timm as a peer (see perf/peer.py): its VisionTransformer of the same sizes, in torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

# Our field names and timm's.
FIELDS = {
    "width": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "patch_size": "patch_size",
    "registers": "reg_tokens",
    "qk_norm": "qk_norm",
    "qkv_bias": "qkv_bias",
    "layer_scale": "init_values",
    "drop_path": "drop_path_rate",
}
POOLS = {"tok": "token", "gap": "avg", "map": "map"}
_MISSING = torch.library.Library("torchvision", "FRAGMENT")


def eager(**request: Any) -> "Timm":
    """Build timm without compilation."""
    return Timm(**request)


def compiled(**request: Any) -> "Timm":
    """Build timm with torch.compile."""
    return Timm(**request, compile_model=True)


def compiled_channels_last(**request: Any) -> "Timm":
    """Build timm with torch.compile, images and convolution weights in torch's channels_last layout."""
    return Timm(**request, compile_model=True, channels_last=True)


class Timm:
    """Train steps, or predictions, of a random ViT; called with their number.

    A train step is forward, softmax cross-entropy, backward and fused AdamW on one normalised batch on the device,
    without clipping or mixing. A prediction takes uint8 images on the host and returns probabilities there. bfloat16
    uses torch's autocast; on a GPU float32 products may use TF32, as XLA's do.
    """

    def __init__(
        self,
        *,
        training: bool,
        batch_size: int,
        image_shape: tuple[int, int, int],
        num_classes: int,
        model: Mapping[str, Any],
        dtype: str,
        platform: str,
        threads: int,
        compile_model: bool = False,
        channels_last: bool = False,
    ):
        if platform not in ("cpu", "gpu"):
            raise ValueError(f"timm runs on cpu and gpu, not on {platform}")
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("high")
        self._device = torch.device("cuda" if platform == "gpu" else "cpu")
        layout = torch.channels_last if channels_last else torch.contiguous_format
        network = make_model(model, image_shape, num_classes).to(self._device, memory_format=layout)  # type: ignore
        self._autocast, self._layout = dtype == "bfloat16", layout
        self._network: Any = torch.compile(network) if compile_model else network
        rng = np.random.default_rng(0)
        self._bytes = rng.integers(0, 256, (batch_size, *image_shape), np.uint8)
        self._images = self._normalised()
        self._labels = torch.from_numpy(rng.integers(0, num_classes, batch_size)).to(self._device)
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
        network.train(training)
        self._step = self._train if training else self._predict
        how = f"{'torch.compile' if compile_model else 'eager'}{', channels_last' if channels_last else ''}"
        self.about = f"timm {timm_version()}, torch {torch.__version__}, {how}, {dtype}"

    def __call__(self, steps: int) -> None:
        for _ in range(steps):
            self._step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def memory(self) -> int | None:
        """Return the peak bytes of its tensors on the GPU, or None on a CPU."""
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None

    def _normalised(self) -> torch.Tensor:
        images = torch.from_numpy(self._bytes).to(self._device).permute(0, 3, 1, 2).float()
        return ((images / 255 - 0.5) / 0.5).contiguous(memory_format=self._layout)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            return self._network(images)

    def _train(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(self._logits(self._images).float(), self._labels).backward()
        self._optimizer.step()

    def _predict(self) -> None:
        with torch.inference_mode():
            self._logits(self._normalised()).float().softmax(dim=1).cpu().numpy()


def make_model(model: Mapping[str, Any], image_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
    """Return timm's ViT with our fields; raises ValueError for a network that is not a plain ViT."""
    if not {"width", "mlp_dim", "num_heads", "pool"} <= model.keys() or model.get("stem"):
        raise ValueError("it is compared with models of type vit.ViT without a stem only")
    fields = {theirs: model[ours] for ours, theirs in FIELDS.items() if model.get(ours) is not None}
    height, width, channels = image_shape
    return import_timm().models.vision_transformer.VisionTransformer(
        img_size=(height, width),
        in_chans=channels,
        num_classes=num_classes,
        mlp_ratio=model["mlp_dim"] / model["width"],
        class_token=model["pool"] == "tok",
        global_pool=POOLS[model["pool"]],
        act_layer="gelu_tanh" if model.get("mlp") == "gelu_tanh" else "gelu",
        **fields,
    )


def timm_version() -> str:
    """Return timm's version."""
    return import_timm().__version__


def import_timm() -> Any:
    """Return the module timm, also where the installed torchvision does not fit torch."""
    try:
        import timm
    except RuntimeError:
        # torchvision's wheels are built for CUDA; without it some operators, unused here, are missing.
        for name in ("nms(Tensor dets, Tensor scores, float iou_threshold)", "qnms(Tensor a, Tensor b, float c)"):
            _MISSING.define(f"{name} -> Tensor")
        import timm
    return timm
