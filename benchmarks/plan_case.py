"""One training step, compiled for a GPU that is not there: the worker of plan_bench.py.

Takes its settings as JSON and prints JSON. The step is the one that `sisma_jax.train` compiles for
a variant of configs/celeba.py with cached latents. plan_bench.py ends the process once XLA has
written the planned program, ahead of the machine code, which would take most of the time.
"""

import dataclasses
import functools
import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported

import jax
import numpy as np
from jax.experimental import topologies

from sisma_jax.common.config import section
from sisma_jax.configs import celeba
from sisma_jax.devices.sharding import MeshConfig, batch_sharding, make_mesh
from sisma_jax.kernels.selective_scan.pallas.chips import target
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sisma_jax.training.objective import FlowConfig, trainable_generator
from sisma_jax.training.program import assemble
from sisma_jax.training.state import TrainConfig

MEMORY = 1 << 44
"""Bytes of memory that the compiler is told, so that no program is changed to need less."""


def model_config(variant: str, remat: str) -> SISMAConfig:
    """The model of a variant of configs/celeba.py, with another `remat`."""
    model = section(SISMAConfig, celeba.get_config(variant), "model")
    return dataclasses.replace(model, remat=remat)


def main(variant: str, card: str, remat: str, batch: int, accumulate: int = 1) -> None:
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target(card, MEMORY), topology="1x1x1"
    )
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), topology.devices)
    config = celeba.get_config(variant)
    model = model_config(variant, remat)
    settings = dataclasses.replace(
        section(TrainConfig, config, "train"), batch_size=batch, accumulate=accumulate
    )
    trainable = trainable_generator(model, section(FlowConfig, config, "flow"), settings, seed=0)
    program = assemble(trainable, config=settings, seed=0, mesh=mesh)
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    latent, image = (model.latent_size,) * 2, (model.image_size,) * 2
    rows = {
        "moments": shape((batch, *latent, 2 * model.latent_channels), np.float16),
        "labels": shape((batch, *image), np.uint8),
    }
    scaling_only = Autoencoder(AutoencoderConfig.tiny(scaling_factor=1.0), {})
    plan = program.compile_step(rows, scaling_only).memory_analysis()
    print(
        json.dumps(
            {
                "arguments": plan.argument_size_in_bytes,
                "temporaries": plan.temp_size_in_bytes,
            }
        )
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
