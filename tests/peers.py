"""Other libraries that the tests compare with; they are the extra `parity`."""

import warnings

import torch

# torchvision's wheels are built for CUDA; on a torch without it their operators are missing, though nothing here calls them.
_library = torch.library.Library("torchvision", "DEF")
for _name in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor a, Tensor b, float c) -> Tensor",
):
    _library.define(_name)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm
    import torchvision.transforms
    import transformers

torch.set_num_threads(1)

__all__ = ["timm", "torch", "torchvision", "transformers"]
