"""One training step, compiled for a GPU that is not there: the worker of plan_bench.py.

Takes its settings as JSON and prints JSON. The step is the one that `sisma_jax.train` compiles for
a variant of configs/celeba.py with cached latents, or for configs/ca2sis.py (the variant CA2SIS)
with VGG-19, of which only the shapes of the parameters are needed. plan_bench.py ends the process
once XLA has written the planned program, ahead of the machine code, which would take most of the
time.
"""

import dataclasses
import json
import os
import sys
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from sisma_jax.common.config import section
from sisma_jax.configs import ca2sis, celeba
from sisma_jax.devices.sharding import MeshConfig, batch_sharding, make_mesh, replicated
from sisma_jax.kernels.selective_scan.pallas.chips import target
from sisma_jax.models import generators
from sisma_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sisma_jax.models.generators import Config
from sisma_jax.models.judges.backbones import VGG19
from sisma_jax.models.judges.vgg19 import Vgg19, Vgg19Net
from sisma_jax.training.adversarial import DiscriminatorSection
from sisma_jax.training.ca2sis.objective import LossSection, trainable_ca2sis
from sisma_jax.training.objective import FlowConfig, trainable_generator
from sisma_jax.training.program import Trainable, assemble
from sisma_jax.training.state import TrainConfig

MEMORY = 1 << 44
"""Bytes of memory that the compiler is told, so that no program is changed to need less."""
CA2SIS = "ca2sis"
"""The published variant of configs/ca2sis.py; other names are variants of configs/celeba.py."""


def config_of(variant: str) -> ConfigDict:
    return ca2sis.get_config() if variant == CA2SIS else celeba.get_config(variant)


def model_config(variant: str, remat: str) -> Config:
    """The model of a variant, with another `remat`."""
    return dataclasses.replace(generators.model_config(config_of(variant)), remat=remat)


def batch_shapes(variant: str, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What the step of a variant reads of a batch."""
    model, shape = model_config(variant, "none"), jax.ShapeDtypeStruct
    image, latent = (model.image_size,) * 2, (model.latent_size,) * 2
    faces = {"image": shape((batch, *image, 3), np.uint8)}
    latents = {"moments": shape((batch, *latent, 2 * model.latent_channels), np.float16)}
    inputs = faces if variant == CA2SIS else latents
    return inputs | {"labels": shape((batch, *image), np.uint8)}


def constants(variant: str) -> tuple[Any, ...]:
    """What the loss of a variant reads besides, with shapes in place of large parameters."""
    if variant != CA2SIS:
        # Of cached latents' autoencoder, only the scaling is used.
        return (Autoencoder(AutoencoderConfig.tiny(scaling_factor=1.0), {}),)
    image = jax.ShapeDtypeStruct((1, VGG19.smallest, VGG19.smallest, 3), np.float32)
    shapes = jax.eval_shape(Vgg19Net(VGG19).init, jax.random.key(0), image)
    return (Vgg19(VGG19, shapes["params"]),)


def trainable(variant: str, remat: str, settings: TrainConfig) -> Trainable:
    config, model = config_of(variant), model_config(variant, remat)
    if variant != CA2SIS:
        return trainable_generator(model, section(FlowConfig, config, "flow"), settings, seed=0)
    discriminator = section(DiscriminatorSection, config, "discriminator")
    return trainable_ca2sis(model, discriminator, section(LossSection, config, "loss"), settings, 0)


def main(variant: str, card: str, remat: str, batch: int, accumulate: int = 1) -> None:
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target(card, MEMORY), topology="1x1x1"
    )
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), topology.devices)
    settings = dataclasses.replace(
        section(TrainConfig, config_of(variant), "train"), batch_size=batch, accumulate=accumulate
    )
    program = assemble(trainable(variant, remat, settings), config=settings, seed=0, mesh=mesh)
    on = lambda sharding, tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )
    rows = on(batch_sharding(mesh), batch_shapes(variant, batch))
    step = program.compile_step(rows, *on(replicated(mesh), constants(variant)))
    plan = step.memory_analysis()
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
