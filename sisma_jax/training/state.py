"""The training state, the optimizer, and the training step.

All random numbers of a step are drawn from (seed, step), so the state at a step and the data
position (the same number) determine everything that follows.

A network may have opponents, which are trained against it in the same step: first the network's
gradient is computed and applied, then that of each opponent at the network's new weights, from the
same batch. A step with a loss or gradient that is not finite changes only the counters.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from sisma_jax.common.config import check_choice, check_least
from sisma_jax.common.errors import InputError
from sisma_jax.devices.placement import by_rows
from sisma_jax.runs.state import OpponentState, Params, TrainState

MUON_RMS = 0.2
"""RMS of Muon's updates over the learning rate, about AdamW's, so that one rate fits both."""

Metrics = dict[str, Float[Array, ""]]
MatrixAxes = Callable[[Any, Array], tuple[tuple[int, ...], tuple[int, ...]] | None]
"""(path, parameter) -> (input axes, output axes) of a linear map, or None for other parameters."""
Batch = dict[str, Array]
Draw = Callable[[PRNGKeyArray, Batch], Batch]
"""(key, batch) -> all random numbers that the loss needs, per row of the whole batch."""
LossFn = Callable[..., tuple[Float[Array, ""], Metrics]]
"""(params, batch including its draws, *constants) -> (mean loss, metrics).

With opponents, their states by name come before the constants."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opponent:
    """A network that is trained against another one, with its objective and optimizer."""

    init_params: Callable[[], Params]
    """Returns new weights; traced."""
    init_variables: Callable[[Params], Any]
    """Returns what goes with new weights; see `OpponentState.variables`."""
    advance: Callable[[Params, Any], Any]
    """(params, variables) -> the variables of the next loss in which the network takes part. They
    depend on the weights and not on data, so that accumulation does not change them."""
    optimizer: optax.GradientTransformation
    loss_fn: Callable[..., tuple[Float[Array, ""], Metrics]]
    """(params, batch including its draws, variables, params of the network that it is trained
    against, *constants) -> (mean loss, metrics)."""

    def init(self) -> OpponentState:
        """Return the state at step 0."""
        params = self.init_params()
        return OpponentState(params, self.init_variables(params), self.optimizer.init(params))

    def advanced(self, state: OpponentState) -> OpponentState:
        """Return the state for one more loss."""
        return state.replace(variables=self.advance(state.params, state.variables))


Opponents = Mapping[str, Opponent]
"""Opponents with their names, in the order in which a step updates them."""
NO_OPPONENTS: Opponents = MappingProxyType({})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The config's section `train`."""

    steps: int
    batch_size: int
    """Global batch size, over all devices and hosts."""
    accumulate: int
    """Number of parts of a batch whose gradients are accumulated, to save memory."""
    optimizer: str
    """"adamw", or "muon": orthogonalised momentum (Jordan et al. 2024) for matrices and AdamW for
    the rest; faster in short trainings."""
    learning_rate: float
    warmup: int
    schedule: str
    """Learning rate after the warm-up: "constant", "cosine" decay to 5 % at the last step, or
    "linear" decay to 0 in the second half of the steps, as for GANs."""
    weight_decay: float
    clip: float
    """Global norm to which larger gradients are clipped."""
    ema_decay: float
    """Final decay of the running average; it starts at 1/10 and grows with the steps."""
    init_from: str
    """Run folder whose averaged weights initialise a new run; "" for new weights."""
    skip_limit: int
    """The run stops after this many steps in a row with a loss or gradient that is not finite."""
    log_every: int
    sample_every: int
    profile_at: int
    """First step that `jax.profiler` traces into the run folder's profile/; 0 for none."""
    profile_steps: int
    """Number of traced steps."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the averages of gradients and of their squares."""

    def __post_init__(self) -> None:
        check_least(
            self, "train", 1,
            "steps", "batch_size", "accumulate", "skip_limit", "log_every", "sample_every",
            "profile_steps",
        )  # fmt: skip
        check_least(self, "train", 0, "warmup")
        if self.profile_at < 0:
            raise InputError(
                f"train.profile_at is {self.profile_at}: give a step, or 0 for no trace"
            )
        if self.profile_at > self.steps:
            raise InputError(
                f"train.profile_at is {self.profile_at}, but training ends at step {self.steps}: "
                "give an earlier step, or 0 for no trace"
            )
        check_choice(self, "train", "optimizer", ("adamw", "muon"))
        check_choice(self, "train", "schedule", ("constant", "cosine", "linear"))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"train.betas is {self.betas}: give two numbers in [0, 1)")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"train.ema_decay is {self.ema_decay}: choose a number in [0, 1)")
        if self.learning_rate <= 0 or self.clip <= 0:
            raise InputError(
                f"train.learning_rate is {self.learning_rate} and train.clip {self.clip}: "
                "both must be positive"
            )


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """The schedule: linear warm-up, then what `TrainConfig.schedule` says."""
    peak = config.learning_rate
    warmup = optax.linear_schedule(0.0, peak, config.warmup) if config.warmup else lambda _: peak
    if config.schedule == "constant":
        return warmup
    if config.schedule == "linear":
        half = config.steps // 2
        decay = optax.linear_schedule(peak, 0.0, config.steps - half)
        return lambda step: jnp.minimum(warmup(step), decay(step - half))
    steps = max(config.steps, config.warmup + 1)
    return optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup, steps, 0.05 * peak)


def make_optimizer(config: TrainConfig, matrix_axes: MatrixAxes) -> optax.GradientTransformation:
    """AdamW, or Muon for matrices and AdamW for the rest, after clipping by global norm.

    Weight decay applies to matrices only.
    """
    rate = learning_rate(config)
    is_matrix = lambda path, leaf: matrix_axes(path, leaf) is not None
    decayed = partial(jax.tree_util.tree_map_with_path, is_matrix)
    if config.optimizer == "adamw":
        optimizer = optax.adamw(rate, *config.betas, weight_decay=config.weight_decay, mask=decayed)
    else:

        def dimensions(path: Any, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
            axes = matrix_axes(path, leaf)
            return axes and optax.contrib.MuonDimensionNumbers(*axes)

        optimizer = optax.contrib.muon(
            rate,
            consistent_rms=MUON_RMS,
            adam_b1=config.betas[0],
            adam_b2=config.betas[1],
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=partial(jax.tree_util.tree_map_with_path, dimensions),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), optimizer)


def kernel_axes(path: tuple, leaf: Array) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return (input axes, output axes) of kernels whose last axis is their only output axis, else
    None."""
    last = leaf.ndim - 1
    return (tuple(range(last)), (last,)) if path[-1].key == "kernel" else None


def init_state(
    params: Params, optimizer: optax.GradientTransformation, opponents: Opponents = NO_OPPONENTS
) -> TrainState:
    """Return the state at step 0; the average starts as a copy of the weights."""
    none = jnp.zeros((), jnp.int32)
    return TrainState(
        step=none,
        skipped=none,
        skipped_in_a_row=none,
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        opponents={name: opponent.init() for name, opponent in opponents.items()},
    )


def ema_decay(limit: float, step: Int32[Array, ""]) -> Float[Array, ""]:
    """min(limit, (1 + step) / (10 + step)), so that the average forgets its first values soon."""
    step = step.astype(jnp.float32)
    return jnp.minimum(limit, (1 + step) / (10 + step))


def make_step(
    loss_fn: LossFn,
    draw: Draw,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    seed: int,
    opponents: Opponents = NO_OPPONENTS,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return (state, batch, *constants) -> (state, metrics), to be compiled by the loop."""
    schedule = learning_rate(config)

    def step(state: TrainState, batch: Batch, *constants: Any) -> tuple[TrainState, Metrics]:
        key: PRNGKeyArray = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = batch | by_rows(draw(key, batch))
        others = {name: one.advanced(state.opponents[name]) for name, one in opponents.items()}
        inputs = (others, *constants) if others else constants
        (loss, metrics), grads = _mean_gradient(loss_fn, config.accumulate)(
            state.params, batch, *inputs
        )
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        for name, opponent in opponents.items():
            others[name], its_loss, its_norm, its_metrics = _opponent_step(
                opponent, config.accumulate, others[name], batch, params, *constants
            )
            finite &= jnp.isfinite(its_loss) & jnp.isfinite(its_norm)
            metrics |= its_metrics | {f"{name}_loss": its_loss, f"{name}_gradient_norm": its_norm}
        # After skip_limit skipped steps in a row nothing changes any more, so that the loop, which
        # reads metrics later, still finds the state before the first of them.
        good = finite & (state.skipped_in_a_row < config.skip_limit)
        applied = state.step - state.skipped
        ema = optax.incremental_update(params, state.ema, 1 - ema_decay(config.ema_decay, applied))
        kept = lambda new, old: jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        skipped = 1 - good.astype(jnp.int32)
        new = TrainState(
            step=state.step + 1,
            skipped=state.skipped + skipped,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
            params=kept(params, state.params),
            ema=kept(ema, state.ema),
            opt_state=kept(opt_state, state.opt_state),
            opponents=kept(others, state.opponents),
        )
        return new, metrics | {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(schedule(applied), jnp.float32),
            "skipped": skipped,
            "skipped_in_a_row": new.skipped_in_a_row,
        }

    return step


def _opponent_step(
    opponent: Opponent,
    accumulate: int,
    state: OpponentState,
    batch: Batch,
    against: Params,
    *constants: Any,
) -> tuple[OpponentState, Array, Array, Metrics]:
    """One step of an opponent of a network with the weights `against`.

    Returns:
      The new state, the loss, the norm of its gradient, and further metrics.
    """
    state = opponent.advanced(state)
    (loss, metrics), grads = _mean_gradient(opponent.loss_fn, accumulate)(
        state.params, batch, state.variables, against, *constants
    )
    updates, opt_state = opponent.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = state.replace(params=params, opt_state=opt_state)
    return new, loss, optax.tree.norm(grads), metrics


def _mean_gradient(loss_fn: Callable, accumulate: int) -> Callable[..., tuple]:
    """(params, batch, *constants) -> ((loss, metrics), gradients), means over the batch's parts."""
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        return grad_fn

    def mean_gradient(params: Params, batch: Batch, *constants: Any) -> tuple:
        parts = split_rows(batch, accumulate)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(grad_fn, params, first, *constants)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            one = grad_fn(params, part, *constants)
            return jax.tree.map(lambda a, b: a + b / accumulate, total, one), None

        return jax.lax.scan(add, zeros, parts)[0]

    return mean_gradient


def split_rows(batch: Batch, parts: int) -> Batch:
    """(rows, ...) -> (parts, rows / parts, ...), with every part sharded over all devices.

    Rows do not move between devices: each part has rows of every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size

    def split(x: Array) -> Array:
        x = x.reshape(devices, parts, -1, *x.shape[1:])
        return x.swapaxes(0, 1).reshape(parts, -1, *x.shape[3:])

    return by_rows(jax.tree.map(split, batch), axis=1)
