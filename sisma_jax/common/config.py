"""Reading configs: a Python file with `get_config(variant)`, and overrides from the command line.

    --config configs/celeba.py:small --config.train.batch_size=64
    --config celeba:small

The second form names a config that is installed with the package, from any folder.

Only this module and the config files handle an `ml_collections.ConfigDict`. Every other module gets
its section as a frozen dataclass (`section`).
"""

import ast
import dataclasses
import importlib.util
import inspect
import json
import re
import shlex
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from sisma_jax.common.errors import InputError, did_you_mean, nearest
from sisma_jax.common.files import local_path, refuse_lfs_pointer

T = TypeVar("T")


TRAINED_BY = {
    "model": "sisma_jax.train",
    "parser": "sisma_jax.train_parser",
    "autoencoder": "sisma_jax.train_autoencoder",
}
"""The command that trains the network of a section. A config is for the command of the first of
these sections that it has: "autoencoder" beside "model" is the trained one that the model uses."""


def trained_by(config: ConfigDict | dict) -> str | None:
    """The command that a config, or that of a run, is for; None if it is for none."""
    return next((command for name, command in TRAINED_BY.items() if _has(config, name)), None)


def _has(config: ConfigDict | dict, section: str) -> bool:
    return isinstance(config.get(section), ConfigDict | dict)


def load_config(spec: str, overrides: Sequence[str] = (), *, command: str = "") -> ConfigDict:
    """Return the config of `file.py` or `file.py:variant` with overrides applied.

    Args:
      spec: path of a file that defines `get_config()` or `get_config(variant)`, or the name of an
        installed one, with its variant.
      overrides: words of the command line: "--config.a.b=value", or "--config.a.b" and "value".
        Values are Python literals; others are strings.
      command: the training command that reads it; "" for any.

    Raises:
      InputError: if the file, the variant or a key does not exist, the file fails or returns no
        config, the config is for another command, or a value has another type than the one it
        replaces.
    """
    config = _get_config(spec)
    kind = trained_by(config)
    if command and kind not in (command, None):
        raise InputError(
            f"{spec} is a config of {kind}, not of {command}: use `python -m {kind} --config "
            f"{shlex.quote(spec)}`"
        )
    pairs, others = split_overrides(overrides)
    if others:
        raise InputError(
            f"{others[0]!r} does not override a config: write --config.SECTION.KEY=VALUE"
        )
    for key, value in pairs:
        _override(config, key, value)
    return config


def split_spec(spec: str) -> tuple[Path, str]:
    """The file and the variant (or "") of `file.py:variant`, or of the name of an installed one."""
    text = str(local_path(spec))
    path, colon, variant = text.partition(".py:")  # Windows' drives have a colon
    if colon or Path(text).is_file():
        return Path(f"{path}.py" if colon else path), variant
    name, _, variant = text.partition(":")
    if name in installed_configs():
        return _installed_folder() / f"{name}.py", variant
    return Path(text), ""


def installed_configs() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted(
        file.stem
        for file in _installed_folder().glob("[!_]*.py")
        if re.search(r"^def get_config\b", file.read_text("utf-8"), re.MULTILINE)
    )


def _installed_folder() -> Path:
    return Path(importlib.util.find_spec("sisma_jax.configs").origin).parent


def _get_config(spec: str) -> ConfigDict:
    path, variant = split_spec(spec)
    if not path.is_file():
        raise _no_config_file(spec, path)
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if module_spec is None:
        raise InputError(
            f"config file {path} is not a Python file: give one like configs/celeba.py"
        )
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise _failed(path, error) from error
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise InputError(
            f"config file {path} defines no get_config(): write one that returns a ConfigDict"
        )
    if variant and not inspect.signature(get_config).parameters:
        raise InputError(f"config file {path} has no variants: leave out ':{variant}'")
    try:
        config = get_config(variant) if variant else get_config()
    except Exception as error:
        if variant and isinstance(error, ValueError):
            raise InputError(f"config file {path} refuses variant {variant!r}: {error}") from error
        raise _failed(path, error) from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"get_config() of {path} returns {config!r:.60}, which is not a ConfigDict: return "
            "one, as configs/celeba.py does"
        )
    return config


def _no_config_file(spec: str, path: Path) -> InputError:
    """The error for a `spec` whose file, `path`, does not exist."""
    if not spec:
        what = "the name of the config is empty"
    elif path.is_dir():
        what = f"config {spec} is a folder"
    else:
        what = f"config file {path} does not exist"
    installed, beside = installed_configs(), map(str, path.parent.glob("*.py"))
    near = nearest(str(path).partition(":")[0], [*installed, *beside])
    return InputError(
        f"{what}: give the path of a Python file, or the name of an installed config, "
        f"{', '.join(installed)}{f'; did you mean {near!r}?' if near else ''}"
    )


def _failed(path: Path, error: Exception) -> InputError:
    """The error for a config file that raised `error`, with the line in it."""
    line, reason = None, f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, reason = error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((x.lineno for x in reversed(frames) if x.filename == str(path)), None)
    where = "" if line is None else f", line {line}"
    return InputError(f"config file {path}{where} fails ({reason}): correct the file")


def split_overrides(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The keys and values of overrides (`load_config`), and the other words.

    Raises:
      InputError: the last one has no value.
    """
    pairs, others = [], []
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("--config."):
            others.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(remaining, None)
            if value is None:
                raise InputError(f"override {word!r} has no value: write {word}=VALUE")
        pairs.append((key, value))
    return pairs, others


def _override(config: ConfigDict, key: str, text: str) -> None:
    if key == "model.kind":
        raise InputError(
            f"config key 'model.kind' cannot be {text!r}: the config file chooses the model, so "
            "give that of another one by --config, such as scadm or ca2sis"
        )
    *parents, last = key.split(".")
    node = config
    for depth, name in enumerate(parents):
        node = node.get(name)
        if not isinstance(node, ConfigDict):
            raise _unknown_key(".".join(parents[: depth + 1]) + f".{last}", flatten(config))
    if last not in node:
        raise _unknown_key(key, flatten(config), _configs_with(key, trained_by(config)))
    old = node[last]
    if isinstance(old, ConfigDict):
        raise InputError(f"config key {key!r} is a section: set one of its keys, {', '.join(old)}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(old, str) and not isinstance(value, str):
        value = text
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if old is not None and type(value) is not type(old):
        raise InputError(
            f"config key {key!r} cannot be {text!r}: give {_KINDS.get(type(old), 'a value')}, such "
            f"as {old!r}"
        )
    node[last] = value


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple of values",
    list: "a list of values",
}


def _configs_with(key: str, command: str | None) -> list[str]:
    """The installed configs of a command that have a key without naming a variant."""
    configs = {name: _get_config(name) for name in installed_configs()}
    return [name for name, x in configs.items() if trained_by(x) == command and key in flatten(x)]


def _unknown_key(key: str, known: Collection[str], configs: Sequence[str] = ()) -> InputError:
    """The error for a key that is not in `known`; it names the configs that have it, a similar key,
    or all of the section."""
    section, _, last = key.rpartition(".")
    names = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    same = [other for other in known if other.rpartition(".")[2] == last]
    sections = dict.fromkeys(other.rpartition(".")[0] for other in known if "." in other)
    if section and section not in sections:
        near = nearest(section, sections) and nearest(key, known)
        if not near:
            return InputError(
                f"config key {key!r} does not exist, since the config has no section {section!r}: "
                f"its sections are {', '.join(sections)}"
            )
        remedy = f"did you mean {near!r}?"
    elif configs:
        remedy = f"give a config that has it by --config, such as {' or '.join(configs)}"
    elif same:  # in another section
        remedy = f"did you mean {nearest(key, same, least=0.0)!r}?"
    elif near := nearest(last, names):
        remedy = f"did you mean {f'{section}.{near}'.lstrip('.')!r}?"
    elif section:
        remedy = f"the keys of {section} are {', '.join(names)}"
    else:
        remedy = did_you_mean(key, known, f"the sections are {', '.join(sections)}")
    return InputError(f"config key {key!r} does not exist: {remedy}")


def flatten(config: ConfigDict | dict) -> dict[str, Any]:
    """Return {"a.b": value} of a nested config."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def section(cls: type[T], config: ConfigDict | dict, name: str) -> T:
    """Return the config's section `name` as the frozen dataclass `cls`.

    Raises:
      InputError: if the section is missing, or lacks a key or has one too many for `cls`.
    """
    if not _has(config, name):
        kind = trained_by(config)
        remedy = f"it is one of {kind}" if kind else "add one as in configs/common.py"
        raise InputError(f"the config has no section {name!r}: {remedy}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config[name].items()}
    known = [f"{name}.{field.name}" for field in dataclasses.fields(cls)]
    for key in values:
        if f"{name}.{key}" not in known:
            raise _unknown_key(f"{name}.{key}", known)
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError(f"the config's section {name!r} is not complete: {error}") from None


def check_counts(config: Any, name: str, *lists: str, besides: Collection[str] = ()) -> None:
    """Raise InputError unless all integers of a dataclass are whole numbers of at least 1.

    Args:
      config: a dataclass.
      name: name of the config's section, for errors.
      lists: fields that are tuples of such numbers, none of which may be empty.
      besides: integers that are not checked.
    """
    is_count = lambda value: type(value) is int and value >= 1
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type is int and field.name not in besides and not is_count(value):
            raise InputError(f"{name}.{field.name} is {value!r}: set a whole number of at least 1")
    for field in lists:
        values = getattr(config, field)
        if not values:
            raise InputError(f"{name}.{field} is empty: give at least one number")
        if not all(map(is_count, values)):
            raise InputError(f"{name}.{field} is {values!r}: give whole numbers of at least 1")


def check_among(name: str, values: Sequence[int], known: Sequence[int], what: str) -> None:
    """Raise InputError unless all values of the config's key `name` are known; each is `what`, for
    instance "the side of a stage"."""
    for value in values:
        if value not in known:
            raise InputError(
                f"{name} has {value!r}, which is not {what}: choose among "
                f"{', '.join(map(str, known))}"
            )


def to_json(config: ConfigDict) -> str:
    """Return the resolved config as text, for the run folder."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(path: Path) -> ConfigDict:
    """Read what `to_json` wrote.

    Raises:
      InputError: if the file is missing or holds no config.
    """
    try:
        return ConfigDict(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        folder = path.parent
        why = "it does not exist" if not folder.exists() else f"it has no {path.name}"
        why = "it is a file" if folder.is_file() else why
        raise InputError(
            f"{path.parent} is not a run folder, {why}: give the --workdir of a training run"
        ) from None
    except (json.JSONDecodeError, AttributeError, TypeError, UnicodeDecodeError):
        refuse_lfs_pointer(path)
        raise InputError(
            f"{path} is not a run's config: restore the file, or train into a new folder"
        ) from None


def check_least(settings: Any, section: str, least: int, *names: str) -> None:
    """Raises InputError unless these fields of a section's dataclass are `least` or more."""
    for name in names:
        if getattr(settings, name) < least:
            raise InputError(f"{section}.{name} is {getattr(settings, name)}: set {least} or more")


def check_choice(settings: Any, section: str, name: str, choices: Sequence[str]) -> None:
    """Raises InputError unless this field of a section's dataclass is one of `choices`."""
    if getattr(settings, name) not in choices:
        raise InputError(
            f"{section}.{name} is {getattr(settings, name)!r}: choose one of {', '.join(choices)}"
        )


def check_shares(settings: Any, section: str, *names: str) -> None:
    """Raises InputError unless these fields of a section's dataclass are in [0, 1]."""
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise InputError(
                f"{section}.{name} is {getattr(settings, name)}: choose a share in [0, 1]"
            )
