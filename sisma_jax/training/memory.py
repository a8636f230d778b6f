"""The device memory that a training step needs, estimated before data are opened.

The step is not compiled for it, only traced. Its peak is estimated as

    state + activations + one block's intermediates + the sum of gradients

where the activations are what the forward pass keeps for the backward pass (the residuals of
`jax.vjp`), and the last term is for accumulation only. The gradients themselves need as much as the
parameters, which are among the residuals. With `model.remat` the backward pass recomputes one block
at a time, of which about INTERMEDIATE exist at once. Beside the plans of `large` at batch 64, which
XLA made for an H200 (`benchmarks/plan_bench.py`), the estimates are off by 7 % at most.

Encoding images by the autoencoder in every step is not included.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sisma_jax.common.errors import InputError
from sisma_jax.devices.sharding import state_shardings
from sisma_jax.devices.throughput import memory_limit
from sisma_jax.kernels.selective_scan.api import best_implementation
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sisma_jax.models.generators import Config, generator
from sisma_jax.training.objective import FlowConfig, draw, mean_loss
from sisma_jax.training.state import TrainConfig, init_state, make_optimizer

INTERMEDIATE = 0.35
"""Share of what a block recomputes that exists at once; fitted to the plans of `large`."""

CERTAIN = 0.9
"""A step is refused if this share of its estimate exceeds the memory."""


@dataclasses.dataclass(frozen=True)
class Needs:
    """Bytes on each device."""

    state: int
    """Parameters, their average and the optimizer's moments."""
    parameters: int
    accumulated: int
    """The sum of gradients with `train.accumulate`."""
    rows: int
    """Images that are computed at once."""
    activations: int
    """What is kept for the backward pass of these images, and the gradients."""

    @property
    def total(self) -> int:
        return self.state + self.accumulated + self.activations

    def with_rows(self, rows: int) -> "Needs":
        """The same step in more parts; what is not of the parameters is proportional to rows."""
        own = (self.activations - self.parameters) * rows // self.rows
        return dataclasses.replace(
            self, rows=rows, accumulated=self.parameters, activations=own + self.parameters
        )


def estimate(model: Config, flow_config: FlowConfig, config: TrainConfig, mesh: Mesh) -> Needs:
    """Estimate what a device of `mesh` needs for a step."""
    optimizer = make_optimizer(config, generator(model).matrix_axes)
    init = lambda: init_state(generator(model).init_params(jax.random.key(0)), optimizer)
    state = jax.eval_shape(init)
    shardings = state_shardings(state, mesh)
    own = jax.tree.map(
        lambda x, sharding: prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize, state, shardings
    )
    rows = config.batch_size // (mesh.size * config.accumulate)
    kept = partial(_residuals, params=state.params, flow_config=flow_config, rows=rows)
    if isinstance(model, SISMAConfig) and model.scan == "auto":
        # The default has residuals for all platforms until it is compiled.
        model = dataclasses.replace(model, scan=best_implementation(model.state))
    activations = kept(model)
    if getattr(model, "remat", "none") != "none":
        recomputed = kept(dataclasses.replace(model, remat="none")) - activations
        activations += round(INTERMEDIATE * recomputed / model.depth)
    parameters = _bytes(jax.tree.leaves(state.params))
    return Needs(
        state=sum(jax.tree.leaves(own)),
        parameters=parameters,
        accumulated=parameters if config.accumulate > 1 else 0,
        rows=rows,
        activations=activations,
    )


def check_memory(model: Config, flow_config: FlowConfig, config: TrainConfig, mesh: Mesh) -> None:
    """Refuse a step that the local devices' memory cannot hold, where they report its size.

    Raises:
      InputError: with the estimate, the memory, and what to change.
    """
    limit = memory_limit()
    if limit is None:
        return
    needs = estimate(model, flow_config, config, mesh)
    if CERTAIN * needs.total <= limit:
        return

    def fewest_parts(needs: Needs) -> int | None:
        """The least train.accumulate with which the step fits, above the present one."""
        for parts in range(config.accumulate + 1, config.batch_size // mesh.size + 1):
            rows, rest = divmod(config.batch_size, mesh.size * parts)
            if rest == 0 and needs.with_rows(rows).total <= limit:
                return parts
        return None

    changes = []
    parts = fewest_parts(needs)
    if parts:
        changes.append(f"train.accumulate={parts}")
    if getattr(model, "remat", "block") != "block":
        recomputing = estimate(dataclasses.replace(model, remat="block"), flow_config, config, mesh)
        if recomputing.total <= limit:
            changes.append("model.remat=block")
        elif parts is None and (parts := fewest_parts(recomputing)):
            changes.append(f"train.accumulate={parts} together with model.remat=block")
    smaller = "" if changes else ", or a smaller model"
    changes.append("more devices (mesh.fsdp shards the state)" + smaller)
    raise InputError(
        f"a step of train.batch_size {config.batch_size} needs about {_size(needs.total)} on each "
        f"device ({_size(needs.state)} of state, {_size(needs.total - needs.state)} for "
        f"{needs.rows} images at once), and {jax.local_devices()[0].device_kind} gives JAX "
        f"{_size(limit)}: use " + ", or ".join(changes)
    )


def _residuals(model: Config, *, params: Any, flow_config: FlowConfig, rows: int) -> int:
    """Bytes that the forward pass of `rows` images keeps, among them the parameters."""
    latent, image = (model.latent_size,) * 2, (model.image_size,) * 2
    shape = jax.ShapeDtypeStruct
    batch = {
        "moments": shape((rows, *latent, 2 * model.latent_channels), np.float16),
        "labels": shape((rows, *image), np.uint8),
    }
    if generator(model).has_style:
        batch["image"] = shape((rows, *image, 3), np.uint8)
    sections = dict(config=model, flow_config=flow_config)
    batch |= jax.eval_shape(partial(draw, **sections), jax.random.key(0), batch)
    # For cached latents only its scaling factor is read.
    autoencoder = Autoencoder(AutoencoderConfig.tiny(scaling_factor=1.0), {})

    def forward(params: Any, batch: dict) -> Any:
        loss = lambda params: mean_loss(params, batch, autoencoder, **sections)[0]
        return jax.vjp(loss, params)[1]

    return _bytes(jax.tree.leaves(jax.eval_shape(forward, params, batch)))


def _bytes(leaves: Sequence[Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
