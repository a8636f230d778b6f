"""Compiled programs kept on the disk, for the next start."""

import hashlib
import os
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Enable JAX's persistent compilation cache, unless one is configured already.

    It is in the user's cache folder, on CPUs in one folder per set of CPU features, because
    programs compiled for one CPU may use instructions that another lacks.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = jax.default_backend()
    if kind == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text("utf-8").splitlines() if info.exists() else []
        features = next((x for x in lines if x.startswith(("flags", "Features"))), "")
        kind += "-" + hashlib.sha256(features.encode()).hexdigest()[:8]
    jax.config.update("jax_compilation_cache_dir", str(cache / "sisma_jax" / kind))
