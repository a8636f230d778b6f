"""The selective scan in float64 NumPy, one step at a time, with an adjoint derived by hand.

Every implementation is tested and benchmarked against it. It is slow and shares no code with them.
"""

import numpy as np


def _sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def _prepare(delta, delta_bias, delta_softplus, order, reverse):
    raw = delta if delta_bias is None else delta + delta_bias
    step = np.logaddexp(0, raw) if delta_softplus else raw
    rows = np.arange(delta.shape[1]) if order is None else order
    return raw, step, rows[::-1] if reverse else rows


def _float64(arrays):
    return {k: None if x is None else np.asarray(x).astype(np.float64) for k, x in arrays.items()}


def _decay(step, A, resets, row):
    decay = np.exp(step[:, row, :, None] * A)
    return decay if resets is None else np.where(resets[:, row, None, None], 0, decay)


def _states(u, step, A, B, h0, rows, resets):
    """h before each step and after the last, a list of length + 1."""
    h = np.zeros((u.shape[0], *A.shape)) if h0 is None else h0
    states = [h]
    for row in rows:
        drive = (step[:, row] * u[:, row])[:, :, None] * B[:, row, None, :]
        h = _decay(step, A, resets, row) * h + drive
        states.append(h)
    return states


def _outputs(states, u, C, D, rows):
    """y before the gate."""
    y = np.zeros_like(u)
    for s, row in enumerate(rows):
        y[:, row] = np.einsum("bdn,bn->bd", states[s + 1], C[:, row])
    return y if D is None else y + D * u


def forward(arrays, *, delta_softplus=False, order=None, reverse=False, resets=None):
    """(y, last_state) for `arrays`, a dict keyed by argument name with None for absent ones."""
    v = _float64(arrays)
    _, step, rows = _prepare(v["delta"], v["delta_bias"], delta_softplus, order, reverse)
    states = _states(v["u"], step, v["A"], v["B"], v["h0"], rows, resets)
    y = _outputs(states, v["u"], v["C"], v["D"], rows)
    if v["z"] is not None:
        y = y * v["z"] * _sigmoid(v["z"])
    return y, states[-1]


def gradients(arrays, ybar, hbar, *, delta_softplus=False, order=None, reverse=False, resets=None):
    """The gradients of sum(ybar y) + sum(hbar last_state) for every array present."""
    v = _float64(arrays)
    u, A, B, C, D, z = (v[name] for name in ("u", "A", "B", "C", "D", "z"))
    ybar, hbar = np.asarray(ybar).astype(np.float64), np.asarray(hbar).astype(np.float64)
    raw, step, rows = _prepare(v["delta"], v["delta_bias"], delta_softplus, order, reverse)
    states = _states(u, step, A, B, v["h0"], rows, resets)
    bar = {name: np.zeros_like(x) for name, x in v.items() if x is not None}
    if z is not None:
        gate = _sigmoid(z)
        bar["z"] = ybar * _outputs(states, u, C, D, rows) * gate * (1 + z * (1 - gate))
        ybar = ybar * z * gate
    if D is not None:
        bar["D"] = np.sum(ybar * u, axis=(0, 1))
        bar["u"] += D * ybar
    for s in reversed(range(len(rows))):
        row, before, after = rows[s], states[s], states[s + 1]
        bar["C"][:, row] = np.einsum("bdn,bd->bn", after, ybar[:, row])
        hbar = hbar + ybar[:, row, :, None] * C[:, row, None, :]
        bar["B"][:, row] = np.einsum("bdn,bd->bn", hbar, step[:, row] * u[:, row])
        driven = np.einsum("bdn,bn->bd", hbar, B[:, row])
        bar["u"][:, row] += driven * step[:, row]
        decay = _decay(step, A, resets, row)
        through_decay = hbar * decay * before
        bar["delta"][:, row] = driven * u[:, row] + np.einsum("bdn,dn->bd", through_decay, A)
        bar["A"] += np.einsum("bdn,bd->dn", through_decay, step[:, row])
        hbar = hbar * decay
    if v["h0"] is not None:
        bar["h0"] = hbar
    if delta_softplus:
        bar["delta"] *= _sigmoid(raw)
    if v["delta_bias"] is not None:
        bar["delta_bias"] = bar["delta"].sum((0, 1))
    return bar
