"""Check this installation: `python -m sisma_jax.doctor`.

Prints versions, devices, the chosen implementation of the selective scan with the reason, and which
optional packages and weights are found. Then tests, in less than a minute on two CPU cores, the
scan against float64 and a tiny SISMA, forward and gradient. Ends with advice; the status is 1 if a
test fails.
"""

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sisma_jax.common import cli
from sisma_jax.common.errors import InputError, RunError
from sisma_jax.common.install import accelerator, how_to_install, versions
from sisma_jax.common.processes import cores
from sisma_jax.devices.throughput import memory_limit
from sisma_jax.evaluation.networks import (
    BACKBONES,
    DEFAULT_PARSER,
    DEFAULT_WEIGHTS,
    INCEPTION,
    LINEAR,
    TRAIN_PARSER,
)
from sisma_jax.kernels import selective_scan
from sisma_jax.kernels.selective_scan import oracle
from sisma_jax.kernels.selective_scan.api import choose
from sisma_jax.models import SISMA, SISMAConfig
from sisma_jax.models.sisma.model import init_params

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
EXTRAS = {
    "hub": ("huggingface_hub", "published weights by hf://owner/name"),
    "paint": ("gradio", "sisma_jax.paint"),
    "notebook": ("ipykernel", "the notebooks of launch/, executed here"),
}
"""A package and the purpose of each extra."""
STATES = 16
"""State size of `large`; the choice of the kernel depends on it."""
TOLERANCE = 1e-3
"""Relative to the largest value; a GPU may multiply matrices in TF32."""


def software() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in ("sisma_jax", *PACKAGES):
        yield package, importlib.metadata.version(package)
    yield from versions(PLUGINS).items()


def devices() -> Iterator[tuple[str, str]]:
    kinds = [device.device_kind for device in jax.devices()]
    for kind in dict.fromkeys(kinds):
        yield jax.default_backend(), f"{kinds.count(kind)} x {kind}"
    if limit := memory_limit():
        yield "memory", f"{limit / 2**30:.1f} GiB that JAX may use on each"
    if jax.default_backend() == "cpu":
        yield "cores", str(cores())


def optional_parts(weights: Path) -> Iterator[tuple[str, str]]:
    """Optional packages, published weights and the face parser."""
    for extra, (package, purpose) in EXTRAS.items():
        there = importlib.util.find_spec(package) is not None
        yield extra, purpose if there else f"not installed, for {purpose} ({how_to_install(extra)})"
    for use, file in (
        ("FID", INCEPTION),
        *((f"LPIPS {name}", file) for name, file in BACKBONES.items()),
        *((f"LPIPS {name} linear", file) for name, file in LINEAR.items()),
    ):
        there = (weights / file.file).exists()
        yield (
            use,
            str(weights / file.file) if there else f"no {weights / file.file} ({file.source})",
        )
    there = (DEFAULT_PARSER / "config.json").exists()
    yield "face parser", str(DEFAULT_PARSER) if there else f"no {DEFAULT_PARSER} ({TRAIN_PARSER})"


def test_scan() -> str:
    """Compare the chosen scan and its gradients with float64.

    Raises:
      RunError: if they differ.
    """
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    batch, length, channels = 2, 48, 32
    arrays = {
        "u": normal(batch, length, channels),
        "delta": 0.5 * normal(batch, length, channels),
        "A": -np.exp(normal(channels, STATES)),
        "B": normal(batch, length, STATES),
        "C": normal(batch, length, STATES),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels),
        "h0": None,
    }
    given = {name: jnp.asarray(x) for name, x in arrays.items() if x is not None}
    weight = normal(batch, length, channels)

    def loss(given: dict) -> tuple[jax.Array, jax.Array]:
        y = selective_scan(**given, delta_softplus=True)
        return jnp.sum(weight * y), y

    gradients, y = jax.jit(jax.grad(loss, has_aux=True))(given)
    expected_y, last = oracle.forward(arrays, delta_softplus=True)
    expected = oracle.gradients(arrays, weight, np.zeros_like(last), delta_softplus=True)
    pairs = [(y, expected_y), *((gradients[name], expected[name]) for name in given)]
    worst = max(float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in pairs)
    if not worst < TOLERANCE:
        raise RunError(
            f"the scan {choose(STATES)[0]!r} differs from float64 by {worst:.1e} of the largest "
            "value"
        )
    return f"{choose(STATES)[0]} within {worst:.0e} of float64, gradients too"


def test_model() -> str:
    """Check that a tiny SISMA has a finite loss and gradient.

    Raises:
      RunError: if they are not.
    """
    config = SISMAConfig.tiny(depth=1, latent_size=8)
    shapes = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype), shapes
    )
    z = jnp.ones((2, config.latent_size, config.latent_size, config.latent_channels))
    labels = jnp.zeros((2, config.image_size, config.image_size), jnp.uint8)

    def loss(params: dict) -> jax.Array:
        velocity = SISMA(config).apply({"params": params}, z, jnp.array([0.2, 0.8]), labels)
        return jnp.mean(jnp.square(velocity - z))

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gradient)))
    if not (np.isfinite(value) and np.isfinite(norm) and norm > 0):
        raise RunError(f"a tiny SISMA has loss {value} and gradient norm {norm}")
    return f"a tiny SISMA has a finite loss ({value:.2f}) and gradient ({norm:.2f})"


TESTS: dict[str, Callable[[], str]] = {"scan": test_scan, "model": test_model}


def advice() -> Iterator[str]:
    """Yield what to change here, one sentence each."""
    extra = accelerator()
    if extra and jax.default_backend() == "cpu":
        yield (
            f"this machine has a device for {extra}, but JAX computes on the CPU: "
            f"{how_to_install(extra)}, and unset JAX_PLATFORMS"
        )
    if jax.default_backend() == "cpu" and "hugetlb" not in os.environ.get("GLIBC_TUNABLES", ""):
        yield "export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 makes training on a CPU faster (Linux)"


def show(title: str, rows: Iterator[tuple[str, str]]) -> None:
    print(title)
    for name, value in rows:
        print(f"  {name:17s} {value}")


def main() -> None:
    parser = cli.parser("sisma_jax.doctor", __doc__, "python -m sisma_jax.doctor")
    parser.add_argument(
        "--weights", type=cli.path, default=DEFAULT_WEIGHTS, help="folder of published weights"
    )
    args = parser.parse_args()
    if args.weights != DEFAULT_WEIGHTS and not args.weights.is_dir():
        raise InputError(f"--weights {args.weights} is not a folder: give one of published weights")

    show("Versions", software())
    show("Devices", devices())
    name, reason = choose(STATES)
    show("Selective scan", iter([(name, reason)]))
    show("Optional", optional_parts(args.weights))
    print("Self-test")
    failed = []
    for name, test in TESTS.items():
        started = time.monotonic()
        try:
            outcome = test()
        except Exception as error:  # whatever is wrong with this installation
            outcome = f"FAILED: {type(error).__name__}: {error}"
            failed.append(name)
        print(f"  {name:17s} {outcome} ({time.monotonic() - started:.1f} s)", flush=True)
    for sentence in advice():
        print(f"note: {sentence}")
    if failed:
        raise RunError(
            f"the self-test of {' and '.join(failed)} failed: repair the installation (versions "
            "and devices above), or set JAX_PLATFORMS=cpu to leave the accelerator out"
        )
    print("all is well")


if __name__ == "__main__":
    cli.run(main)
