"""The scan of sequences whose length is split over the devices of a mesh axis.

A device has some consecutive rows of every sequence, a segment. The state h after a segment and,
backwards in time, its cotangent g before a segment are

    h_end = P h_start + e,    g_start = P g_end + f,    P = exp(A sum_l delta_l),

with e the state after a scan of the segment from zero, and f the cotangent where none comes from
later segments. P, e and f are (batch, channels, state). A device computes e, gathers P and e of all
devices, solves the recurrence over segments for its own h_start, and scans its segment from there.
The gradient does the same with f: a scan against the direction of time finds g_end, with which the
segment's gradients are complete. So a pass over a segment takes one scan more than without
splitting, which computes no gradients.

The cotangent k_l of the state at a step (hbar_l in `chunked`) is itself the state of a selective
scan against the direction of time,

    k_l = exp(delta_{l+1} A) k_{l+1} + C_l ybar_l,    f = exp(delta_1 A) k_1,

with the step sizes of the rows visited before, C in place of B, and ybar divided by these step
sizes in place of u.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from .pallas.sharding import batch_axes
from .pointwise import step_sizes

Scan = Callable[..., tuple[jax.Array, jax.Array]]

_SHORTEST = 2.0**-60
"""Shorter steps cannot be divided by; over this one nothing decays in float32."""


def over_axis(one_scan: Scan, axis_name: str, length: int, order) -> Scan:
    """`one_scan`, an implementation, for a length that is split over a mesh axis.

    Within `jax.shard_map` over the axis, the arrays are those of one device; else they are whole
    and `length` is the sum over all devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if axis_name not in mesh.axis_names:
        known = ", ".join(map(repr, mesh.axis_names)) or "none"
        raise ValueError(
            f"selective_scan: axis_name is {axis_name!r}, but the axes of the current mesh are "
            f"{known}; call it under jax.set_mesh or within jax.shard_map, with a mesh of that axis"
        )
    if order is not None:
        raise ValueError(
            f"selective_scan: a length that is split over {axis_name!r} has no order, because a "
            "device has only its own rows; permute the rows before they are split, or use reverse"
        )
    kind = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis_name]
    if kind == AxisType.Manual:
        return partial(_scan_segment, one_scan, axis_name)
    if kind == AxisType.Explicit:
        raise NotImplementedError(
            f"selective_scan: {axis_name!r} is an explicit axis of the mesh, over which a scan is "
            "not split: make the mesh with axis_types=(AxisType.Auto, ...)"
        )
    devices = mesh.shape[axis_name]
    if length % devices:
        raise ValueError(
            f"selective_scan: a length of {length} cannot be split over the {devices} devices of "
            f"{axis_name!r}; pad the sequences to a multiple of {devices}"
        )
    return partial(_scan_whole, one_scan, axis_name)


_AXES = {"u": "bl", "delta": "bl", "B": "bl", "C": "bl", "z": "bl", "h0": "b"}
"""The mapped axes of the arguments, batch and length; the others are replicated."""


def _scan_whole(one_scan: Scan, axis_name: str, *, delta_softplus, order, reverse, **arrays):
    """Whole arrays: every device scans its segment, of its own sequences."""
    axes = batch_axes(len(arrays["u"]), without=axis_name)

    def on_one_device(arrays):
        switches = dict(delta_softplus=delta_softplus, order=order, reverse=reverse)
        return _scan_segment(one_scan, axis_name, **arrays, **switches)

    specs = {"bl": P(axes, axis_name), "b": P(axes), "": P()}
    return jax.shard_map(
        on_one_device,
        in_specs=({name: specs[_AXES.get(name, "")] for name in arrays},),
        out_specs=(specs["bl"], specs["b"]),
        axis_names={axis_name, *axes},
        check_vma=False,
    )(arrays)


def _scan_segment(
    one_scan: Scan, axis_name: str, *, delta_softplus, order, reverse, **arrays
) -> tuple[jax.Array, jax.Array]:
    """The segment of this device, and the last state of the whole length on every device.

    Raises:
      NotImplementedError: within a `jax.shard_map` that checks which arrays vary over the mesh.
    """
    if any(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(arrays)):
        raise NotImplementedError(
            f"selective_scan: within jax.shard_map, axis_name={axis_name!r} needs check_vma=False"
        )
    scan = partial(one_scan, order=order, reverse=reverse)
    against_time = partial(one_scan, order=order, reverse=not reverse)
    # The gradients are those of the second scan, with the cotangent of its last state.
    known = jax.tree.map(lax.stop_gradient, arrays)
    without_output = known | {"C": jnp.zeros_like(arrays["C"]), "D": None, "z": None, "h0": None}
    _, end = scan(**without_output, delta_softplus=delta_softplus)
    steps = step_sizes(known["delta"], known["delta_bias"], delta_softplus)
    decay = _decay(jnp.sum(steps, 1), known["A"])
    h0 = jnp.zeros_like(end) if arrays["h0"] is None else arrays["h0"].astype(jnp.float32)
    before = lax.stop_gradient(h0)
    start, last_state = _through_segments(axis_name, decay, end, before, reverse)
    y, end = scan(**arrays | {"h0": start}, delta_softplus=delta_softplus)

    @jax.custom_vjp
    def joined(y, end, h0, known, decay, last_state):
        """y and the last state, as functions of the end of the segment and of h0."""
        return y, last_state

    def forward(y, end, h0, known, decay, last_state):
        return (y, last_state), (known, decay)

    def backward(residuals, cotangents):
        known, decay = residuals
        ybar, last_state_bar = cotangents
        steps = step_sizes(known["delta"], known["delta_bias"], delta_softplus)
        f = _cotangent_before(against_time, known, steps, ybar, reverse)
        # Every device has the last state, and each may use it.
        last_state_bar = lax.psum(last_state_bar, axis_name)
        end_bar, h0_bar = _through_segments(axis_name, decay, f, last_state_bar, not reverse)
        # The devices' cotangents of h0 are summed, so one of them has it all.
        h0_bar = jnp.where(lax.axis_index(axis_name) == 0, h0_bar, 0)
        return ybar, end_bar, h0_bar, None, None, None

    joined.defvjp(forward, backward)
    return joined(y, end, h0, known, decay, last_state)


def _decay(steps: Float[Array, "batch channels"], A) -> Float[Array, "batch channels state"]:
    return jnp.exp(steps[:, :, None] * A.astype(jnp.float32)[None])


def _through_segments(axis_name: str, decay, end, start, reverse: bool):
    """The state before this device's segment, and the one after all segments.

    Args:
      decay: P of this device.
      end: e of this device.
      start: the state before all segments.
      reverse: go from the last device to the first.
    """

    def through_segment(h, decay_and_end):
        decay, end = decay_and_end
        return decay * h + end, h

    segments = lax.all_gather((decay, end), axis_name)
    last, starts = lax.scan(through_segment, start, segments, reverse=reverse)
    own = lax.dynamic_index_in_dim(starts, lax.axis_index(axis_name), keepdims=False)
    return own, last


def _cotangent_before(scan: Scan, arrays, steps, ybar, reverse: bool):
    """The cotangent f of the state before a segment, if there is none after it.

    `scan` visits the rows in the opposite order.
    """
    ybar = ybar.astype(jnp.float32)
    if arrays["z"] is not None:
        ybar *= jax.nn.silu(arrays["z"].astype(jnp.float32))
    unused = jnp.ones_like(steps[:, :1])  # it decays a state of zero
    if reverse:
        first, before = steps[:, -1], jnp.concatenate([unused, steps[:, :-1]], 1)
    else:
        first, before = steps[:, 0], jnp.concatenate([steps[:, 1:], unused], 1)
    before = jnp.where(jnp.abs(before) < _SHORTEST, _SHORTEST, before)
    _, k = scan(
        u=ybar / before,
        delta=before,
        A=arrays["A"],
        B=arrays["C"],
        C=jnp.zeros_like(arrays["C"]),
        D=None,
        z=None,
        delta_bias=None,
        h0=None,
        delta_softplus=False,
    )
    return _decay(first, arrays["A"]) * k
