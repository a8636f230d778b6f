"""The selective scan as one Pallas kernel each way, through Mosaic GPU, for NVIDIA GPUs.

The same algorithm as `pallas_triton`, on the backend that stays. Programs are warpgroups of 128
lanes: channels that they do not divide are padded. On a CPU the kernels' bodies are interpreted,
which is for tests.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kernels.selective_scan import mosaic_backward, mosaic_forward, pallas_scan
from kernels.selective_scan.chips import LANES
from kernels.selective_scan.launch_plan import Plan
from kernels.selective_scan.mosaic_layout import Layout
from kernels.selective_scan.mosaic_machine import Interpreted, Warpgroup
from kernels.selective_scan.pallas_scan import ARGUMENTS, Arrays, Kernels, Options

LEAST_JAX = (0, 11, 2)
PLANS = (Plan(1, warps=4), Plan(2, warps=4))


def check(state: int) -> None:
    """Raises NotImplementedError with the reason where these kernels cannot run."""
    if jax.__version_info__ < LEAST_JAX:
        raise NotImplementedError(
            f"selective_scan: 'pallas_mosaic' needs jax {'.'.join(map(str, LEAST_JAX))} or newer, "
            f"but this is {jax.__version__}; name 'chunked', which runs on every version"
        )
    pallas_scan.check("pallas_mosaic", state, least=(7, 5))


def scan(u, delta, A, *arguments, **options):
    """See `pallas_scan.scan`."""
    check(A.shape[1])
    return pallas_scan.scan(KERNELS, u, delta, A, *arguments, **options)


def _forward(options: Options, inputs: Arrays, *, checkpoints: bool) -> Arrays:
    return _launch(
        "selective_scan",
        mosaic_forward.forward,
        options,
        options.forward,
        inputs,
        pallas_scan.RESULTS,
        pallas_scan.result_dtypes(inputs, checkpoints=checkpoints),
        scratch={},
    )


def _backward(options: Options, inputs: Arrays) -> Arrays:
    rows = max(16, 2 * options.chunk)  # both of B and C, and a multiple of 16
    scratch = {
        "products": (2, rows, options.backward.warps * LANES),
        "sums": (len(inputs["A"]), rows),
        "rows_BC": (len(inputs["A"]), rows),
    }
    return _launch(
        "selective_scan_backward",
        mosaic_backward.backward,
        options,
        options.backward,
        inputs,
        pallas_scan.GRADIENTS,
        pallas_scan.gradient_dtypes(inputs),
        scratch,
    )


KERNELS = Kernels("pallas_mosaic", PLANS, _forward, _backward)


def _launch(
    name: str,
    body,
    options: Options,
    plan: Plan,
    inputs: Arrays,
    axes: dict,
    dtypes: dict,
    scratch: dict,
) -> Arrays:
    channels = inputs["u"].shape[2]
    inputs = {name: _padded(x, ARGUMENTS[name], plan.channels) for name, x in inputs.items()}
    sizes = pallas_scan.sizes(options, plan, inputs)
    layout = partial(
        Layout,
        length=sizes["length"],
        state=sizes["state"],
        plan=plan,
        chunk=options.chunk,
        softplus=options.softplus,
        reverse=options.reverse,
    )
    shapes = {
        name: jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in axes[name]), dtype)
        for name, dtype in dtypes.items()
    }

    def call(run, machine: type, inputs: Arrays) -> Arrays:
        program = partial(body, layout=layout(machine=machine()))
        return run(program, name, (sizes["batch"], sizes["blocks"]), shapes, scratch, inputs)

    outputs = lax.platform_dependent(
        inputs, cuda=partial(call, _run, Warpgroup), default=partial(call, _interpret, Interpreted)
    )
    cut = lambda x, axis: x[..., :channels] if axis[-1] == "channels" else x
    return {name: cut(x, axes[name]) for name, x in outputs.items()}


def _padded(x: jax.Array, axes: tuple[str, ...], multiple: int) -> jax.Array:
    missing = -x.shape[-1] % multiple
    if axes[-1] != "channels" or not missing:
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def _run(program, name: str, grid, shapes: dict, scratch: dict, inputs: Arrays) -> Arrays:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def kernel(*refs, **scratch):
        inputs_refs, outputs_refs = refs[: len(inputs)], refs[len(inputs) :]
        program(
            dict(zip(inputs, inputs_refs, strict=True)),
            dict(zip(shapes, outputs_refs, strict=True)),
            **scratch,
        )

    kernel.__name__ = name
    outputs = plgpu.kernel(
        kernel,
        out_type=list(shapes.values()),
        grid=grid,
        grid_names=("sequence", "block"),
        scratch_types={k: plgpu.SMEM(shape, jnp.float32) for k, shape in scratch.items()},
        # Stores would each wait for all lanes twice; where that is needed, the body waits itself.
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            unsafe_no_auto_barriers=True,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        ),
    )(*inputs.values())
    return dict(zip(shapes, outputs, strict=True))


def _interpret(program, name: str, grid, shapes: dict, scratch: dict, inputs: Arrays) -> Arrays:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return pl.pallas_call(
        lambda inputs, outputs, scratch: program(inputs, outputs, **scratch),
        out_shape=shapes,
        grid=grid,
        scratch_shapes=[{k: plgpu.SMEM(shape, jnp.float32) for k, shape in scratch.items()}],
        interpret=True,
        name=name,
    )(inputs)
