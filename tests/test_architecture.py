"""Imports go strictly down the floors of the house, and each third party has one home."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vit_jax"
FLOORS = [
    {
        "types",
        "trees",
        "sharding",
        "config",
        "xla_env",
        "distributed",
        "chips",
        "flops",
        "stores",
        "printable",
        "interrupts",
        "peers",
    },
    {"layers"},
    {"models", "data", "optim", "grads", "pretrained"},
    {"checkpoint"},
    {"tasks"},
    {"evals", "viz", "inference"},
    {"train"},
    {"perf", "runs", "explain"},
    {"search", "export"},
    {"serve"},
    {"cli"},
    {"main", "__main__"},
]
# Inside the ground floor: who may know whom.
GROUND = {
    "xla_env": set(),
    "types": set(),
    "interrupts": set(),
    "peers": set(),
    "trees": set(),
    "sharding": {"types", "trees"},
    "distributed": {"types", "peers"},
    "chips": set(),
    "flops": set(),
    "stores": {"types"},
    "printable": set(),
    "config": {"types"},
}
HOMES = {
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "simplejpeg": {"data"},
    "cykooz_resizer": {"data"},
    "array_record": {"data"},
    "tokenizers": {"data"},
    "sentencepiece": {"data"},
    "ftfy": {"data"},
    "pyarrow": {"data"},
    "google_crc32c": {"data"},
    "sklearn": {"data", "evals"},
    "orbax": {"checkpoint"},
    "etils": {"checkpoint"},
    "fsspec": {"stores"},
    "safetensors": {"pretrained"},
    "huggingface_hub": {"pretrained"},
    "torch": {"pretrained", "cli", "perf"},  # to read .pth; the check of convert; a peer in speed
    "timm": {"cli", "perf"},
    "transformers": {"cli"},
    "jax2onnx": {"export"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "usearch": {"search"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "python_multipart": {"serve"},
    "ray": {"runs"},
    "matplotlib": {"viz"},
    "pycocotools": {"evals"},
    "tifffile": {"data"},
    "tensorboardX": {"train"},
    "optuna": {"runs"},
    "wandb": {"train"},
    "rich": {"cli", "runs", "train"},
    "scipy": {"data", "evals", "runs", "explain", "checkpoint"},
    "ml_collections": {"config", "train"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "vit_jax":
            yield from (f"vit_jax.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "vit_jax" and len(parts) > 1 and parts[1] != here:
            if here in GROUND:
                assert parts[1] in GROUND[here]
            else:
                assert floor(parts[1]) < floor(here), f"{here} imports {name}"
        for library, homes in HOMES.items():
            if parts[0] == library:
                assert here in homes, f"{here} imports {library}"


def test_configs_import_ml_collections_and_configs_alone():
    for path in (PACKAGE.parent / "configs").glob("*.py"):
        # The keys and their defaults are the package's.
        allowed = {"vit_jax.config"} if path.name == "common.py" else {"ml_collections", "configs"}
        assert {name if name.startswith("vit_jax") else name.split(".")[0] for name in imports(path)} <= allowed | {
            "ml_collections"
        }


def test_files_and_functions_are_short():
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert len(path.read_text().splitlines()) <= 500, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 70, f"{path}:{node.name}"


def test_models_and_step_need_only_jax_and_flax():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("grain", "tensorflow_datasets", "PIL", "simplejpeg", "cykooz_resizer", "sklearn", "orbax", "ml_collections"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import vit_jax.models.vit, vit_jax.train.step, vit_jax.tasks.classify, vit_jax.grads.accumulate
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_libraries_formats_are_imported_when_a_reference_needs_them():
    code = """
import sys
import vit_jax.main, vit_jax.__main__, vit_jax.inference, vit_jax.train.step
loaded = {name for name in sys.modules if name.startswith("vit_jax.pretrained.")}
assert loaded <= {f"vit_jax.pretrained.{name}" for name in ("pretrained", "reference")}, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_imports_every_command_without_jax():
    code = "import sys; from vit_jax.__main__ import main; main(['--help']); sys.exit(bool({'jax', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_training_starts_without_what_it_needs_at_its_end():
    code = "import sys, vit_jax.main; sys.exit(bool({'matplotlib', 'scipy.interpolate', 'sklearn', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
