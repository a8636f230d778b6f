"""The CUDA scan of mamba_ssm, for comparison, if it can be imported.

It takes (batch, channels, length); it is timed with the transposes from our layout, and without.
"""

import statistics
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from scan_cases import Case, compare, cotangent, inputs

MOVED = ("u", "delta", "z", "B", "C")
"""Arrays whose last axis is the length in mamba_ssm."""


def largest_errors(case: Case) -> dict[str, float]:
    """Error of y against float64.

    Raises:
      ImportError: if torch or mamba_ssm is missing.
      NotImplementedError: if torch sees no GPU, or for several orders, which it does not support.
    """
    arrays, _ = on_gpu(case)
    y = transposed_back(scan(case, transposed(arrays)))
    return compare(case, {"y": jnp.asarray(y.float().cpu().numpy())})


def times(case: Case, repeats: int) -> dict:
    """The result of `scan_cases.times`, with `without_transposes_us`."""
    arrays, ybar = on_gpu(case)
    theirs, theirs_bar = transposed(arrays), ybar.mT.contiguous()
    same = lambda x: x

    def gradients(arrays: dict, ybar: Any, prepare: Callable, restore: Callable) -> None:
        leaves = {name: x.detach().requires_grad_() for name, x in arrays.items()}
        restore(scan(case, prepare(leaves))).backward(ybar)

    return {
        "device_us": {
            "forward": clock(lambda: transposed_back(scan(case, transposed(arrays))), repeats),
            "both": clock(lambda: gradients(arrays, ybar, transposed, transposed_back), repeats),
        },
        "without_transposes_us": {
            "forward": clock(lambda: scan(case, theirs), repeats),
            "both": clock(lambda: gradients(theirs, theirs_bar, same, same), repeats),
        },
    }


def on_gpu(case: Case) -> tuple[dict, Any]:
    """The case's inputs and cotangent as CUDA tensors."""
    import torch

    if case.orders > 1:
        raise NotImplementedError("mamba_ssm scans one order")
    if not torch.cuda.is_available():
        raise NotImplementedError("torch sees no GPU")
    tensor = lambda x: torch.from_numpy(np.array(x, np.float32)).cuda()
    low = getattr(torch, case.dtype)
    arrays = {name: tensor(x) for name, x in inputs(case, 0).items()}
    arrays = {name: x.to(low) if name in MOVED else x for name, x in arrays.items()}
    return arrays, tensor(cotangent(case)).to(low)


def scan(case: Case, arrays: dict) -> Any:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(
        *(arrays[name] for name in ("u", "delta", "A", "B", "C", "D")),
        z=arrays.get("z"),
        delta_bias=arrays.get("delta_bias"),
        delta_softplus=case.full,
    )


def transposed(arrays: dict) -> dict:
    return {name: x.mT.contiguous() if name in MOVED else x for name, x in arrays.items()}


def transposed_back(y: Any) -> Any:
    return y.mT.contiguous()


def clock(function: Callable, repeats: int) -> float:
    """Median microseconds on the GPU, by CUDA events."""
    import torch

    measured = []
    for _ in range(2 + repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        torch.cuda.synchronize()
        measured.append(1e3 * start.elapsed_time(stop))
    return statistics.median(measured[2:])
