"""The loss on held-out items by training time, at noise that belongs to the item.

The same weights always get the same numbers, whatever the batch size and the devices, so that
the curve of a run shows the weights and not the draws.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from sisma_jax.data.input_pipeline import Source, items
from sisma_jax.errors import InputError
from sisma_jax.generators import Config
from sisma_jax.models.autoencoder import Autoencoder
from sisma_jax.training.objective import latent_noise, latents_of, losses, nothing_dropped
from sisma_jax.training.sharding import put_batch, replicated, row_share, under_mesh
from sisma_jax.training.state import Params

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it modulo 1 cover every bin evenly, however many items there are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The config's section `evaluation`: what training measures of its averaged weights."""

    every: int
    """Steps between two evaluations; 0 for none."""
    items: int
    """Items of the test split that the loss is taken of."""
    bins: int
    """Equal parts of the training time in [0, 1] that the loss is taken of one by one."""
    hook: str
    """"module:function" to call with (synthesizer, test split) for further metrics; "" for none."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise InputError(
                f"evaluation.every is {self.every}: set a number of steps, or 0 for no evaluation"
            )
        for name in ("items", "bins"):
            if getattr(self, name) < 1:
                raise InputError(f"evaluation.{name} is {getattr(self, name)}: set at least 1")


def held_out_loss(
    config: Config,
    settings: EvaluationConfig,
    source: Source,
    autoencoder: Autoencoder,
    mesh: Mesh,
    batch_size: int,
) -> Callable[[Params], dict[str, float]]:
    """Return weights -> {"test_loss": mean over all times, "test_loss/0.0-0.2": ..., ...}.

    Args:
      config: of the generator. With a style, each face is made in its own.
      settings: how many items and bins; all items of a smaller source.
      source: the test split.
      autoencoder: see `objective.latents_of`.
      mesh: all devices; every process has to call the result.
      batch_size: items at a time, over all devices, which divide it.
    """
    count, bins = min(settings.items, len(source)), settings.bins
    place, sharers = row_share(mesh)
    rows = batch_size // sharers

    @partial(jax.jit, out_shardings=replicated(mesh))
    def sums(params: Params, batch: dict[str, Array], autoencoder: Autoencoder) -> Array:
        index, weight = batch.pop("index"), batch.pop("weight")
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(index)
        noise = jax.vmap(lambda key: latent_noise(config, key, 1))(keys)
        batch |= {name: x[:, 0] for name, x in noise.items()}
        batch |= nothing_dropped(config, len(index))
        latents = latents_of(batch, autoencoder)
        within = index.astype(jnp.float32) * GOLDEN % 1.0

        def of_bin(k: Array) -> Array:
            time = (k.astype(jnp.float32) + within) / bins
            of_rows = losses(params, latents, batch | {"time": time}, config=config)
            return jnp.sum(weight * of_rows)

        return jax.lax.map(of_bin, jnp.arange(bins))

    sums = under_mesh(mesh, sums)

    def read(start: int) -> dict[str, np.ndarray]:
        """This process's rows of the items from `start` on; past the last they weigh nothing."""
        index = start + place * rows + np.arange(rows)
        batch: dict[str, Any] = items(source, np.minimum(index, count - 1).tolist())
        return batch | {
            "index": index.astype(np.int32),
            "weight": (index < count).astype(np.float32),
        }

    names = [f"test_loss/{k / bins:.2g}-{(k + 1) / bins:.2g}" for k in range(bins)]

    def evaluate(params: Params) -> dict[str, float]:
        total = np.zeros(bins)
        for start in range(0, count, batch_size):
            total += np.asarray(sums(params, put_batch(read(start), mesh), autoencoder))
        by_bin = total / count
        return {"test_loss": float(by_bin.mean()), **dict(zip(names, by_bin.tolist(), strict=True))}

    return evaluate
