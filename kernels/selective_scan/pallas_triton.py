"""The selective scan as one Pallas kernel each way, through Triton, for NVIDIA GPUs from sm_80 on.

Everything of `selective_scan` happens inside: step sizes, the recurrence, skip, gate and orders.
On a CPU the kernels are interpreted, which is for tests.
"""

import warnings
from functools import partial

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kernels.selective_scan import pallas_scan, triton_backward, triton_forward
from kernels.selective_scan.launch_plan import Plan
from kernels.selective_scan.pallas_scan import Arrays, Kernels, Options
from kernels.selective_scan.triton_arithmetic import Assembly, Interpreted
from kernels.selective_scan.triton_layout import Layout

# Known, and of no use to those who call the scan: Mosaic GPU is to take this backend's place.
warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)

PLANS = (Plan(1), Plan(2), Plan(1, groups=2), Plan(1, groups=4))
check = partial(pallas_scan.check, "pallas_triton", least=(8, 0))


def scan(u, delta, A, *arguments, **options):
    """See `pallas_scan.scan`."""
    check(A.shape[1])
    return pallas_scan.scan(KERNELS, u, delta, A, *arguments, **options)


def _forward(options: Options, inputs: Arrays, *, checkpoints: bool) -> Arrays:
    return _launch(
        "selective_scan",
        triton_forward.forward,
        options,
        options.forward,
        inputs,
        pallas_scan.RESULTS,
        pallas_scan.result_dtypes(inputs, checkpoints=checkpoints),
    )


def _backward(options: Options, inputs: Arrays) -> Arrays:
    return _launch(
        "selective_scan_backward",
        triton_backward.backward,
        options,
        options.backward,
        inputs,
        pallas_scan.GRADIENTS,
        pallas_scan.gradient_dtypes(inputs),
    )


KERNELS = Kernels("pallas_triton", PLANS, _forward, _backward)


def _launch(
    name: str, body, options: Options, plan: Plan, inputs: Arrays, axes: dict, dtypes: dict
) -> Arrays:
    sizes = pallas_scan.sizes(options, plan, inputs)

    def spec(axes: tuple[str, ...]) -> pl.BlockSpec:
        """Of "batch" and "blocks" a program has one entry, of "channels" its block, else all."""
        shape = {"batch": None, "blocks": None, "channels": plan.channels}
        return pl.BlockSpec(
            tuple(shape.get(axis, sizes[axis]) for axis in axes),
            lambda b, i: tuple({"batch": b, "blocks": i, "channels": i}.get(x, 0) for x in axes),
        )

    def call(interpret: bool, inputs: Arrays) -> Arrays:
        layout = Layout(
            length=sizes["length"],
            channels=sizes["channels"],
            state=sizes["state"],
            plan=plan,
            chunk=options.chunk,
            softplus=options.softplus,
            reverse=options.reverse,
            arithmetic=Interpreted() if interpret else Assembly(),
        )
        return pl.pallas_call(
            partial(body, layout=layout),
            out_shape={
                name: jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in axes[name]), dtype)
                for name, dtype in dtypes.items()
            },
            grid=(sizes["batch"], sizes["blocks"]),
            in_specs=({name: spec(pallas_scan.ARGUMENTS[name]) for name in inputs},),
            out_specs={name: spec(axes[name]) for name in dtypes},
            compiler_params=plt.CompilerParams(num_warps=1, num_stages=1),
            interpret=interpret,
            name=name,
        )(inputs)

    return lax.platform_dependent(inputs, cuda=partial(call, False), default=partial(call, True))
