"""SISMA: semantic face image synthesis with Mamba, in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sisma_jax.synthesizer import Synthesizer

__all__ = ["Synthesizer"]


def __getattr__(name: str) -> Any:
    # Data commands start worker processes, which should not wait for JAX.
    if name == "Synthesizer":
        from sisma_jax.synthesizer import Synthesizer

        return Synthesizer
    if name == "__version__":
        from importlib.metadata import version

        return version("sisma_jax")  # of pyproject.toml
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
