"""One training step, compiled and timed in a separate process: the worker of train_bench.py.

Takes its settings as JSON and prints JSON.
"""

import json
import sys
import time

import jax
import numpy as np

from sisma_jax.devices.sharding import MeshConfig, make_mesh, put_batch, replicated
from sisma_jax.devices.throughput import matmul_peak, mfu, peak_memory
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderKL
from sisma_jax.models.cost.by_hand import macs
from sisma_jax.training.objective import FlowConfig, trainable_generator
from sisma_jax.training.program import assemble
from sisma_jax.training.state import TrainConfig

TINY = dict(latent_size=16, factor=4)
"""64 pixels, small enough for two CPU cores."""
CHUNKS = 5


def model_config(size: str, **changes: str) -> SISMAConfig:
    return getattr(SISMAConfig, size)(**(TINY if size == "tiny" else {}) | changes)


def train_config(*, steps: int, batch_size: int, log_every: int) -> TrainConfig:
    """AdamW at a constant learning rate, without samples."""
    return TrainConfig(
        steps=steps, batch_size=batch_size, accumulate=1, optimizer="adamw", learning_rate=1e-4,
        warmup=0, schedule="constant", weight_decay=0.0, clip=1.0, ema_decay=0.9999, init_from="",
        skip_limit=10, log_every=log_every, sample_every=10**9, profile_at=0, profile_steps=1,
    )  # fmt: skip


def first_stage(config: SISMAConfig, source: str) -> Autoencoder:
    """An autoencoder with random weights, which costs the same as a trained one."""
    if source == "latents":
        return Autoencoder(AutoencoderConfig.tiny(scaling_factor=1.0), {})
    if config.factor == TINY["factor"]:
        sizes = AutoencoderConfig.tiny(scaling_factor=1.0)
    else:
        sizes = AutoencoderConfig.stable_diffusion(dtype="bfloat16")
    init = jax.jit(AutoencoderKL(sizes).init)
    image = np.zeros((1, sizes.factor, sizes.factor, 3), np.float32)
    return Autoencoder(sizes, init(jax.random.key(0), image)["params"])


def random_batch(config: SISMAConfig, source: str, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    pixels, latents = config.image_size, (config.latent_size, config.latent_size)
    blocks = rng.integers(0, config.num_classes, (rows, pixels // 16, pixels // 16), np.uint8)
    labels = blocks.repeat(16, axis=1).repeat(16, axis=2)
    if source == "images":
        return {
            "image": rng.integers(0, 256, (rows, pixels, pixels, 3), np.uint8),
            "labels": labels,
        }
    moments = rng.normal(size=(rows, *latents, 2 * config.latent_channels)).astype(np.float16)
    return {"moments": moments, "labels": labels}


def main(size: str, source: str, scan: str, remat: str, batch: int, fsdp: int, seconds: float):
    config = model_config(size, scan=scan, remat=remat)
    settings = train_config(steps=10**6, batch_size=batch, log_every=100)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=fsdp))
    autoencoder = jax.device_put(first_stage(config, source), replicated(mesh))
    rows = put_batch(random_batch(config, source, batch), mesh)
    flow_config = FlowConfig(sampling="logit_normal", drop=0.1)
    trainable = trainable_generator(config, flow_config, settings, seed=0)
    program = assemble(trainable, config=settings, seed=0, mesh=mesh)
    began = time.perf_counter()
    compiled = program.compile_step(rows, autoencoder)
    compile_seconds = time.perf_counter() - began
    plan = compiled.memory_analysis()
    cost = macs(config)
    figures = {
        "device": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "compile_seconds": compile_seconds,
        "planned_gib": (plan.argument_size_in_bytes + plan.temp_size_in_bytes) / 2**30,
        "gmac_per_image": cost / 1e9,
    }
    if not seconds:
        print(json.dumps(figures))
        return
    state = program.init()

    def run(count: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(count):
            state, metrics = compiled(state, rows, autoencoder)
            if jax.default_backend() == "cpu":
                jax.block_until_ready(metrics)  # as the loop does
        jax.block_until_ready(state)
        return (time.perf_counter() - began) / count

    count = max(1, round(seconds / CHUNKS / min(run(1), run(1))))
    times = sorted(run(count) for _ in range(CHUNKS))
    peak_gib = peak_memory() / 2**30  # before anything but training takes memory
    peak, per_second = matmul_peak(config.dtype), batch / times[CHUNKS // 2]
    figures |= {
        "ms_per_step": 1e3 * times[CHUNKS // 2],
        "ms_per_step_range": [1e3 * times[0], 1e3 * times[-1]],
        "images_per_second": per_second,
        "measured_peak_tflops": peak / 1e12,
        "mfu": mfu(cost, per_second, peak),
        "peak_gib": peak_gib,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compile time is measured
    main(**json.loads(sys.argv[1]))
