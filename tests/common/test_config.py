"""Config files, overrides and what is said about wrong ones."""

import ast
import re
import shutil
from pathlib import Path

import pytest

from sisma_jax.common.config import (
    TRAINED_BY,
    flatten,
    from_json,
    installed_configs,
    load_config,
    section,
    split_spec,
    to_json,
    trained_by,
)
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import LOCK_FILES
from sisma_jax.configs import common
from sisma_jax.data.classes import CELEBAMASK
from sisma_jax.models import SISMAConfig
from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.generators import model_config
from sisma_jax.runs.folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(variant='plain'):\n"
        "    if variant not in ('plain', 'big'):\n"
        "        raise ValueError('choose plain or big')\n"
        "    return ConfigDict(dict(seed=0, name='', train=dict(\n"
        "        steps=10 if variant == 'plain' else 1000, rate=1e-3, flip=True, sizes=(1, 2))))\n"
    )
    return str(path)


def test_variants_and_overrides(config_file):
    config = load_config(
        f"{config_file}:big",
        ["--config.train.rate=1", "--config.seed", "3", "--config.train.flip=false",
         "--config.train.sizes=(3, 4)", "--config.name=12"],
    )  # fmt: skip
    assert config.to_dict() == {
        "seed": 3,
        "name": "12",
        "train": {"steps": 1000, "rate": 1.0, "flip": False, "sizes": (3, 4)},
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.train.step=5"], "'train.step' does not exist: did you mean 'train.steps'?"),
        (["--config.tran.steps=5"], "'tran.steps' does not exist: did you mean 'train.steps'?"),
        (["--config.seeds=5"], "did you mean 'seed'?"),
        (
            ["--config.train.steps=many"],
            "'train.steps' cannot be 'many': give a whole number, such as 10",
        ),
        (["--config.train.steps=1.5"], "'train.steps' cannot be '1.5'"),
        (["--config.train.flip=2"], "'train.flip' cannot be '2'"),
        (["--config.train=5"], "'train' is a section: set one of its keys"),
        (["--config.seed"], "has no value: write --config.seed=VALUE"),
        (["--seed=3"], "'--seed=3' does not override a config: write --config"),
        (["--config.train.heads=3"], "the keys of train are flip, rate, sizes, steps"),
        (["--config.data.rate=3"], "the config has no section 'data': its sections are train"),
        (["--config.name.rate=3"], "the config has no section 'name': its sections are train"),
        (["--config.rate=3"], "did you mean 'train.rate'?"),
        (["--config.qqq=3"], "the sections are train"),
    ],
)
def test_wrong_overrides_are_refused(config_file, overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(config_file, overrides)


@pytest.mark.parametrize(
    ("spec", "override", "message"),
    [
        ("synthetic", "model.style=mamba", "give .* such as celeba_style or synthetic_style$"),
        ("synthetic", "model.widths=(8,8)", "by --config, such as ca2sis$"),
        ("synthetic", "model.kind=scadm", "the config file chooses the model"),
        ("ca2sis", "model.kind=scadm", "the config file chooses the model"),
        ("ca2sis", "autoencoder.path=x", "no section 'autoencoder': its sections are checkpoint, "),
        ("scadm", "loss.styles=own", "no section 'loss': its sections are .*, flow, "),
    ],
)
def test_a_key_of_other_configs_is_not_taken_for_a_misspelt_one(spec, override, message):
    with pytest.raises(InputError, match=message):
        load_config(spec, [f"--config.{override}"])


def test_wrong_files_and_variants_are_refused(config_file, tmp_path):
    with pytest.raises(InputError, match=r"none\.py does not exist"):
        load_config(str(tmp_path / "none.py"))
    with pytest.raises(InputError, match="'huge': choose plain or big"):
        load_config(f"{config_file}:huge")
    with pytest.raises(InputError, match=r"config .* is a folder: give the path of a Python file"):
        load_config(str(tmp_path))
    with pytest.raises(InputError, match="the name of the config is empty: give the path"):
        load_config("")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r" defines no get_config\(\): write one"),
        ("get_config = 3", r" defines no get_config\(\): write one"),
        ("x = 1\ndef get_config(:", r", line 2 fails \(invalid syntax\): correct the file"),
        ("import nowhere", r", line 1 fails \(ModuleNotFoundError: .*'nowhere'\): correct"),
        ("def get_config():\n    return 1 / 0", r", line 2 fails \(ZeroDivisionError: "),
        ("def get_config():\n    raise ValueError('odd')", r", line 2 fails \(ValueError: odd\)"),
        ("def get_config():\n    return 3", r"returns 3, which is not a ConfigDict: return one"),
        ("def get_config(a, b): pass", r" fails \(TypeError: .*'a' and 'b'\): correct the file"),
    ],
)
def test_a_faulty_config_file_is_one_sentence_with_its_line(content, message, tmp_path):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(InputError, match=message):
        load_config(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("spec", "near"),
    [("synthetik", "synthetic"), ("celeb:small", "celeba"),
     ("configs/parsr.py", "configs/parser.py"), ("configs/celeba", "configs/celeba.py")],
)  # fmt: skip
def test_a_misspelt_config_has_its_name_proposed(spec, near, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    with pytest.raises(InputError, match=rf"did you mean '{near}'\?$"):
        load_config(spec)


COMMAND_OF = {"autoencoder": "train_autoencoder", "parser": "train_parser"}


@pytest.mark.parametrize("name", installed_configs())
def test_a_config_of_another_command_names_that_command(name):
    own = f"sisma_jax.{COMMAND_OF.get(name, 'train')}"
    assert trained_by(load_config(name, command=own)) == own
    for other in {*TRAINED_BY.values()} - {own}:
        # The override would be refused for the wrong reason if it came first.
        with pytest.raises(InputError, match=rf"{name} is a config of {own}, not of {other}: use"):
            load_config(name, ["--config.no.key=1"], command=other)


def test_a_run_of_another_command_names_that_command(tmp_path):
    run, commands = RunFolder(tmp_path / "run"), list(TRAINED_BY.values())
    run.path.mkdir()
    for name in ("autoencoder", "parser", "synthetic"):
        run.config_file.write_text(to_json(load_config(name)))
        own = f"sisma_jax.{COMMAND_OF.get(name, 'train')}"
        assert run.config(own) == run.config(*commands) == run.config()
        for other in {*commands} - {own}:
            with pytest.raises(
                InputError, match=f"is a run of {own}: give the folder of a run of {other}$"
            ):
                run.config(other)
    with pytest.raises(InputError, match=r"is a run of sisma_jax\.train, which sisma_jax\.train_p"):
        run.check(load_config("parser"))
    run.config_file.write_text('{"model": "AutoencoderKL"}')  # beside an autoencoder's weights
    with pytest.raises(InputError, match=r"is no run, by its config\.json: give the folder"):
        run.config("sisma_jax.train")


@pytest.mark.parametrize("size", ["small", "base", "large", "xlarge"])
def test_celeba_variants_are_the_models_of_that_name(size):
    config = load_config(f"{CONFIGS / 'celeba.py'}:{size}")
    assert section(SISMAConfig, config, "model") == getattr(SISMAConfig, size)(remat="dots")


@pytest.mark.parametrize("size", [512, 1024])
def test_celeba_at_more_pixels_is_large_on_more_tokens(size):
    config = load_config(f"{CONFIGS / 'celeba.py'}:{size}")
    large = SISMAConfig.large(latent_size=size // 8, remat="dots")
    assert section(SISMAConfig, config, "model") == large
    assert (config.data.size, config.data.path) == (size, f"data/celeba-{size}")


@pytest.mark.parametrize(
    ("spec", "size"),
    [("celeba:64", 64), ("celeba:128", 128), ("celeba_style:64", 64), ("celeba_style:128", 128),
     ("scadm:64", 64)],
)  # fmt: skip
def test_generators_of_small_photographs_fit_their_autoencoder_and_data(spec, size):
    config = load_config(spec)
    trained = f"celeba-{size}"
    autoencoder = load_config(f"autoencoder:{trained}")
    parser = load_config(f"parser:{trained}")
    assert config.autoencoder.path == f"runs/autoencoder-{trained}"
    assert config.data == autoencoder.data == parser.data
    assert (config.data.size, config.data.path) == (size, f"data/{trained}")
    first_stage = section(AutoencoderConfig, autoencoder, "autoencoder")
    model = model_config(config)
    assert model.latent_channels == first_stage.latent_channels
    assert model.factor == first_stage.factor and model.latent_size * model.factor == size


def test_a_config_survives_the_run_folder(tmp_path):
    config = load_config(str(CONFIGS / "autoencoder.py"))
    run = RunFolder(tmp_path / "run")
    with run.claim(config):
        assert flatten(run.config())["train.steps"] == config.train.steps
    with run.claim(config):  # the same config again: continue
        pass


def test_a_run_folder_refuses_another_config(tmp_path):
    run = RunFolder(tmp_path / "run")
    spec = str(CONFIGS / "synthetic.py")
    with run.claim(load_config(spec)):
        pass
    with run.claim(load_config(spec, ["--config.train.steps=7"])):
        pass
    (run.checkpoints / "5").mkdir(parents=True)
    with (
        pytest.raises(InputError, match=r"has model.width = 96, but this run has 64"),
        run.claim(load_config(spec, ["--config.model.width=64"])),
    ):
        pass
    assert run.config().train.steps == 7


def test_a_run_without_a_saved_step_is_replaced(tmp_path):
    run = RunFolder(tmp_path / "run")
    spec = str(CONFIGS / "synthetic.py")
    narrow, wide = (load_config(spec, [f"--config.model.width={x}"]) for x in (64, 96))
    with run.claim(narrow, data="a", classes=CELEBAMASK, perceptual="b"):
        run.checkpoints.mkdir()
        run.autoencoder.mkdir()
        with pytest.raises(InputError, match="is in use by"):
            run.check(wide)
    assert run.is_replaced_by(wide) and not run.is_replaced_by(narrow)
    with run.claim(narrow, data="a"):
        assert run.autoencoder.exists()
    with run.claim(wide, data="c"):
        assert run.config().model.width == 96
        assert {path.name for path in run.path.iterdir()} - {*LOCK_FILES} == {
            "checkpoints", "config.json", "data.json"
        }  # fmt: skip
    with pytest.raises(InputError, match=r"which sisma_jax.train_parser cannot continue"):
        run.check(load_config("parser"))
    for result in (run.checkpoints / "5", run.samples, run.diverged):
        result.mkdir()
        assert not run.is_replaced_by(narrow)
        with pytest.raises(InputError, match=r"has model.width = 96, but this run has 64"):
            run.check(narrow)
        result.rmdir()


def test_what_a_continued_run_would_not_read_is_refused_or_said(tmp_path):
    run = RunFolder(tmp_path / "run")
    config = lambda *overrides: load_config(
        str(CONFIGS / "synthetic.py"), [f"--config.{override}" for override in overrides]
    )
    with run.claim(config("train.init_from=a")):
        pass
    with run.claim(config("train.init_from=b")):  # nothing is trained yet: it is read
        assert not run.not_read("train.init_from", "b") + run.not_read("train.profile_at", 2)
        assert not run.not_read("autoencoder.path", "b")
    (run.checkpoints / "6").mkdir(parents=True)
    (run.checkpoints / "12").mkdir()
    (run.checkpoints / "18.orbax-checkpoint-tmp").mkdir()
    run.autoencoder.mkdir()
    with pytest.raises(
        InputError, match=r"init_from is now c, but .* its own step 12: leave .*'b'"
    ):
        run.check(config("train.init_from=c"))
    run.check(config("train.init_from=b"))
    run.check(config())
    assert run.not_read("train.init_from", "").endswith("the run continues from its own step 12")
    assert run.not_read("train.profile_at", 12) == (
        "nothing is traced: the run continues from step 12"
    )
    assert run.not_read("train.steps", 11) == "it is ignored: the run is at step 12 already"
    assert not run.not_read("train.steps", 12)
    assert not run.not_read("train.profile_at", 13) + run.not_read("train.profile_at", 0)
    assert run.not_read("autoencoder.path", "b").endswith(f"its own copy, {run.autoencoder}")


def test_a_folder_of_other_things_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with (
        pytest.raises(InputError, match="is not empty and holds no run"),
        RunFolder(tmp_path).claim(load_config(str(CONFIGS / "synthetic.py"))),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_installed_config_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = load_config("celeba:small", ["--config.train.steps=7"])
    assert named == load_config(f"{CONFIGS / 'celeba.py'}:small", ["--config.train.steps=7"])
    assert load_config("celeba_style") == load_config(str(CONFIGS / "celeba_style.py"))
    assert split_spec("celeba:small") == (CONFIGS / "celeba.py", "small")
    (tmp_path / "celeba").mkdir()  # a folder of faces, perhaps
    assert load_config("celeba:small", ["--config.train.steps=7"]) == named


def test_a_name_that_is_no_config_lists_the_installed_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"autoencoder", "celeba", "parser", "scadm", "synthetic"} <= {*installed_configs()}
    assert "common" not in installed_configs()
    for spec in ("celebra:small", "common", "configs/celeba.py", "configs/celeba.py:small"):
        with pytest.raises(
            InputError, match=rf"{spec.removesuffix(':small')}.* does not exist: "
        ) as caught:
            load_config(spec)
        assert ", ".join(installed_configs()) in str(caught.value)


@pytest.mark.parametrize("name", installed_configs())
def test_a_copy_of_a_config_file_works_in_any_folder(name, tmp_path, monkeypatch):
    shutil.copy(CONFIGS / f"{name}.py", tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    assert load_config("mine.py").to_dict() == load_config(name).to_dict()


def assignments(function):
    """(key, assigned expression, line number) of the unconditional `config.key = expression`."""
    for node in function.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            yield ast.unparse(node.targets[0]).partition(".")[2], node.value, node.lineno


def functions(name):
    nodes = ast.parse((CONFIGS / f"{name}.py").read_text("utf-8")).body
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


def test_every_default_has_a_comment():
    lines = (CONFIGS / "common.py").read_text("utf-8").splitlines()
    found = functions("common")
    for other_values in (
        "long_synthetic_faces", "celebamask_hq", "on_celebamask_hq", "generator_on_celebamask_hq",
        "on_small_photographs", "generator_on_small_photographs",
    ):  # fmt: skip
        del found[other_values]  # of keys that other functions explain
    for function in found.values():
        for _, value, line in assignments(function):
            assert isinstance(value, ast.Call) or "  # " in lines[line - 1], lines[line - 1]


@pytest.mark.parametrize("name", installed_configs())
def test_a_config_file_states_only_what_differs_from_the_defaults(name):
    source = (CONFIGS / f"{name}.py").read_text("utf-8")
    kind = re.search(r"config = common\.(\w+)\(\)", source)
    config = getattr(common, kind[1] if kind else "sisma")()
    if "common.add_style(config)" in source:
        common.add_style(config)
    defaults = flatten(config)
    assert flatten(load_config(name)).keys() == defaults.keys()
    for key, value, _ in assignments(functions(name)["get_config"]):
        if not isinstance(value, ast.Call):
            assert ast.literal_eval(value) != defaults[key], key
    assert not any(isinstance(node, ast.IfExp) for node in ast.walk(ast.parse(source)))


def test_damaged_and_missing_run_configs_are_named(tmp_path):
    with pytest.raises(InputError, match=r"is not a run folder, it has no config\.json"):
        from_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(to_json(load_config(str(CONFIGS / "synthetic.py")))[:40])
    with pytest.raises(InputError, match="is not a run's config"):
        from_json(tmp_path / "config.json")


def test_a_section_names_unknown_and_missing_keys():
    with pytest.raises(
        InputError, match=r"'model.widht' does not exist: did you mean 'model.width'"
    ):
        section(SISMAConfig, {"model": {"widht": 3}}, "model")
    with pytest.raises(InputError, match="no section 'model': add one"):
        section(SISMAConfig, {}, "model")
    with pytest.raises(InputError, match=r"no section 'model': it is one of sisma_jax\.train_p"):
        section(SISMAConfig, {"parser": {}}, "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 3}, "model.patch 3 does not divide model.latent_size 32"),
        ({"factor": 6}, "6 x 1: .* power of two"),
        ({"orders": 3}, "model.orders is 3"),
        ({"width": 30}, "model.width is 30"),
        ({"depth": 0}, "model.depth is 0"),
        ({"mask_channels": 20}, "model.mask_channels is 20"),
        ({"dtype": "float16"}, "model.dtype is 'float16'"),
        ({"remat": "all"}, "model.remat is 'all': choose one of none, names, dots, block"),
        ({"scan": "fast"}, "model.scan is 'fast': choose one of auto, sequential"),
    ],
)
def test_impossible_models_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SISMAConfig(**changes)
