"""The state of a run, as checkpoints hold it."""

from typing import Any

import flax.struct
import optax

Params = dict[str, Any]


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
