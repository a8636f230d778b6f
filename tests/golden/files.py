"""Golden files as arrays, and the tensors whose shapes they list."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of the golden file `name`.npz."""
    with np.load(Path(__file__).with_name(f"{name}.npz")) as file:
        return {key: file[key] for key in file.files}


def golden_tensors(
    golden: dict[str, np.ndarray], recipe: ModuleType, prefix: str = ""
) -> dict[str, np.ndarray]:
    """The tensors of the published network, by the names and shapes in "{prefix}shapes", as
    `recipe.tensor` draws them."""
    shapes = json.loads(str(golden[f"{prefix}shapes"]))
    return {name: recipe.tensor(name, tuple(shape)) for name, shape in shapes.items()}
