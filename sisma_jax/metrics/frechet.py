"""The Fréchet distance of two sets of features, such as FID: the squared 2-Wasserstein distance of
the Gaussians with their means and covariances,

    d = |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)).                   (1)

With factors A = F F^T and B = G G^T the last trace is the sum of the singular values of F^T G. This
form is accurate even with fewer samples than features, where a square root of A B or its
eigenvalues would turn the rounding error e of every zero eigenvalue into sqrt(e).

All computations are float64 in NumPy (Heusel et al., arXiv 1706.08500).
"""

import dataclasses
import io
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, Num

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import refuse_lfs_pointer, write_atomically

ASYMMETRY = 1e-6
"""Largest asymmetry of a covariance relative to its largest entry, for float32 rounding."""
NEGATIVITY = 1e-5
"""Largest negative eigenvalue relative to the largest eigenvalue, in absolute value."""
DAMAGED = (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Exceptions of NumPy and zipfile for anything other than an intact .npz."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Where features come from; only features that agree in this are comparable."""

    network: str
    """Name and version of the network."""
    weights: str
    """Digest of its weights."""
    resize: str
    """How pictures were resized to the network's input."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and covariance of features, float64."""

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    """Normalised by count - 1."""
    count: int | None
    """Number of samples; None if unknown."""
    features: Features | None = None
    """Origin of the features; None if unknown."""


FEATURE_FIELDS = tuple(field.name for field in dataclasses.fields(Features))
"""Names of `Features` in a file."""


class Accumulator:
    """Accumulates the statistics of batches of features without keeping them.

    Mean and covariance are updated as by Chan, Golub and LeVeque (1983), with the rounding errors
    of centred features.
    """

    def __init__(self) -> None:
        self._count = 0

    def add(self, features: Num[Array | np.ndarray, "..."]) -> None:
        """Add features (n, d) in float64.

        Raises:
          InputError: unless they are finite, have two axes, and d is that of earlier batches.
        """
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2:
            raise InputError(f"features have shape {rows.shape}: give (samples, features)")
        broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(broken):
            raise InputError(
                f"{len(broken)} of {len(rows)} samples have features that are not finite, the "
                f"first one is number {broken[0]}: check its image"
            )
        if not len(rows):
            return
        if not self._count:
            self._mean = np.zeros(rows.shape[1])
            self._scatter = np.zeros((rows.shape[1], rows.shape[1]))
        elif rows.shape[1] != len(self._mean):
            raise InputError(
                f"samples have {rows.shape[1]} features and had {len(self._mean)} before: give "
                "features of one network"
            )
        mean = rows.mean(0)
        centred, shift = rows - mean, mean - self._mean
        count = self._count + len(rows)
        self._scatter += centred.T @ centred
        self._scatter += np.outer(shift, shift) * (self._count * len(rows) / count)
        self._mean += shift * (len(rows) / count)
        self._count = count

    def statistics(self) -> Statistics:
        """Return the statistics of all samples added.

        Raises:
          InputError: if there are fewer than two samples.
        """
        if self._count < 2:
            raise InputError(f"there is no covariance of {self._count} samples: give at least 2")
        cov = self._scatter / (self._count - 1)
        return Statistics(mean=self._mean.copy(), cov=cov, count=self._count)


def statistics(features: Num[Array | np.ndarray, "..."]) -> Statistics:
    """Return the statistics of features (n, d)."""
    accumulator = Accumulator()
    accumulator.add(features)
    return accumulator.statistics()


def frechet_distance(
    mean_a: Num[Array | np.ndarray, "..."],
    cov_a: Num[Array | np.ndarray, "..."],
    mean_b: Num[Array | np.ndarray, "..."],
    cov_b: Num[Array | np.ndarray, "..."],
) -> float:
    """Return the squared Fréchet distance of two Gaussians, equation (1).

    Args:
      mean_a, mean_b: means, (d,).
      cov_a, cov_b: covariances, (d, d).

    Raises:
      InputError: if shapes do not match, or a covariance is not finite, not symmetric or has
        negative eigenvalues.
    """
    mean_a, cov_a = checked("the first Gaussian", mean_a, cov_a)
    mean_b, cov_b = checked("the second Gaussian", mean_b, cov_b)
    if mean_a.shape != mean_b.shape:
        raise InputError(
            f"Gaussians of {len(mean_a)} and {len(mean_b)} dimensions have no distance: give "
            "statistics of the same features"
        )
    factors = factor("the first Gaussian", cov_a).T @ factor("the second Gaussian", cov_b)
    trace = np.linalg.svd(factors, compute_uv=False).sum()
    squares = np.sum((mean_a - mean_b) ** 2)
    return max(0.0, float(squares + np.trace(cov_a) + np.trace(cov_b) - 2 * trace))


def factor(where: str, cov: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d rank"]:
    """Return F with F F^T = cov, without directions of rounding errors only.

    Raises:
      InputError: if the covariance has negative eigenvalues.
    """
    values, vectors = np.linalg.eigh(cov)
    largest = max(values[-1], 0.0)
    if values[0] < -NEGATIVITY * largest:
        raise InputError(
            f"the covariance of {where} has the negative eigenvalue {values[0]:.3g}, so it is "
            "none: compute it again"
        )
    kept = values > len(values) * np.finfo(np.float64).eps * largest
    return vectors[:, kept] * np.sqrt(values[kept])


def checked(
    where: str, mean: Num[Array | np.ndarray, "..."], cov: Num[Array | np.ndarray, "..."]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Return mean and covariance in float64, the covariance exactly symmetric.

    Raises:
      InputError: if shapes are wrong, values are not finite, or the covariance is not symmetric.
    """
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or not mean.size or cov.shape != (len(mean), len(mean)):
        raise InputError(
            f"mean and covariance of {where} have shapes {mean.shape} and {cov.shape}: give (d,) "
            "and (d, d)"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise InputError(f"{where} has values that are not finite: compute its features again")
    asymmetry = np.abs(cov - cov.T).max()
    if asymmetry > ASYMMETRY * np.abs(cov).max():
        raise InputError(
            f"the covariance of {where} is not symmetric, it differs from its transpose by "
            f"{asymmetry:.3g}: compute it again"
        )
    return mean, (cov + cov.T) / 2


def save_statistics(path: str | os.PathLike, statistics: Statistics) -> None:
    """Write statistics like pytorch-fid, as `mu` and `sigma` in an .npz file, with `count` and the
    `Features` (`network`, `weights`, `resize`) if known."""
    arrays = {"mu": statistics.mean, "sigma": statistics.cov}
    if statistics.count is not None:
        arrays["count"] = np.array(statistics.count)
    if statistics.features is not None:
        arrays |= {k: np.array(v) for k, v in dataclasses.asdict(statistics.features).items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(Path(path), content.getvalue())


def load_statistics(path: str | os.PathLike) -> Statistics:
    """Read an .npz file of `save_statistics`, or of pytorch-fid without `count` and `features`.

    Raises:
      InputError: if the file is missing, damaged or has other contents.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            known = ("mu", "sigma", "count", *FEATURE_FIELDS)
            arrays = {name: file[name] for name in known if name in file}
    except FileNotFoundError:
        raise InputError(f"there are no statistics {path}: check the path") from None
    except DAMAGED as error:
        refuse_lfs_pointer(path)
        raise InputError(
            f"{path} cannot be read as .npz ({error}): compute the statistics again"
        ) from error
    missing = [name for name in ("mu", "sigma") if name not in arrays]
    if missing:
        raise InputError(
            f"{path} lacks {' and '.join(missing)}: give statistics as pytorch-fid writes them"
        )
    count = arrays.pop("count", None)
    if count is not None and (count.shape != () or count.dtype.kind not in "iu" or count < 2):
        raise InputError(f"count in {path} is {count}: give the whole number of samples")
    origin = {name: arrays.pop(name) for name in FEATURE_FIELDS if name in arrays}
    strings = [x for x in origin.values() if x.dtype.kind == "U" and x.shape == ()]
    if origin and len(strings) < len(FEATURE_FIELDS):
        raise InputError(
            f"{path} does not describe its features by strings ({', '.join(FEATURE_FIELDS)}): "
            "compute the statistics again"
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise InputError(f"{name} in {path} has dtype {array.dtype}: give real numbers")
    mean, cov = checked(str(path), arrays["mu"], arrays["sigma"])
    features = Features(**{name: str(x) for name, x in origin.items()}) if origin else None
    return Statistics(
        mean=mean, cov=cov, count=None if count is None else int(count), features=features
    )
