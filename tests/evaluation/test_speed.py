"""Speed of synthesis and of its peers: what is timed, what follows from it, what does not fit."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from sisma_jax import Synthesizer
from sisma_jax.common.errors import InputError
from sisma_jax.devices.sharding import local_mesh, replicated
from sisma_jax.evaluation import peers, speed
from sisma_jax.evaluation.peers import (
    measure_peers,
    peer_tables,
    random_weights,
    time_generator,
    time_sdm,
    twins,
)
from sisma_jax.evaluation.speed import (
    DoesNotFit,
    Timing,
    clock,
    measure_speed,
    speed_tables,
    unless_too_large,
)
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from sisma_jax.models.ca2sis.config import CA2SISConfig
from sisma_jax.models.cost.by_hand import mask_macs, velocity_macs
from sisma_jax.models.generators import Macs, generator
from sisma_jax.models.sdm.model import SDMConfig, sdm_macs
from sisma_jax.models.sisma.model import init_params
from tests.autoencoders import SMALL_TINY, random_params

TINY = SISMAConfig(
    latent_size=8, factor=4, width=16, depth=2, state=2, mask_channels=8, dtype="float32"
)
TWIN = dataclasses.replace(TINY, mixer="attention", attention_head=8)
"""It compiles faster."""
TINY_CA2SIS = CA2SISConfig.tiny(
    num_classes=19, widths=(8, 8, 8, 8), stem_width=8, norm_groups=2, style_channels=1,
    remat="none", dtype="float32",
)  # fmt: skip
TINY_SDM = SDMConfig.tiny(image_size=8, channels=8, multipliers=(1,), norm_groups=2)
UNITS = dict(steps=(1,), solvers=("euler",), guidances=(1.0,), batches=(2,), seconds=0.01)


@pytest.fixture(scope="module")
def synthesizer():
    shapes = jax.eval_shape(lambda key: init_params(TWIN, key), jax.random.key(0))
    autoencoder = Autoencoder(SMALL_TINY, random_params(SMALL_TINY))
    weights = random_weights(shapes), autoencoder
    return Synthesizer(TWIN, *jax.device_put(weights, replicated(local_mesh())))


@pytest.fixture
def seconds_pass(monkeypatch):
    """Calls whose durations are given, in a time that only they spend."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def calls(*durations):
        coming = itertools.chain(durations, itertools.repeat(durations[-1]))

        def call():
            now[0] += next(coming)

        return call

    return calls


def test_the_first_of_quick_calls_warms_up_and_the_median_of_the_others_counts(seconds_pass):
    assert clock(seconds_pass(0.75, 0.125, 0.5, 0.25), seconds=1.0) == Timing(0.25, 4)
    assert clock(seconds_pass(0.001), seconds=1.0).calls == speed.MOST_CALLS
    assert clock(seconds_pass(0.9, 0.8), seconds=1.0).calls == speed.LEAST_CALLS


def test_slow_calls_are_timed_as_often_as_patience_allows(seconds_pass):
    assert clock(seconds_pass(7.0, 5.0, 6.0), seconds=1.0) == Timing(6.0, 3)
    assert clock(seconds_pass(15.0, 10.0), seconds=1.0, patience=30.0) == Timing(12.5, 2)
    assert clock(seconds_pass(50.0), seconds=1.0, patience=40.0) == Timing(50.0, 1)
    assert clock(seconds_pass(2.0, 1.0), seconds=5.0, patience=3.0) == Timing(2.0, 1)


def test_synthesis_is_timed_with_and_without_its_decoder(synthesizer, monkeypatch):
    made = []

    def one_second(call, seconds):
        made.append(np.asarray(call()))
        return Timing(1.0, 3)

    monkeypatch.setattr(speed, "clock", one_second)
    found = measure_speed(synthesizer, **UNITS)
    images, latents = made
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
    rows = max(2, jax.local_device_count())
    assert latents.shape == (rows, 8, 8, 4) and latents.dtype == np.float32

    (case,) = found["cases"]
    assert case["status"] == "measured" and case["calls"] == [3, 3]
    assert case["seconds_per_image"] == case["seconds_per_image_latents"] == 0.5
    assert case["images_per_second"] == case["images_per_second_latents"] == 2.0
    assert case["arguments_bytes"] > 0 and case["temporary_bytes"] > 0
    assert found["parameters"]["model"] == sum(x.size for x in jax.tree.leaves(synthesizer.params))
    gmacs = found["gmacs"]
    assert gmacs["velocity"] == velocity_macs(TWIN) / 1e9 and gmacs["mask"] == mask_macs(TWIN) / 1e9
    assert 1 < gmacs["velocity_xla"] / gmacs["velocity"] < 2  # a small model is mostly norms
    # The decoder's matrix products: two linear maps of all 64 latents and a stack of convolutions.
    assert gmacs["decode_xla"] > 64 * 4 * 48 / 1e9
    assert found["dtype"] == "float32" and found["image_size"] == 32 and found["peak_bytes"] > 0
    assert {"device", "devices", "cores", "versions"} <= found.keys()
    assert json.loads(json.dumps(found)) == found


def test_every_combination_is_a_case_and_all_guidances_but_one_share_a_program(
    synthesizer, monkeypatch
):
    timed = []

    def time_synthesis(synthesizer, batch, options, seconds):
        timed.append((batch, options.solver, options.steps, options.guided))
        times = ("seconds_per_image", "images_per_second")
        numbers = [*times, *(f"{name}_latents" for name in times)]
        return dict.fromkeys([*numbers, "arguments_bytes", "temporary_bytes"], len(timed))

    monkeypatch.setattr(speed, "time_synthesis", time_synthesis)
    monkeypatch.setattr(speed, "xla_macs", lambda config: Macs(1.5 * velocity_macs(config), 0, 0))
    found = measure_speed(
        synthesizer,
        batches=(1, 16), solvers=("euler", "heun"), steps=(5, 10), guidances=(1.0, 1.5, 2.0),
    )  # fmt: skip
    keys = ("batch", "solver", "steps", "guidance")
    cases = {tuple(case[key] for key in keys): case for case in found["cases"]}
    assert [*cases] == [*itertools.product((1, 16), ("euler", "heun"), (5, 10), (1.0, 1.5, 2.0))]
    assert len(timed) == len(set(timed)) == 16
    plain, guided, more = (cases[1, "euler", 5, guidance] for guidance in (1.0, 1.5, 2.0))
    assert plain["seconds_per_image"] != guided["seconds_per_image"] == more["seconds_per_image"]
    assert (plain["velocities"], guided["velocities"]) == (5, 10)
    assert cases[16, "heun", 10, 2.0]["velocities"] == 40
    assert plain["gmacs_per_image"] == (mask_macs(TWIN) + 5 * velocity_macs(TWIN)) / 1e9
    assert guided["gmacs_per_image"] == pytest.approx(2 * plain["gmacs_per_image"])
    cost, times = (table.markdown() for table in speed_tables(found))
    assert "| XLA's count / by hand | 1.5 |" in cost and "| 16 | heun | 10 | 1.5 |" in times


def test_a_batch_that_does_not_fit_is_said_not_run(synthesizer, monkeypatch):
    monkeypatch.setattr(speed, "available_memory", lambda: 1000)
    monkeypatch.setattr(speed, "clock", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(speed, "xla_macs", lambda config: Macs(0, 0, 0))
    monkeypatch.setattr(Synthesizer, "memory", lambda *_, **__: {"temporary": 2000})
    found = measure_speed(synthesizer, **UNITS)
    (case,) = found["cases"]
    assert case["status"] == "does not fit" and "GiB are left" in case["reason"]
    _, times = speed_tables(found)
    assert "| 2 | euler | 1 | 1 | does not fit |" in times.markdown()


def test_only_a_lack_of_memory_is_a_case_that_does_not_fit():
    def fail(message):
        raise jax.errors.JaxRuntimeError(message)

    told = unless_too_large(lambda: fail("RESOURCE_EXHAUSTED: Out of memory\nlong list"))
    assert told == {"status": "does not fit", "reason": "RESOURCE_EXHAUSTED: Out of memory"}
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        unless_too_large(lambda: fail("INTERNAL: broken"))


def test_memory_that_is_left_is_known_here():
    assert 2**20 < speed.available_memory() < 2**50


@pytest.mark.parametrize(
    ("model", "batch"), [("SISMA", 2), pytest.param("attention twin", 1, marks=pytest.mark.slow)]
)
def test_a_mask_and_a_velocity_are_timed(model, batch):
    sizes = twins(TINY, 4, "float32")[model]
    mask, velocity, temporary = time_generator(sizes, batch, 0.01)
    assert mask.seconds > 0 and velocity.seconds > 0 and temporary > 0
    assert min(mask.calls, velocity.calls) >= speed.LEAST_CALLS


def test_the_decoding_of_an_image_is_timed():
    config = AutoencoderConfig.tiny(block_channels=(8,), norm_groups=4, fold=4, scaling_factor=0.5)
    timing = peers.time_decoding(config, 4, seconds=0.0)
    assert timing.seconds > 0 and timing.calls >= 1


def test_a_step_of_an_sdm_is_timed():
    guided, temporary = time_sdm(TINY_SDM, 1.5, seconds=1e-9, patience=0.0)
    assert guided.seconds > 0 and guided.calls == 1 and temporary > 0


@pytest.fixture(scope="module")
def found_peers():
    """With times that are given: the mask's half a second, a velocity's grows with the tokens."""

    def time_generator(config, batch, seconds, patience=speed.PATIENCE):
        assert (seconds, patience) in ((0.5, speed.PATIENCE), (0.5, 7.0))
        per_token = {"mamba": 2.0, "attention": 8.0}[getattr(config, "mixer", "mamba")]
        velocity = batch * per_token * config.latent_size**2
        return Timing(0.5 * batch, 9), Timing(velocity, 4), 1000 * config.latent_size

    def time_sdm(config, guidance, seconds, patience):
        assert (seconds, patience) == (0.5, 7.0)
        return Timing(3.0 if guidance == 1.0 else 5.0, 2), 2000

    decoding = lambda config, latent_size, seconds, patience: Timing(0.25, 3)

    def style(config, seconds, patience):
        assert config == TINY_CA2SIS
        return Timing(0.125, 3)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(peers, "time_generator", time_generator)
        patched.setattr(peers, "time_style", style)
        patched.setattr(peers, "time_sdm", time_sdm)
        patched.setattr(peers, "time_decoding", decoding)
        patched.setattr(peers, "xla_macs", lambda config: Macs(3 * 10**9, 0, 10**9))
        patched.setattr(peers, "_sdm_xla_macs", lambda config: 4 * 10**9)
        systems = [(TINY, SMALL_TINY), (TINY_CA2SIS, None)]
        return measure_peers(
            TINY, tokens=(4, 16), systems=systems, sdm=TINY_SDM, seconds=0.5, patience=7.0
        )


def test_the_twins_are_measured_over_tokens(found_peers):
    assert json.loads(json.dumps(found_peers)) == found_peers
    assert found_peers["dtype"] == "float32" and found_peers["sizes"]["width"] == 16
    cases = found_peers["over_tokens"]
    assert [(case["model"], case["tokens"], case["pixels"]) for case in cases] == [
        (model, tokens, pixels)
        for tokens, pixels in ((4, 8), (16, 16))
        for model in ("SISMA", "attention twin")
    ]
    assert [case["seconds"] for case in cases] == [8.0, 32.0, 32.0, 128.0]
    for case in cases:
        sizes = twins(TINY, case["tokens"], "float32")[case["model"]]
        assert case["gmacs"] == velocity_macs(sizes) / 1e9
        assert case["mask_gmacs"] == mask_macs(sizes) / 1e9 and case["parameters"] > 1000
        assert (case["status"], case["calls"], case["mask_seconds"]) == ("measured", 4, 0.5)
    lines = peer_tables(found_peers)[0].markdown().splitlines()
    assert lines[2].count("× of 4") == 3
    ours, twin = (line for line in lines if "| 16 |" in line)
    assert "| SISMA | 16 |" in ours and "| 32 | 4 |" in ours and ours.endswith("| 2 | 0.5 |")
    assert "| attention twin | 16 |" in twin and "| 128 | 4 |" in twin


def test_an_image_is_extrapolated_from_the_steps_that_were_timed(found_peers):
    images = found_peers["images"]
    assert [(case["model"], case["guidance"], case["steps"]) for case in images] == [
        ("SISMA", 1.0, 25), ("CA2-SIS", 1.0, 1), ("SDM", 1.0, 1000),
        ("SISMA", 1.5, 25), ("SDM", 1.5, 1000),
    ]  # fmt: skip
    assert [case["calls"] for case in images] == [4, 4, 2, 4, 2]
    velocity, in_one_pass = 2.0 * 64, 2.0 * 32**2
    assert [case["seconds_per_image"] for case in images] == [
        0.75 + 25 * velocity, 0.5 + in_one_pass, 3000.0, 1.25 + 25 * 2 * velocity, 5000.0
    ]  # fmt: skip
    assert [case["style_seconds"] for case in images] == [None, 0.125, None, None, None]
    assert images[1]["times_sisma"] == (0.5 + in_one_pass) / (0.75 + 25 * velocity)
    assert images[2]["times_sisma"] == 3000 / (0.75 + 25 * velocity)
    assert images[4]["times_sisma"] == 5000 / (1.25 + 50 * velocity)
    assert images[2]["gmacs_per_step"] == sdm_macs(TINY_SDM) / 1e9
    assert images[2]["gmacs_per_image"] == 1000 * images[2]["gmacs_per_step"]
    macs = generator(TINY_CA2SIS).macs()
    assert images[1]["gmacs_per_image"] == (macs.velocity + macs.mask) / 1e9
    assert images[1]["style_gmacs"] == macs.style / 1e9 and images[1]["style_gmacs_xla"] == 1
    for plain, guided in zip((images[0], images[2]), images[3:], strict=True):
        for name in ("gmacs_per_step", "gmacs_per_step_xla", "gmacs_per_image"):
            assert guided[name] == 2 * plain[name] > 0
    table = peer_tables(found_peers)[1].markdown()
    assert "| SDM | 8 | 1.5 |" in table and "| 5 | 2 | – | 5000 | 0.7811 |" in table


def test_a_model_that_is_not_sisma_has_no_twin():
    found = measure_peers(TINY_CA2SIS, systems=(), sdm=None)
    assert found["over_tokens"] == found["images"] == []


def test_an_image_of_one_pass_and_its_style_are_timed():
    units = dict(tokens=(), sdm=None, seconds=1e-9, patience=0.0)
    found = measure_peers(TINY, systems=[(TINY_CA2SIS, None)], **units)
    (case,) = found["images"]
    assert case["status"] == "measured" and case["seconds_per_image"] > 0 < case["style_seconds"]
    assert 1 < case["gmacs_per_step_xla"] / case["gmacs_per_step"] < 1.5  # mostly norms


def test_twins_differ_in_their_mixer_alone_and_heads_divide_the_width():
    wide = dataclasses.replace(TINY, width=96, attention_head=64, patch=2)
    ours, twin = twins(wide, 64, "bfloat16").values()
    assert ours.grid == twin.grid == (8, 8) and ours.patch == 1 and ours.dtype == "bfloat16"
    assert (ours.mixer, twin.mixer, twin.attention_head) == ("mamba", "attention", 32)
    assert dataclasses.replace(twin, mixer="mamba", attention_head=64) == ours


def test_networks_that_do_not_fit_are_not_run(monkeypatch):
    monkeypatch.setattr(speed, "available_memory", lambda: 1000)
    monkeypatch.setattr(peers, "random_weights", lambda *_: pytest.fail("it gets weights"))
    with pytest.raises(DoesNotFit, match="GiB are left"):
        time_generator(twins(TINY, 4, "float32")["SISMA"], 2, seconds=0.01)
    with pytest.raises(DoesNotFit, match="GiB are left"):
        time_sdm(TINY_SDM, 1.5, seconds=0.01, patience=0.0)


def does_not_fit(*_):
    raise DoesNotFit("it is too large")


def test_token_counts_that_do_not_fit_are_said_and_the_others_measured(monkeypatch):
    def time_generator(config, batch, seconds):
        return (Timing(1.0, 3), Timing(1.0, 3), 1) if config.grid == (2, 2) else does_not_fit()

    monkeypatch.setattr(peers, "time_generator", time_generator)
    found = measure_peers(TINY, tokens=(4, 16), systems=(), sdm=None)
    status = {(case["model"], case["tokens"]): case["status"] for case in found["over_tokens"]}
    assert status == {
        (model, tokens): "measured" if tokens == 4 else "does not fit"
        for model in ("SISMA", "attention twin")
        for tokens in (4, 16)
    }
    (table,) = peer_tables(found)
    assert table.markdown().count("| does not fit |") == 2


def test_an_sdm_that_does_not_fit_has_no_ratio(monkeypatch):
    monkeypatch.setattr(peers, "time_generator", lambda *_: (Timing(1.0, 3), Timing(1.0, 3), 1))
    monkeypatch.setattr(peers, "time_decoding", lambda *_: Timing(1.0, 3))
    monkeypatch.setattr(peers, "time_sdm", does_not_fit)
    monkeypatch.setattr(peers, "xla_macs", lambda config: Macs(0, 0, 0))
    monkeypatch.setattr(peers, "_sdm_xla_macs", lambda config: 0)
    found = measure_peers(TINY, tokens=(), systems=[(TINY, SMALL_TINY)], sdm=TINY_SDM)
    sdm = found["images"][1]
    assert sdm["status"] == "does not fit" and "times_sisma" not in sdm
    assert "| does not fit |" in peer_tables(found)[-1].markdown()


def test_tokens_that_are_no_square_are_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(peers, "time_generator", lambda *_: pytest.fail("it ran"))
    with pytest.raises(InputError, match="1000 tokens are not a square"):
        measure_peers(TINY, tokens=(256, 1000))
