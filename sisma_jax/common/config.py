"""Reading configs: a Python file with `get_config(variant)`, and overrides from the command line.

    --config configs/celeba.py:small --config.train.batch_size=64
    --config celeba:small

The second form names a config that is installed with the package, from any folder.

Only this module and the config files handle an `ml_collections.ConfigDict`. Every other module gets
its section as a frozen dataclass (`section`).
"""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import local_path, refuse_lfs_pointer

T = TypeVar("T")


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Return the config of `file.py` or `file.py:variant` with overrides applied.

    Args:
      spec: path of a file that defines `get_config()` or `get_config(variant)`, or the name of an
        installed one, with its variant.
      overrides: words of the command line: "--config.a.b=value", or "--config.a.b" and "value".
        Values are Python literals; others are strings.

    Raises:
      InputError: if the file, the variant or a key does not exist, or a value has another type
        than the one it replaces.
    """
    config = _get_config(*split_spec(spec))
    for key, value in _pairs(overrides):
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


def _get_config(path: Path, variant: str) -> ConfigDict:
    if not path.is_file():
        raise InputError(
            f"config file {path} does not exist: give the path of a Python file, or the name of an "
            f"installed config ({', '.join(installed_configs())})"
        )
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if module_spec is None:
        raise InputError(
            f"config file {path} is not a Python file: give one like configs/celeba.py"
        )
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(
            f"config file {path} defines no get_config(): write one that returns a ConfigDict"
        )
    if variant and not inspect.signature(module.get_config).parameters:
        raise InputError(f"config file {path} has no variants: leave out ':{variant}'")
    try:
        return module.get_config(variant) if variant else module.get_config()
    except ValueError as error:
        raise InputError(f"config file {path} refuses variant {variant!r}: {error}") from error


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    words = iter(overrides)
    for word in words:
        if not word.startswith("--config."):
            raise InputError(
                f"argument {word!r} is unknown: see --help for what this command takes"
            )
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(words, None)
            if value is None:
                raise InputError(f"override {word!r} has no value: write {word}=VALUE")
        pairs.append((key, value))
    return pairs


def _override(config: ConfigDict, key: str, text: str) -> None:
    *parents, last = key.split(".")
    node = config
    for depth, name in enumerate(parents):
        node = node.get(name)
        if not isinstance(node, ConfigDict):
            raise _unknown_key(config, ".".join(parents[: depth + 1]) + f".{last}")
    if last not in node:
        raise _unknown_key(config, key)
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
            f"config key {key!r} cannot be {text!r}: its value {old!r} is of type "
            f"{type(old).__name__}"
        )
    node[last] = value


def _unknown_key(config: ConfigDict, key: str) -> InputError:
    known = flatten(config)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return InputError(f"config key {key!r} does not exist: did you mean {near[0]!r}?")


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
    if name not in config:
        raise InputError(f"the config has no section {name!r}: add one as in configs/common.py")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config[name].items()}
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
            raise InputError(
                f"config key '{name}.{key}' does not exist: did you mean '{name}.{near}'?"
            )
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError(f"the config's section {name!r} is not complete: {error}") from None


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
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} is not a run folder, it has no {path.name}: "
            "give the --workdir of a training run"
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
