"""Evaluates a JAX function on the CPU with the Pallas kernels in it executed from their PTX."""

import dataclasses

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from tests.lowering import gpu_in_mind

from . import text
from .compiling import Compiled, compiled
from .contraction import contracted
from .floats import Approximations
from .machine import Machine
from .memory import Buffer, Report

KERNELS = ("pallas_call", "mpmd_map")
"""Primitives that are kernels; the second one is Mosaic GPU's."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """What the compiler and the GPU are free to do, within PTX."""

    seed: int | None = None
    """The seed of the errors of approximate instructions; None for correctly rounded results."""
    contract: bool = False
    """Whether products and sums are fused, see `contraction`."""


EXACT = Execution()


class Program:
    """A function at given arguments, traced once and then evaluated as often as wanted."""

    def __init__(self, function, *arguments, chip: str = "H200"):
        self.chip = chip
        self.leaves, tree = jax.tree.flatten(arguments)
        flat = lambda *leaves: function(*jax.tree.unflatten(tree, leaves))
        with gpu_in_mind(chip):  # which the plan depends on
            self.jaxpr, shape = jax.make_jaxpr(flat, return_shape=True)(*self.leaves)
        self.results = jax.tree.structure(shape)
        # By identity of their equation.
        self.choices: dict[int, jex.ClosedJaxpr] = {}
        self.kernels: dict[int, Compiled] = {}
        self.last: dict[int, tuple] = {}
        """What a kernel was last executed on, and its outputs with the report."""

    def __call__(self, execution: Execution = EXACT) -> tuple:
        """The function's results, and a report for each kernel that was executed."""
        reports: list[Report] = []
        evaluation = _Evaluation(self, execution, reports)
        results = evaluation.of(self.jaxpr.jaxpr, self.jaxpr.consts, self.leaves)
        return jax.tree.unflatten(self.results, results), reports

    def for_cuda(self, equation, given: list) -> jex.ClosedJaxpr:
        """What the project's primitive `by_platform` is on a GPU."""
        if id(equation) not in self.choices:
            function = dict(equation.params["others"])["cuda"]
            with gpu_in_mind(self.chip):
                self.choices[id(equation)] = jax.make_jaxpr(function)(*given)
        return self.choices[id(equation)]

    def kernel(self, equation) -> Compiled:
        if id(equation) not in self.kernels:
            self.kernels[id(equation)] = compiled(equation, self.chip)
        return self.kernels[id(equation)]


def _has_kernel(jaxpr) -> bool:
    return any(
        equation.primitive.name in KERNELS
        or any(map(_has_kernel, jex.jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


class _Evaluation:
    def __init__(self, program: Program, execution: Execution, reports: list[Report]):
        self.program, self.execution, self.reports = program, execution, reports

    def of(self, jaxpr, consts, arguments) -> list:
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
        read = lambda v: v.val if isinstance(v, jex.Literal) else values[v]
        for equation in jaxpr.eqns:
            results = self._one(equation, [read(v) for v in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _one(self, equation, given: list) -> list:
        name, params = equation.primitive.name, equation.params
        if name in KERNELS:
            return self._kernel(equation, given)
        if name == "by_platform":
            chosen = self.program.for_cuda(equation, given)
            return self.of(chosen.jaxpr, chosen.consts, given)
        if name == "scan" and _has_kernel(params["jaxpr"].jaxpr):
            return self._loop(params, given)
        inner = next((params[k] for k in ("jaxpr", "call_jaxpr", "call") if k in params), None)
        if inner is not None and name not in ("scan", "while"):
            closed = inner if hasattr(inner, "consts") else jex.ClosedJaxpr(inner, ())
            return self.of(closed.jaxpr, closed.consts, given)
        results = equation.primitive.bind(*given, **equation.primitive.get_bind_params(params))
        return results if equation.primitive.multiple_results else [results]

    def _loop(self, params, given: list) -> list:
        """A `scan` around a kernel, as of `vmap` over something that the kernel cannot batch."""
        constants, carried = params["num_consts"], params["num_carry"]
        fixed, carry = given[:constants], given[constants : constants + carried]
        mapped, body, stacked = given[constants + carried :], params["jaxpr"], []
        if params["reverse"]:
            raise NotImplementedError("a reversed scan around a kernel")
        for k in range(params["length"]):
            row = [x[k] for x in mapped]
            results = self.of(body.jaxpr, body.consts, [*fixed, *carry, *row])
            carry = results[:carried]
            stacked.append(results[carried:])
        return [*carry, *(jnp.stack(parts) for parts in zip(*stacked, strict=True))]

    def _kernel(self, equation, given: list) -> list:
        found = self.program.kernel(equation)
        given = [np.asarray(x) for x in given]
        # Where only one of several kernels is changed, only what depends on it is executed again.
        key = found.ptx, self.execution, *(x.tobytes() for x in given)
        kept, (results, report) = self.program.last.get(id(equation), (None, (None, None)))
        if kept != key:
            results, report = self._executed(found, given, [v.aval for v in equation.outvars])
            self.program.last[id(equation)] = key, (results, report)
        self.reports.append(report)
        return results

    def _executed(self, found: Compiled, given: list, shapes: list) -> tuple[list, Report]:
        (kernel,) = text.kernels(found.ptx).values()
        if self.execution.contract:
            kernel = contracted(kernel)
        name = lambda kind, k, x: f"{kind} {k} ({x.dtype}{[*x.shape]})"
        inputs = [
            Buffer(name("input", k, x), x.nbytes, x.dtype.itemsize, contents=x)
            for k, x in enumerate(given)
        ]
        outputs = [
            Buffer(name("output", k, x), x.size * x.dtype.itemsize, x.dtype.itemsize)
            for k, x in enumerate(shapes)
        ]
        report = Machine(
            kernel,
            found.launch,
            [*inputs, *outputs],
            Approximations(self.execution.seed),
        ).run()
        results = []
        for buffer, shape in zip(outputs, shapes, strict=True):
            if missing := int((buffer.written[: buffer.size] == 0).sum()):
                report.note(f"{missing} of {buffer.size} bytes of {buffer.name} are never written")
            raw = buffer.bytes[: buffer.size].view(shape.dtype).reshape(shape.shape)
            results.append(jnp.asarray(raw))
        return results, report
