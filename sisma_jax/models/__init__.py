"""The networks: SISMA, the models it is compared with, their autoencoder, and judges."""

from sisma_jax.models.sisma.config import SISMAConfig
from sisma_jax.models.sisma.model import SISMA

__all__ = ["SISMA", "SISMAConfig"]
