"""The networks: SISMA and its parts, and the autoencoder whose latents it works on."""

from sisma_jax.models.sisma import SISMA
from sisma_jax.models.sisma_config import SISMAConfig

__all__ = ["SISMA", "SISMAConfig"]
