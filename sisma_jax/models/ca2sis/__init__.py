"""CA2-SIS, a generator that draws a face from a mask and a style in one pass."""

from sisma_jax.models.ca2sis.config import CA2SISConfig
from sisma_jax.models.ca2sis.model import CA2SIS
from sisma_jax.models.ca2sis.published import from_torch, load_published

__all__ = ["CA2SIS", "CA2SISConfig", "from_torch", "load_published"]
