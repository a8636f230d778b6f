"""SISMA: semantic face image synthesis with Mamba, in JAX."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sisma_jax.synthesis.synthesizer import Synthesizer

__all__ = ["Synthesizer"]

_HERE = Path(__file__).parent


class _BesideThisFolder:
    """Finds `sisma_jax.kernels` and `sisma_jax.configs` in a checkout.

    There `kernels/` and `configs/` lie beside this folder; an installed package has them inside.
    """

    @staticmethod
    def find_spec(
        name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, folder = name.rpartition(".")
        if package != __name__ or folder not in ("configs", "kernels"):
            return None
        place = _HERE.parent / folder
        return importlib.util.spec_from_file_location(
            name, place / "__init__.py", submodule_search_locations=[str(place)]
        )


if not (_HERE / "kernels" / "__init__.py").exists():
    sys.meta_path.insert(0, _BesideThisFolder)


def __getattr__(name: str) -> Any:
    # Lazy: the worker processes of data commands do not need JAX.
    if name == "Synthesizer":
        from sisma_jax.synthesis.synthesizer import Synthesizer

        return Synthesizer
    if name == "__version__":
        from importlib.metadata import version

        return version("sisma_jax")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
