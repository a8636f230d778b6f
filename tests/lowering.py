"""Programs lowered for a GPU on a machine without one, and what they consist of."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import jax
import jax.extend.core
from jax.sharding import AbstractMesh

from sisma_jax.kernels.selective_scan.pallas.chips import CHIPS


def gpu_in_mind(name: str) -> AbstractContextManager:
    """Lower for this chip of CHIPS; jax before 0.11 asks for none."""
    try:
        from jax.sharding import AbstractDevice
    except ImportError:
        return nullcontext()

    class Device(AbstractDevice):
        # Mosaic asks for it, as a real device has it.
        compute_capability = "{}.{}".format(*CHIPS[name].capability)

    device = Device(f"NVIDIA {name}", None, "gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def lowered_for_cuda(function: Callable, *arguments) -> str:
    """StableHLO of `function` at arrays or shapes, for an H200."""
    with gpu_in_mind("H200"):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def equations(jaxpr):
    """All equations of a program, with those inside of calls and loops."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def uses(jaxpr, variables) -> dict:
    """The types that a program converts each of these variables to, also inside of calls and loops;
    None stands for any other use."""
    found = {variable: set() for variable in variables}
    for equation in jaxpr.eqns:
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        aligned = len(inner) == 1 and len(inner[0].invars) == len(equation.invars)
        for place, variable in enumerate(equation.invars):
            if isinstance(variable, jax.extend.core.Literal) or variable not in found:
                continue
            if aligned:
                argument = inner[0].invars[place]
                found[variable] |= uses(inner[0], [argument])[argument]
            elif equation.primitive.name == "convert_element_type":
                found[variable].add(equation.params["new_dtype"])
            else:
                found[variable].add(None)
    return found


def launches(text: str) -> int:
    """How many Pallas kernels a program launches."""
    return len(re.findall(r"custom_call @\S*(?:triton|mosaic_gpu)\S*\(", text))


def moved(text: str) -> list[str]:
    """Operations that only move data."""
    return re.findall(r"stablehlo\.(?:gather|scatter|transpose|reverse)\b.*", text)
