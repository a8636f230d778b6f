"""What a block keeps for its backward pass with each `remat`.

Results are kept by name. What has none is recomputed: norms, activations, gates, the depthwise
convolution, and delta from its low-rank form, whose matrix product is cheap and its result wide.
"""

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from sisma_jax.kernels.selective_scan import CHECKPOINTS
from sisma_jax.models.layers.depthwise_conv import ON_CPU

PROJECTED = "projected"
"""The result of a linear map."""
MIXED = "mixed"
"""The result of a scan or an attention."""

_only = jax.checkpoint_policies.save_only_these_names
POLICIES = {
    "names": _only(PROJECTED, MIXED, CHECKPOINTS, ON_CPU),
    "dots": _only(PROJECTED),
    "block": None,
}
"""The policies of `jax.checkpoint` by `SISMAConfig.remat`."""


def projected(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return checkpoint_name(x, PROJECTED)


def mixed(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return checkpoint_name(x, MIXED)
