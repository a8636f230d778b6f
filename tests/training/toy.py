"""A model that trains in no time, for what the loop does whatever it trains."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sisma_jax.data.config import Feed
from sisma_jax.devices.sharding import MeshConfig, make_mesh
from sisma_jax.runs.checkpoint import CheckpointConfig
from sisma_jax.runs.folder import RunFolder
from sisma_jax.training.loop import Task, train
from sisma_jax.training.program import Trainable
from sisma_jax.training.state import TrainConfig, make_optimizer

FEATURES = 8
SETTINGS = dict(
    steps=6, batch_size=8, accumulate=1, optimizer="adamw", learning_rate=1e-2, warmup=0,
    schedule="constant", weight_decay=0.0, clip=1.0, ema_decay=0.9, init_from="", skip_limit=3,
    log_every=2, sample_every=100, profile_at=0, profile_steps=1,
)  # fmt: skip


def settings(**changes) -> TrainConfig:
    return TrainConfig(**SETTINGS | changes)


def init_params():
    key = jax.random.key(0)
    return {"w": jax.random.normal(key, (FEATURES, 2)), "frozen": jnp.ones((2,), jnp.int32)}


def draw(key, batch):
    return {"noise": jax.random.normal(key, (len(batch["x"]), 2))}


def loss_fn(params, batch):
    error = batch["x"] @ params["w"] - batch["noise"]
    return jnp.mean(jnp.square(error)), {"largest": jnp.max(jnp.abs(error))}


class Batches:
    """Endless; the batches whose numbers are in `bad` are not finite."""

    def __init__(self, start, rows, bad=()):
        self.numbers, self.rows, self.bad = itertools.count(start), rows, bad
        self.closed = False

    def __iter__(self):
        return self

    def __next__(self):
        number = next(self.numbers)
        x = np.random.default_rng(number).normal(size=(self.rows, FEATURES)).astype(np.float32)
        if number in self.bad:
            x[0, 0] = np.nan
        return {"x": x}

    def close(self):
        self.closed = True


def trainable(config, **changes) -> Trainable:
    defaults = dict(
        init_params=lambda: {"w": init_params()["w"]},
        optimizer=make_optimizer(config, lambda path, leaf: ((0,), (1,))),
        draw=draw,
        loss_fn=loss_fn,
    )
    return Trainable(**defaults | changes)


def task(config, bad=(), **changes) -> Task:
    defaults = dict(
        trainable=trainable(config),
        feed=Feed(
            lambda start: Batches(start, config.batch_size, bad),
            lambda number: [f"{number}-{row}" for row in range(config.batch_size)],
        ),
        sample_grid=lambda ema: np.zeros((4, 4, 3), np.uint8),
    )
    return Task(**defaults | changes)


def run(workdir, *, bad=(), mesh=None, task_changes=None, checkpoint=None, **changes):
    """Train the toy in `workdir`; the folder is not claimed."""
    workdir.mkdir(exist_ok=True)
    config = settings(**changes)
    with jax.numpy_dtype_promotion("standard"):
        return train(
            run=RunFolder(workdir),
            config=config,
            checkpoint=CheckpointConfig(**dict(every=2, keep=2, keep_every=0) | (checkpoint or {})),
            mesh=mesh or make_mesh(MeshConfig(data=-1, fsdp=1)),
            record={"seed": 0, "config": {}, "data": None},
            task=task(config, bad, **task_changes or {}),
        )
