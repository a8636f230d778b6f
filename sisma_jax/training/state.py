"""The state of a run, its optimizer, and one step.

Everything random in a step is drawn from (seed, step), so the state at a step and the data position
(the same number) determine all that follows.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from sisma_jax.errors import InputError

MUON_RMS = 0.2
"""Size of Muon's updates over the learning rate: about AdamW's, so that one rate fits both."""

Params = dict[str, Any]
Metrics = dict[str, Float[Array, ""]]
MatrixAxes = Callable[[Any, Array], tuple[tuple[int, ...], tuple[int, ...]] | None]
"""(path, parameter) -> the axes that a linear map sums over and those it gives, or None."""
LossFn = Callable[..., tuple[Float[Array, ""], Metrics]]
"""(params, batch, key, *constants) -> (loss, metrics)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The config's section `train`."""

    steps: int
    batch_size: int
    """Of all devices and hosts together."""
    optimizer: str
    """"adamw", or "muon": matrices by orthogonalised momentum (Jordan et al. 2024), the rest by
    AdamW; further along after few steps."""
    learning_rate: float
    warmup: int
    schedule: str
    """After the warm-up: "constant", or "cosine" down to 5 % at the last step."""
    weight_decay: float
    clip: float
    """Largest global norm of the gradient."""
    ema_decay: float
    """The limit of the running average's decay; it starts at 1/10 and grows with the steps."""
    init_from: str
    """A run folder whose weights a new run starts from; "" for new weights."""
    log_every: int
    sample_every: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "sample_every"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} is {getattr(self, name)}: set at least 1")
        if self.optimizer not in ("adamw", "muon"):
            raise InputError(f"train.optimizer is {self.optimizer!r}: choose 'adamw' or 'muon'")
        if self.schedule not in ("constant", "cosine"):
            raise InputError(f"train.schedule is {self.schedule!r}: choose 'constant' or 'cosine'")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"train.ema_decay is {self.ema_decay}: choose a number in [0, 1)")
        if self.learning_rate <= 0 or self.clip <= 0:
            raise InputError(
                f"train.learning_rate is {self.learning_rate} and train.clip {self.clip}: "
                "both have to be positive"
            )


@flax.struct.dataclass
class TrainState:
    """All that a step changes; also as a tree of shapes or shardings, hence the loose types."""

    step: Any
    """int32 scalar: steps done."""
    params: Params
    ema: Params
    opt_state: optax.OptState


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then constant or a cosine to 5 %."""
    peak = config.learning_rate
    if config.schedule == "constant":
        return optax.linear_schedule(0.0, peak, config.warmup) if config.warmup else lambda _: peak
    steps = max(config.steps, config.warmup + 1)
    return optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup, steps, 0.05 * peak)


def make_optimizer(config: TrainConfig, matrix_axes: MatrixAxes) -> optax.GradientTransformation:
    """AdamW, or Muon for the matrices and AdamW for the rest, behind a clip of the global norm.

    Weight decay touches matrices only.
    """
    rate = learning_rate(config)
    is_matrix = lambda path, leaf: matrix_axes(path, leaf) is not None
    decayed = partial(jax.tree_util.tree_map_with_path, is_matrix)
    if config.optimizer == "adamw":
        optimizer = optax.adamw(rate, weight_decay=config.weight_decay, mask=decayed)
    else:

        def dimensions(path: Any, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
            axes = matrix_axes(path, leaf)
            return axes and optax.contrib.MuonDimensionNumbers(*axes)

        optimizer = optax.contrib.muon(
            rate,
            consistent_rms=MUON_RMS,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=partial(jax.tree_util.tree_map_with_path, dimensions),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), optimizer)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state at step 0. The average starts as the weights themselves."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def ema_decay(limit: float, step: Int32[Array, ""]) -> Float[Array, ""]:
    """min(limit, (1 + step) / (10 + step)): an average that forgets its first values soon."""
    step = step.astype(jnp.float32)
    return jnp.minimum(limit, (1 + step) / (10 + step))


def make_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, config: TrainConfig, seed: int
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return (state, batch, *constants) -> (state, metrics), to be compiled by the loop."""
    schedule = learning_rate(config)

    def step(state: TrainState, batch: dict[str, Array], *constants: Any) -> tuple:
        key: PRNGKeyArray = jax.random.fold_in(jax.random.key(seed), state.step)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = grad_fn(state.params, batch, key, *constants)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = 1 - ema_decay(config.ema_decay, state.step)
        metrics = metrics | {
            "loss": loss,
            "gradient_norm": optax.global_norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        ema = optax.incremental_update(params, state.ema, rate)
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return step
