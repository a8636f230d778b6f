"""Compiled programs that are kept."""

import jax
import pytest

from sisma_jax.devices.compilation_cache import keep_compiled_programs


@pytest.fixture
def no_cache():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_in_the_users_cache(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled_programs()
    folder = jax.config.jax_compilation_cache_dir
    assert folder.startswith(f"{tmp_path}/sisma_jax/cpu-")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    keep_compiled_programs()  # now it is told where
    assert jax.config.jax_compilation_cache_dir == folder
