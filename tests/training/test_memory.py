"""The estimate of a step's memory: what it follows, and that a step too large is refused early."""

import dataclasses
import re

import pytest

from sisma_jax.common.config import section
from sisma_jax.common.errors import InputError
from sisma_jax.configs import celeba
from sisma_jax.devices.sharding import MeshConfig, make_mesh
from sisma_jax.models import SISMAConfig
from sisma_jax.training import memory
from sisma_jax.training.objective import FlowConfig
from sisma_jax.training.state import TrainConfig
from tests.tiny_runs import train_tiny

MB = 10**6


def estimate(**changes):
    config = celeba.get_config("debug")
    config.model.update({"depth": 8, "latent_size": 8, "factor": 4, "patch": 1} | changes)
    config.train.batch_size = 32
    sections = (section(SISMAConfig, config, "model"), section(FlowConfig, config, "flow"))
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    return memory.estimate(*sections, section(TrainConfig, config, "train"), mesh)


def test_the_estimate_follows_the_policy_and_the_parts():
    policies = [estimate(remat=remat) for remat in ("none", "names", "dots", "block")]
    assert len({needs.state for needs in policies}) == 1
    totals = [needs.total for needs in policies]
    assert totals == sorted(totals, reverse=True) and totals[-1] < totals[0] / 2
    needs = policies[0]
    assert needs.rows == 8
    half = needs.with_rows(4)
    assert half.activations - half.parameters == (needs.activations - needs.parameters) // 2
    assert dataclasses.replace(half, accumulated=0).total < needs.total


def test_a_step_too_large_for_the_devices_is_refused_before_data_are_opened(
    inputs_folder, tmp_path, monkeypatch
):
    tried = lambda **overrides: train_tiny(
        inputs_folder, tmp_path / "run", data__path="nowhere", train__batch_size=32, **overrides
    )
    monkeypatch.setattr(memory, "memory_limit", lambda: 2**40)
    with pytest.raises(InputError, match="nowhere"):
        tried()
    monkeypatch.setattr(memory, "memory_limit", lambda: 2_500_000)
    message = (
        r"a step of train.batch_size 32 needs about \d\.\d MB on each device .* for 8 images at "
        r"once.*gives JAX 2\.5 MB: use train.accumulate=\d, or .*more devices"
    )
    with pytest.raises(InputError, match=message):
        tried()
    with pytest.raises(InputError, match=r"'pallas_triton' cannot run here .*choose 'auto'"):
        tried(model__scan="pallas_triton")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("limit", "by_block", "changes"),
    [
        (100, 17, "train.accumulate=2, or model.remat=block, or more devices"),
        (50, 100, "train.accumulate=8, or more devices"),
        (40, 17, "model.remat=block, or more devices"),
        (34, 17, "train.accumulate=4 together with model.remat=block, or more devices"),
        (19, 17, "more devices (mesh.fsdp shards the state), or a smaller model"),
    ],
)
def test_only_changes_that_suffice_are_proposed(limit, by_block, changes, monkeypatch):
    """Estimates of 20 MB of state, and of activations with "none" and `by_block` with "block"."""

    def estimate(model, *_):
        activations = {"none": 125, "block": by_block}[model.remat]
        return memory.Needs(
            state=20 * MB, parameters=5 * MB, accumulated=0, rows=8, activations=activations * MB
        )

    monkeypatch.setattr(memory, "estimate", estimate)
    monkeypatch.setattr(memory, "memory_limit", lambda: limit * MB)
    config = celeba.get_config("debug")
    config.model.remat, config.train.batch_size = "none", 32
    sections = (section(SISMAConfig, config, "model"), section(FlowConfig, config, "flow"))
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    with pytest.raises(InputError, match=re.escape(f": use {changes}")):
        memory.check_memory(*sections, section(TrainConfig, config, "train"), mesh)
