"""The loss on held-out items by intervals of the flow time, with noise determined by the item.

The same weights always give the same numbers, for any batch size and any devices, so the curve of a
run shows changes of the weights and no random draws.
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

from sisma_jax.common.config import check_least
from sisma_jax.common.errors import InputError
from sisma_jax.data.input_pipeline import Source, items
from sisma_jax.devices.sharding import put_batch, replicated, row_share, under_mesh
from sisma_jax.flows import rectified
from sisma_jax.models.autoencoder import Autoencoder
from sisma_jax.models.generators import Config
from sisma_jax.runs.state import Params
from sisma_jax.training.objective import latent_noise, latents_of, losses, nothing_dropped

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples modulo 1 cover [0, 1] evenly for any number of items."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The config's section `evaluation`, for metrics of the averaged weights during training."""

    every: int
    """Steps between two evaluations; 0 for none."""
    items: int
    """Number of items of the test split that the loss is computed on."""
    bins: int
    """Number of equal intervals of training time [0, 1] with a loss each."""
    hook: str
    """"module:function", called with (synthesizer, test split) for further metrics; "" for none."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise InputError(
                f"evaluation.every is {self.every}: set a number of steps, or 0 for no evaluation"
            )
        check_least(self, "evaluation", 1, "items", "bins")


def held_out_loss(
    config: Config,
    settings: EvaluationConfig,
    source: Source,
    autoencoder: Autoencoder,
    mesh: Mesh,
    batch_size: int,
    *,
    sampling: str = "uniform",
    style: bool = True,
) -> Callable[..., dict[str, float]]:
    """Return weights -> {"test_loss": mean over all times, "test_loss/0.0-0.2": ..., ...}.

    The result also takes `shift`: with 1, each face is given the mask of the item before it, and
    the loss shows how much depends on the mask.

    Args:
      config: configuration of the generator.
      settings: numbers of items and bins; all items if the source has fewer.
      source: the test split.
      autoencoder: see `objective.latents_of`.
      mesh: all devices; every process must call the result.
      batch_size: global batch size, a multiple of the number of devices.
      sampling: distribution of times, as in `FlowConfig`; the bins are intervals of its quantiles.
      style: whether each face has its own style, in a model with style conditioning; otherwise none
        has a style.
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
        batch |= nothing_dropped(config, len(index), style=style)
        latents = latents_of(batch, autoencoder)
        within = index.astype(jnp.float32) * GOLDEN % 1.0

        def of_bin(k: Array) -> Array:
            time = rectified.time_at((k.astype(jnp.float32) + within) / bins, sampling)
            of_rows = losses(params, latents, batch | {"time": time}, config=config)
            return jnp.sum(weight * of_rows)

        return jax.lax.map(of_bin, jnp.arange(bins))

    sums = under_mesh(mesh, sums)

    def read(start: int, shift: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch at `start`; rows past the last item have weight 0."""
        index = start + place * rows + np.arange(rows)
        own = np.minimum(index, count - 1)
        batch: dict[str, Any] = items(source, own.tolist())
        if shift:
            batch["labels"] = items(source, ((own - shift) % count).tolist())["labels"]
        return batch | {
            "index": index.astype(np.int32),
            "weight": (index < count).astype(np.float32),
        }

    names = [f"test_loss/{k / bins:.2g}-{(k + 1) / bins:.2g}" for k in range(bins)]

    def evaluate(params: Params, shift: int = 0) -> dict[str, float]:
        total = np.zeros(bins)
        for start in range(0, count, batch_size):
            total += np.asarray(sums(params, put_batch(read(start, shift), mesh), autoencoder))
        by_bin = total / count
        return {"test_loss": float(by_bin.mean()), **dict(zip(names, by_bin.tolist(), strict=True))}

    return evaluate
