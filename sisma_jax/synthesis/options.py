"""Options of sampling: their defaults, their checks, and their form in a compiled program."""

import contextlib
import dataclasses
from collections.abc import Hashable, Iterator
from typing import Any, no_type_check

import jax
import numpy as np

from sisma_jax.common.errors import InputError, whole_number
from sisma_jax.flows import rectified


@no_type_check  # wrong values raise InputError, and numbers of other libraries are converted
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How faces are sampled, whatever their masks, seeds and styles.

    The options are also a pytree, and so an argument of compiled programs. Guidances other than 1
    are its leaves; steps, solver, and which guidances are 1 are static. Options that differ only in
    the value of such a guidance share one program, and the plain model computes no guidance.

    Raises InputError if a value is out of range.
    """

    steps: int = 25
    """Number of solver steps, at least 1."""
    solver: str = "euler"
    """One of `rectified.SOLVERS`; "midpoint" and "heun" take two velocities per step."""
    guidance: float = 1.0
    """Guidance by the mask, at least 0. 1 is the plain model, more follows the mask more closely at
    twice the cost, 0 ignores the mask."""
    style_guidance: float = 1.0
    """The same for the style, at the cost of another pass."""

    def __post_init__(self) -> None:
        steps = whole_number(self.steps, "steps")
        if steps < 1:
            raise InputError(f"steps is {steps}: use at least 1")
        if self.solver not in rectified.SOLVERS:
            raise InputError(
                f"solver {self.solver!r} is unknown: use one of {', '.join(rectified.SOLVERS)}"
            )
        for name in ("guidance", "style_guidance"):
            value = getattr(self, name)
            if not value >= 0 or not np.isfinite(value):
                raise InputError(
                    f"{name.replace('_', ' ')} is {value}: use 0 or more (1 is the plain model)"
                )
            object.__setattr__(self, name, float(value))
        object.__setattr__(self, "steps", steps)

    @property
    def guided(self) -> bool:
        """Whether guidance by the mask needs a pass of its own."""
        return not _is_one(self.guidance)

    @property
    def style_guided(self) -> bool:
        """Whether guidance by the style needs a pass of its own."""
        return not _is_one(self.style_guidance)

    def without_style(self) -> "SamplingOptions":
        """The options for faces without a style, which no style guidance applies to."""
        return dataclasses.replace(self, style_guidance=1.0)


@contextlib.contextmanager
def name_fields(prefix: str) -> Iterator[None]:
    """A context in which errors name the fields of `SamplingOptions` as a user writes them.

    Args:
      prefix: "--" for options of a command, or a config's section and a dot ("samples.").

    Raises:
      InputError: with the prefix, for an InputError that begins with the name of a field.
    """
    joint = "-" if prefix == "--" else "_"
    try:
        yield
    except InputError as error:
        text = str(error)
        names = [field.name.replace("_", " ") for field in dataclasses.fields(SamplingOptions)]
        for name in sorted(names, key=len, reverse=True):  # "guidance" also begins longer names
            if text.startswith(f"{name} "):
                written = prefix + name.replace(" ", joint)
                raise InputError(written + text.removeprefix(name)) from None
        raise


def _is_one(scale: Any) -> bool:
    """Whether a scale is the number 1, and not the tracer of a program's argument."""
    return isinstance(scale, float) and scale == 1.0


def _flatten(options: SamplingOptions) -> tuple[list[Any], Hashable]:
    scales = {"guidance": options.guided, "style_guidance": options.style_guided}
    names = tuple(name for name, guided in scales.items() if guided)
    return [getattr(options, name) for name in names], (options.steps, options.solver, names)


def _unflatten(static: tuple[int, str, tuple[str, ...]], leaves: Any) -> SamplingOptions:
    """Set the fields without checks, since leaves may be tracers."""
    steps, solver, names = static
    options = object.__new__(SamplingOptions)
    scales = {"guidance": 1.0, "style_guidance": 1.0} | dict(zip(names, leaves, strict=True))
    for name, value in {"steps": steps, "solver": solver, **scales}.items():
        object.__setattr__(options, name, value)
    return options


jax.tree_util.register_pytree_node(SamplingOptions, _flatten, _unflatten)
