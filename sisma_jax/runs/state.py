"""The state of a run, as checkpoints hold it."""

from typing import Any

import flax.struct
import optax

Params = dict[str, Any]


@flax.struct.dataclass
class OpponentState:
    """What a step changes of a network that is trained against the run's own one."""

    params: Params
    variables: Any
    """Arrays that follow the weights without a gradient, such as those of spectral norms."""
    opt_state: optax.OptState


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. Leaves may also be shapes or shardings, hence the types."""

    step: Any
    """int32 scalar: number of steps, including skipped ones."""
    skipped: Any
    """int32 scalar: number of skipped steps."""
    skipped_in_a_row: Any
    """int32 scalar: number of skipped steps since the last applied one."""
    params: Params
    ema: Params
    opt_state: optax.OptState
    opponents: dict[str, OpponentState] = flax.struct.field(default_factory=dict)
    """Networks by name that are trained against the run's own one, as a GAN's discriminator; they
    are not averaged."""
