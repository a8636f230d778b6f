"""SISMA: semantic face image synthesis with Mamba, in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sisma_jax.synthesis.synthesizer import Synthesizer

__all__ = ["Synthesizer"]


def __getattr__(name: str) -> Any:
    # Lazy: the worker processes of data commands do not need JAX.
    if name == "Synthesizer":
        from sisma_jax.synthesis.synthesizer import Synthesizer

        return Synthesizer
    if name == "__version__":
        from importlib.metadata import version

        return version("sisma_jax")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
