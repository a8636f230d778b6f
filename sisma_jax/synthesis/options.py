"""Options of sampling: their defaults, their checks, and their form in a compiled program."""

import contextlib
import copy
import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sisma_jax.common.errors import InputError, whole_number
from sisma_jax.flows import rectified

STEPS = 25
"""Number of solver steps where neither it nor their times are given."""
ALWAYS = (0.0, 1.0)
"""The guidance interval of guidance at all times."""
CLOSEST = 1e-6
"""Times that differ by no more are the same time: a solver step has to be wider, and a guidance
interval extends this far beyond its ends. Rounding errors of times in float32 are smaller."""
_SCALES = ("guidance", "style_guidance")
_LARGEST = float(np.finfo(np.float32).max)


@no_type_check  # wrong values raise InputError, and numbers of other libraries are converted
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How faces are sampled, whatever their masks, seeds and styles.

    Times are those of `rectified`: 0 is noise, 1 is data. For SCA-DM they are defined by equation
    (2) of `diffusion`.

    The options are also a pytree, and so an argument of compiled programs. The number of steps, the
    solver, and which of the other options differ from their defaults are static; the values of the
    others are leaves. So one program serves all guidances other than 1, another all shifts other
    than 1, and the plain model computes no guidance.

    Raises InputError if a value is out of range.
    """

    steps: int | None = None
    """Number of solver steps, at least 1. None, which becomes a number: that of `times`, or STEPS;
    a model with a smaller maximum (`generators.Generator.most_steps`) then takes its maximum."""
    solver: str = "euler"
    """One of `rectified.SOLVERS`; "midpoint" and "heun" take two velocities per step."""
    guidance: float | Sequence[float] = 1.0
    """Guidance by the mask, at least 0: one for all images, or one for each. 1 is the plain model,
    more follows the mask more closely at twice the cost, 0 ignores the mask."""
    style_guidance: float | Sequence[float] = 1.0
    """The same for the style, at the cost of another pass."""
    guidance_interval: tuple[float, float] = ALWAYS
    """First and last time of both guidances (Kynkäänniemi et al., arXiv 2404.07724). A velocity at
    any other time is the plain model's, at its cost. Without guidance it has no effect."""
    times: Sequence[float] | None = None
    """Start times of the solver's steps and the end time, in [0, 1], which increase by more than
    CLOSEST."""
    shift: float = 1.0
    """A shift of equal steps (`rectified`, equation 3), more than 0: finer steps near the noise if
    more than 1."""
    guidance_rescale: float = 0.0
    """Share, in [0, 1], of the rescaling of guided velocities against over-exposure
    (`diffusion.rescale_guidance`); 0 for none. Without guidance it has no effect."""

    _steps_by_default: ClassVar[bool] = False
    """Whether neither steps nor times were given."""

    def __post_init__(self) -> None:
        times = None if self.times is None else _checked_times(self.times)
        number = STEPS if times is None else len(times) - 1
        steps = number if self.steps is None else whole_number(self.steps, "steps")
        if steps < 1:
            raise InputError(f"steps is {steps}: use at least 1")
        if times is not None and steps != number:
            raise InputError(
                f"steps is {steps}, but times are those of {number} steps: leave one of them out"
            )
        shift = _checked_shift(self.shift, steps)
        if times is not None and shift != 1:
            raise InputError(f"shift is {shift:g}, but times are given: leave one of them out")
        if self.solver not in rectified.SOLVERS:
            raise InputError(
                f"solver {self.solver!r} is unknown: use one of {', '.join(rectified.SOLVERS)}"
            )
        scales = {name: _checked_scale(name, getattr(self, name)) for name in _SCALES}
        interval = _checked_interval(self.guidance_interval)
        own = {
            "steps": steps, "times": times, "shift": shift, "guidance_interval": interval,
            "guidance_rescale": _checked_rescale(self.guidance_rescale),
            "_steps_by_default": self.steps is None and times is None,
        }  # fmt: skip
        _set(self, own | scales)

    @property
    def guided(self) -> bool:
        """Whether guidance by the mask needs a pass of its own."""
        return not _is_one(self.guidance)

    @property
    def style_guided(self) -> bool:
        """Whether guidance by the style needs a pass of its own."""
        return not _is_one(self.style_guidance)

    @property
    def any_guided(self) -> bool:
        """Whether there is guidance at all."""
        return self.guided or self.style_guided

    @property
    def rescale(self) -> Any:
        """The share of the rescaling of guided velocities; None for none."""
        return None if _is_zero(self.guidance_rescale) else self.guidance_rescale

    @property
    def interval(self) -> Any:
        """First and last time of guidance; None for guidance at all times."""
        return None if _is_always(self.guidance_interval) else self.guidance_interval

    @property
    def grid(self) -> Float[Array, " steps_and_one"] | None:
        """Start times of the steps and the end time; None for those of the model."""
        if self.times is not None:
            return jnp.asarray(self.times, jnp.float32)
        if _is_one(self.shift):
            return None
        equal = jnp.arange(self.steps + 1, dtype=jnp.float32) / self.steps
        return rectified.shifted(equal, self.shift)

    @property
    def per_image(self) -> dict[str, Any]:
        """The options with one value for each image, by name, as arrays."""
        values = {name: _leaf(getattr(self, name)) for name in _names(self) if name in _SCALES}
        return {name: value for name, value in values.items() if np.ndim(value)}

    def of_images(self, values: Mapping[str, Any]) -> "SamplingOptions":
        """The options for a batch, with its rows of `per_image`; unchecked, since they may be
        arrays of a program."""
        return _set(copy.copy(self), values)

    def without_style(self) -> "SamplingOptions":
        """The options for faces without a style, which no style guidance applies to."""
        return _set(copy.copy(self), {"style_guidance": 1.0})

    def by_default(self, steps: int) -> "SamplingOptions":
        """The options with this number of steps if neither it nor times were given."""
        return _set(copy.copy(self), {"steps": steps}) if self._steps_by_default else self

    def check_ends(
        self, *, from_noise: bool = True, to_data: bool = True, remedy: str = "begin at 0"
    ) -> None:
        """Raises InputError if times do not begin at noise, or end at data, and have to.

        `remedy` is what the message advises where times have to begin at noise.
        """
        if self.times is None:
            return
        if from_noise and self.times[0] != 0:
            raise InputError(
                f"times begin at {self.times[0]:g}, where z is no longer noise: {remedy}"
            )
        if to_data and self.times[-1] != 1:
            raise InputError(
                f"times end at {self.times[-1]:g}, where z is still noisy: images need an end at 1"
            )


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
                named = written + text.removeprefix(name)
                raise InputError(named, shared=error.shared, page=error.page) from None
        raise


@no_type_check
def _checked_times(times: Any) -> tuple[float, ...]:
    times = list(times) if isinstance(times, Iterator) else times
    array = _numbers(times)
    if array is None or array.ndim != 1 or len(array) < 2:
        raise InputError(f"times are {_shown(times)}: give at least two numbers from 0 to 1")
    outside = array[~((array >= 0) & (array <= 1))]
    if len(outside):
        raise InputError(f"times have {outside[0]:g}: give numbers from 0 (noise) to 1 (data)")
    wrong = np.flatnonzero(np.diff(array) <= CLOSEST)
    if len(wrong):
        before, after = array[wrong[0] : wrong[0] + 2]
        raise InputError(
            f"times have {after:.9g} after {before:.9g}: let them increase by more than "
            f"{CLOSEST:g}, from noise to data"
        )
    return tuple(array.tolist())


@no_type_check
def _checked_scale(name: str, value: Any) -> float | tuple[float, ...]:
    """A guidance as a Python number, or a tuple of one for each image."""
    words, array = name.replace("_", " "), _numbers(value)
    if array is None or array.ndim > 1:
        raise InputError(f"{words} is {_shown(value)}: give a number, or one for each image")
    wrong = np.flatnonzero(~((array >= 0) & np.isfinite(_single(array))))
    if len(wrong):
        first = array.flat[wrong[0]]
        where = f" for image {wrong[0]}" if array.ndim else ""
        remedy = "use 0 or more (1 is the plain model)"
        if _LARGEST < first < np.inf:
            remedy = f"use less, since float32 ends at {_LARGEST:.2g}"
        raise InputError(f"{words} is {first}{where}: {remedy}")
    return tuple(array.tolist()) if array.ndim else float(array)


@no_type_check
def _checked_interval(interval: Any) -> tuple[float, float]:
    array = _numbers(interval)
    if array is None or array.shape != (2,) or not 0 <= array[0] < array[1] <= 1:
        shown = _shown(interval) if array is None or array.ndim > 1 else array.tolist()
        raise InputError(
            f"guidance interval is {shown}: give its first and its last time, the lower one first, "
            "from 0 (noise) to 1 (data)"
        )
    return tuple(array.tolist())


@no_type_check
def _checked_rescale(share: Any) -> float:
    array = _numbers(share)
    if array is None or array.ndim or not 0 <= array <= 1:
        raise InputError(
            f"guidance rescale is {_shown(share)}: use a share from 0 (none) to 1 (the plain "
            "model's standard deviation)"
        )
    return float(array)


@no_type_check
def _checked_shift(shift: Any, steps: int) -> float:
    array = _numbers(shift)
    if array is None or array.ndim or not array > 0 or not np.isfinite(array):
        raise InputError(f"shift is {_shown(shift)}: use more than 0 (1 for equal steps)")
    equal = np.linspace(0, 1, steps + 1, dtype=np.float32)
    with np.errstate(all="ignore"):  # times that are not finite are refused, too
        grid = rectified.shifted(equal, float(_single(array)))
        apart = (np.diff(grid) > CLOSEST).all()
    if not apart:
        raise InputError(f"shift is {shift}: with {steps} steps times coincide, set one nearer 1")
    return float(array)


@no_type_check
def _numbers(value: Any) -> np.ndarray | None:
    """Numbers of any library as an array; None for anything else, also for None and booleans."""
    elements = value if isinstance(value, list | tuple) else (value,)
    if any(x is None or isinstance(x, str | bool | np.bool_) for x in elements):
        return None
    if getattr(value, "dtype", None) == np.bool_:
        return None
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None


def _single(array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Float32 numbers as compiled programs have them: subnormal ones are 0, large ones infinite."""
    with np.errstate(over="ignore", under="ignore"):
        single = array.astype(np.float32)
    return np.where(np.abs(single) < np.finfo(np.float32).tiny, np.float32(0), single)


def _shown(value: Any) -> str:
    """A wrong value in one line of an error."""
    if getattr(value, "ndim", 0):
        return f"an array of {value.dtype} and shape {value.shape}"
    shown = repr(value) if isinstance(value, str | list | tuple) else str(value)
    return " ".join(shown.split())


def _is_one(scale: Any) -> bool:
    """Whether a number, or each of several, is 1, and not the tracer of a program's argument."""
    scales = scale if isinstance(scale, tuple) else (scale,)
    return all(isinstance(one, float | int) and one == 1 for one in scales)


def _is_zero(share: Any) -> bool:
    """Whether a share is 0, and not the tracer of a program's argument."""
    return isinstance(share, float | int) and share == 0


def _is_always(interval: Any) -> bool:
    return isinstance(interval, tuple) and interval == ALWAYS


def _names(options: SamplingOptions) -> tuple[str, ...]:
    """The options that are leaves: those that differ from their defaults and have an effect."""
    differs = {
        "guidance": options.guided,
        "style_guidance": options.style_guided,
        "guidance_interval": options.any_guided and options.interval is not None,
        "times": options.times is not None,
        "shift": not _is_one(options.shift),
        "guidance_rescale": options.any_guided and options.rescale is not None,
    }
    return tuple(name for name, is_leaf in differs.items() if is_leaf)


def _leaf(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, tuple) else value


def _flatten(options: SamplingOptions) -> tuple[list[Any], Hashable]:
    names = _names(options)
    leaves = [_leaf(getattr(options, name)) for name in names]
    return leaves, (options.steps, options.solver, names)


def _unflatten(static: tuple[int, str, tuple[str, ...]], leaves: Any) -> SamplingOptions:
    """Set the fields without checks, since leaves may be tracers."""
    steps, solver, names = static
    options = SamplingOptions(steps=steps, solver=solver)
    values = dict(zip(names, leaves, strict=True))
    return _set(
        options,
        {
            name: tuple(value.tolist()) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        },
    )


def _set(options: SamplingOptions, values: Mapping[str, Any]) -> SamplingOptions:
    for name, value in values.items():
        object.__setattr__(options, name, value)
    return options


jax.tree_util.register_pytree_node(SamplingOptions, _flatten, _unflatten)
