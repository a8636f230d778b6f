"""The networks: SISMA, the models it is compared with, their autoencoder, and judges."""

from sisma_jax.models.sisma import SISMA
from sisma_jax.models.sisma_config import SISMAConfig

__all__ = ["SISMA", "SISMAConfig"]
