"""Scans that are hard on a kernel: one step, odd channels, rows left over, extreme values."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sisma_jax.kernels.selective_scan import oracle
from sisma_jax.kernels.selective_scan.pallas import launch, mosaic, triton
from sisma_jax.kernels.selective_scan.pallas.chips import CHIPS
from sisma_jax.kernels.selective_scan.pallas.plan import MAX_STATES_PER_LANE, STATES

from .programs import EXACT, Execution, Program

MOSAIC = mosaic.BACKEND.name
BACKENDS = {module.BACKEND.name: (module.BACKEND, module.scan) for module in (triton, mosaic)}
TOLERANCE, APPROXIMATE, PER_STEP = 1e-6, 8e-6, 2.0**-22
"""Allowed errors as shares of a result's largest number, beside one rounding to its dtype: if
approximate instructions are correctly rounded, and if they err as PTX allows. The errors of
exponentials add up where a state does not decay, so it is PER_STEP times the steps if that is more.
"""
MAPPED = ("delta", "A", "B", "C", "D", "delta_bias")
"""Arguments that differ between orders under `jax.vmap`."""


@dataclasses.dataclass(frozen=True)
class Case:
    batch: int
    length: int
    channels: int
    state: int
    plan: int = 0
    """Which of Triton's plans."""
    segments: int = 1
    """Segments of a sequence in Mosaic's kernels; fewer if there are fewer tiles."""
    chunk: int | None = 4
    options: str = ""
    """Letters: D, z, b (delta_bias), h (h0), s (softplus), o (order), r (reverse), x (extreme)."""
    u: str = "float32"
    delta: str = "float32"
    z: str = "float32"
    BC: str = "float32"
    orders: int = 0
    """Mapped over by `jax.vmap`; 0 means no `vmap`."""
    gradient: bool = True
    chip: str = "H200"

    def __str__(self):
        sizes = f"{self.batch}x{self.length}x{self.channels}x{self.state}"
        kinds = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
        dtypes = [kinds[kind] for kind in (self.u, self.delta, self.z, self.BC)]
        words = [
            sizes,
            f"plan{self.plan}" if self.plan else "",
            f"segments{self.segments}" if self.segments > 1 else "",
            f"chunk{self.chunk}" if self.chunk else "",
            self.options,
            dtypes[0] if len({*dtypes}) == 1 else "/".join(dtypes),
            f"vmap{self.orders}" if self.orders else "",
            "" if self.gradient else "forward",
            "" if self.chip == "H200" else self.chip,
        ]
        return "-".join(filter(None, words))


BF16, F16 = "bfloat16", "float16"
HALF = dict(u=BF16, delta=BF16, z=BF16, BC=BF16)
FLOAT16 = dict(u=F16, delta=F16, z=F16, BC=F16)
MIXED = dict(u=BF16, delta="float32", z=F16, BC=BF16)


def covering(implementation: str) -> list[Case]:
    """Every plan, forward and backward, with every length, number of states, dtype and option."""
    return _newest_first(_covering_mosaic() if implementation == MOSAIC else _covering_triton())


def further(implementation: str) -> list[Case]:
    """More sizes, dtypes and chips for every plan; minutes."""
    return _newest_first(_further_mosaic() if implementation == MOSAIC else _further_triton())


def _newest_first(cases: list[Case]) -> list[Case]:
    """Mosaic GPU compiles for no newer chip than the first one of a process."""
    return sorted(cases, key=lambda case: CHIPS[case.chip].capability, reverse=True)


ALL = "Dzbhsor"


def _covering_mosaic() -> list[Case]:
    """Tiles have 64 steps, or 32 for the ends of segments backwards, and chunks at most 16."""
    long = dict(chunk=None)
    return [
        Case(1, 1, 35, 4, options=ALL, u=BF16, **long),
        Case(1, 6, 131, 8, options=ALL, **long, **HALF),
        Case(2, 37, 35, 32, options="Dzbhso", **long),
        Case(1, 64, 5, 16, options="Dzbhsr", **long, **HALF),
        Case(1, 129, 131, 16, segments=3, options=ALL, **long, **HALF),
        Case(1, 129, 5, 8, segments=3, options="o", **HALF),
        Case(1, 257, 5, 4, segments=3, options="Dzbhsox", **long, **MIXED),
        Case(1, 129, 5, 4, chunk=8, options="zor", **FLOAT16),
        Case(1, 257, 9, 4, options="Dzbhso", gradient=False, **long, **HALF),
        Case(2, 8, 40, 4, options="Dzbsor", orders=3),
        Case(1, 129, 5, 4, segments=3, options="Dzbsohx", orders=2, u=BF16, **long),
        Case(1, 37, 5, 16),
        Case(1, 129, 5, 16, segments=3, options=ALL, chip="A100", **long, **HALF),
        Case(1, 37, 131, 16, options="Dbhso", chip="A100", **long),
        Case(1, 129, 5, 8, segments=3, options=ALL, chip="T4", **long, **FLOAT16),
    ]


def _further_mosaic() -> list[Case]:
    found = []
    for state in STATES:
        on_states = partial(Case, state=state, chunk=None)
        found += [
            on_states(1, 1, 33),
            on_states(2, 37, 131, options="zbshx", **HALF),
            on_states(1, 11, 19, options="Dbsr", **FLOAT16),
            on_states(1, 129, 35, segments=3, options=ALL),
            on_states(3, 257, 131, segments=3, options="Dzbsor", **HALF),
            on_states(2, 129, 5, segments=3, options="Dzbsox", orders=3, **MIXED),
        ]
    for chip in ("RTX 4090", "A100", "T4"):
        on_chip = partial(Case, chunk=None, options=ALL, chip=chip)
        found += [
            on_chip(1, 13, 37, 16, **(FLOAT16 if chip == "T4" else HALF)),
            on_chip(1, 129, 131, 16, segments=3),
        ]
    return found


def _covering_triton() -> list[Case]:
    found, plans = [], triton.BACKEND.plans
    for number, plan in enumerate(plans):
        states = [n for n in STATES if plan.vectors * n // plan.groups <= MAX_STATES_PER_LANE]
        state = states[number % len(states)]
        on_plan = partial(Case, plan=number)
        found += [
            on_plan(2, 37, plan.channels + 3, 4, options=ALL),
            on_plan(1, 13, plan.channels - 1, 8, options="Dzbhsox", **MIXED),
            on_plan(1, 1, 35, states[-1], chunk=None, options=ALL, u=BF16),
            on_plan(1, 257, 9, state, chunk=None, options="Dzbhso", gradient=False, **HALF),
        ]
    last = len(plans) - 1
    return [
        *found,
        Case(1, 37, 37, 16, 0, chunk=8, options="zor", chip="A100", **HALF),
        Case(1, 37, 37, 16, last, options="Dbshor", chip="A100", u=BF16),
        Case(1, 257, 40, 4, last, chunk=None, options="Dzbsor", **HALF),
        Case(1, 37, 35, 16, 0, **FLOAT16),
        Case(2, 8, 40, 4, 0, options="Dzbsor", orders=3),
        Case(1, 7, 35, 8, last, options="Dzbsohx", orders=2, u=BF16, delta=BF16, z=BF16),
        Case(1, 2, 1, 4, 0, options="zo"),
    ]


def _further_triton() -> list[Case]:
    found = []
    for number, plan in enumerate(triton.BACKEND.plans):
        on_plan = partial(Case, plan=number)
        for state in STATES:
            if plan.vectors * state // plan.groups > MAX_STATES_PER_LANE:
                continue
            found += [
                on_plan(1, 1, 33, state, chunk=None),
                on_plan(2, 37, 41, state, chunk=None, options="zbshx", **HALF),
                on_plan(1, 11, 19, state, options="Dbsr", **FLOAT16),
            ]
        found += [
            on_plan(1, 13, 37, 16, options=ALL, chip=chip, **HALF) for chip in ("RTX 4090", "A100")
        ]
        found += [
            on_plan(3, 257, 97, 16, chunk=None, options="Dzbsor", **HALF),
            on_plan(2, 9, 35, 4, options="Dzbsox", orders=3, **MIXED),
        ]
    return found


def arguments(case: Case):
    """(arrays by name, order) of a case."""
    rng = np.random.default_rng(sum(map(ord, str(case))))
    b, length, d, n = case.batch, case.length, case.channels, case.state
    many = (case.orders,) if case.orders else ()
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    optional = lambda letter, x: x if letter in case.options else None
    delta = normal(*many, b, length, d)
    arrays = {
        "u": normal(b, length, d),
        "delta": delta if "s" in case.options else np.abs(delta),
        "A": -np.exp(normal(*many, d, n)),
        "B": normal(*many, b, length, n),
        "C": normal(*many, b, length, n),
        "D": optional("D", normal(*many, d)),
        "z": optional("z", normal(b, length, d)),
        "delta_bias": optional("b", normal(*many, d)),
        "h0": optional("h", normal(b, d, n)),
    }
    if "x" in case.options:
        _make_extreme(arrays, rng)
    kinds = {"u": case.u, "delta": case.delta, "z": case.z, "B": case.BC, "C": case.BC}
    arrays = {
        name: None if x is None else jnp.asarray(x, kinds.get(name, "float32"))
        for name, x in arrays.items()
    }
    rows = [rng.permutation(length).astype(np.int32) for _ in range(case.orders or 1)]
    order = jnp.asarray(np.stack(rows) if case.orders else rows[0])
    return arrays, optional("o", order)


def _make_extreme(arrays: dict, rng) -> None:
    """Steps from those that vanish to those that wipe the state out; gates from shut to open."""
    ranges = {"delta": (-3, 4.5), "A": (-12, 3), "u": (-4, 4), "z": (-3, 4)}
    for name, (low, high) in ranges.items():
        if (x := arrays[name]) is not None:
            arrays[name] = x * np.exp(rng.uniform(low, high, x.shape)).astype(np.float32)
    arrays["u"][:, ::3, ::2] = 0
    arrays["A"][..., ::3, 0] = 0


def cotangents(case: Case, arrays: dict):
    """Cotangents of y and of the last state."""
    rng = np.random.default_rng(3)
    many = (case.orders,) if case.orders else ()
    normal = lambda shape, dtype: jnp.asarray(rng.standard_normal((*many, *shape)), dtype)
    u = arrays["u"]
    state = (case.batch, case.channels, case.state)
    return normal(u.shape, u.dtype), normal(state, "float32")


def scan(case: Case, implementation: str):
    """(arrays, order, cotangents) -> ((y, last state), gradients by name)."""
    _, run = BACKENDS[implementation]
    options = dict(delta_softplus="s" in case.options, reverse="r" in case.options)

    def one(arrays, order):
        return run(**arrays, order=order, chunk=case.chunk, **options)

    def every(arrays, order):
        if not case.orders:
            return one(arrays, order)
        axis = lambda name, x: 0 if name in MAPPED and x is not None else None
        axes = {name: axis(name, x) for name, x in arrays.items()}
        return jax.vmap(one, in_axes=(axes, None if order is None else 0))(arrays, order)

    def whole(arrays, order, bars):
        if not case.gradient:
            return every(arrays, order), {}
        outputs, pull_back = jax.vjp(lambda arrays: every(arrays, order), arrays)
        return outputs, pull_back(bars)[0]

    return whole


@dataclasses.dataclass(frozen=True)
class Expected:
    value: np.ndarray
    rounded: np.ndarray
    """The sum of the magnitudes that are each rounded to the result's dtype."""

    def error(self, actual, tolerance: float) -> float:
        """The worst error, of what is allowed."""
        dtype = str(actual.dtype)
        with np.errstate(invalid="ignore"):
            actual = np.asarray(actual).astype(np.float64)
        if actual.shape != self.value.shape or not np.isfinite(actual).all():
            return float("inf")
        largest = np.abs(self.value).max() or 1.0
        rounding = {BF16: 2.0**-8, F16: 2.0**-11}.get(dtype, 0.0)
        smallest = {F16: 2.0**-25}.get(dtype, 0.0)
        allowed = tolerance * largest + 1.01 * rounding * self.rounded + smallest
        return float((np.abs(actual - self.value) / allowed).max())


def expected(case: Case, arrays: dict, order, bars) -> dict[str, Expected]:
    """Results by name, in float64."""
    options = dict(delta_softplus="s" in case.options, reverse="r" in case.options)

    def of(arrays, order, bars) -> dict[str, np.ndarray]:
        y, last_state = oracle.forward(arrays, order=order, **options)
        gradients = oracle.gradients(arrays, *bars, order=order, **options) if case.gradient else {}
        return {"y": y, "last_state": last_state} | {f"d{name}": x for name, x in gradients.items()}

    if not case.orders:
        return {name: Expected(x, np.abs(x)) for name, x in of(arrays, order, bars).items()}
    each = []
    for k in range(case.orders):
        one = {n: x[k] if n in MAPPED and x is not None else x for n, x in arrays.items()}
        each.append(of(one, None if order is None else order[k], [bar[k] for bar in bars]))
    found = {}
    for name in each[0]:
        parts = np.stack([results[name] for results in each])
        if name.removeprefix("d") in MAPPED or name in ("y", "last_state"):
            found[name] = Expected(parts, np.abs(parts))
        else:  # a sum over orders, each of which is rounded before and after it is added
            found[name] = Expected(parts.sum(0), 2 * np.abs(parts).sum(0))
    return found


class Check:
    """A case on one backend, compiled, and executed as often as wanted."""

    def __init__(self, case: Case, implementation: str):
        backend, _ = BACKENDS[implementation]
        arrays, order = arguments(case)
        bars = cotangents(case, arrays)
        self.expected = expected(case, arrays, order, bars)
        self.approximate = max(APPROXIMATE, case.length * PER_STEP)
        plan = case.segments if implementation == MOSAIC else backend.plans[case.plan]
        chosen, launch.chosen = launch.chosen, lambda candidates, choose: plan
        try:
            self.program = Program(scan(case, implementation), arrays, order, bars, chip=case.chip)
        finally:
            launch.chosen = chosen

    def __call__(self, execution: Execution = EXACT) -> tuple[dict, dict, dict]:
        """(errors by result, of what is allowed; faults; notes)."""
        (outputs, gradients), reports = self.program(execution)
        if not reports:
            raise RuntimeError("the program has no kernel")
        results = dict(zip(("y", "last_state"), outputs, strict=True))
        results |= {f"d{name}": x for name, x in gradients.items() if x is not None}
        tolerance = TOLERANCE if execution.seed is None else self.approximate
        errors = {
            name: wanted.error(results[name], tolerance) for name, wanted in self.expected.items()
        }
        merged = lambda kind: {k: n for report in reports for k, n in getattr(report, kind).items()}
        return errors, merged("faults"), merged("notes")
