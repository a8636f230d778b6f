"""Style tokens of many faces, computed in batches on all local devices."""

from functools import partial

import jax
import numpy as np
from jaxtyping import Float, UInt8, UInt32

from sisma_jax.devices.sharding import chunks, local_mesh, under_mesh
from sisma_jax.models.generators import Config, Params
from sisma_jax.synthesis.programs import encode_style, noise_keys, random_style
from sisma_jax.synthesis.soft_masks import SoftMasks


def reference_tokens(
    config: Config,
    params: Params,
    images: UInt8[np.ndarray, "n H W 3"],
    labels: UInt8[np.ndarray, "n H W"],
    size: int,
) -> list[Float[np.ndarray, "_ k token"]]:
    """Return the tokens of reference faces and their masks, in batches of `size` faces."""
    mesh = local_mesh()
    encode = partial(under_mesh(mesh, encode_style), config, params)
    return [
        np.asarray(encode(*placed))[:count] for placed, count in chunks(size, mesh, images, labels)
    ]


def random_tokens(
    config: Config,
    params: Params,
    labels: UInt8[np.ndarray, "n H W"] | SoftMasks,
    seed: int | UInt32[np.ndarray, "..."],
    size: int,
) -> Float[np.ndarray, "n k token"]:
    """Return tokens from noise for masks, `size` masks at a time; zeros for classes that a mask
    does not have. The noise is that of (seed, index), as in `noise_keys`."""
    mesh, tokens = local_mesh(), []
    draw = partial(under_mesh(mesh, random_style), config, params)
    keys = np.asarray(jax.random.key_data(noise_keys(seed, 0, len(labels))))
    arrays, tree = jax.tree.flatten((keys, labels))
    for batch, count in chunks(size, mesh, *arrays):
        of_rows, masks = jax.tree.unflatten(tree, batch)
        tokens.append(np.asarray(draw(jax.random.wrap_key_data(of_rows), masks))[:count])
    return np.concatenate(tokens)
