"""What is compiled is kept, so that a program that was compiled before begins at once."""

import hashlib
import os
import platform
from pathlib import Path

import jax

# What JAX itself reads; empty for no cache.
FOLDER = "JAX_COMPILATION_CACHE_DIR"
MOST_BYTES = 4 * 2**30


def use_cache() -> None:
    """Keeps compiled programs in the folder that FOLDER names, by default in ~/.cache/vit_jax, the latest 4 GiB of them."""
    if FOLDER in os.environ:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "vit_jax" / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # without a home there is no cache, which costs time alone
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)


def _processor() -> str:
    """A name for the kind of this machine's CPU: a home may be shared by machines that cannot run each other's code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        kind = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
