"""Accelerator kernels, independent of the models that use them.

The package is `sisma_jax.kernels`. In a checkout `from kernels import selective_scan` works too,
and gives the same modules.
"""

if __name__ == "kernels":
    import importlib
    import pkgutil
    import sys

    _package = importlib.import_module("sisma_jax.kernels")
    for _module in pkgutil.walk_packages(_package.__path__, "sisma_jax.kernels."):
        sys.modules[_module.name.removeprefix("sisma_jax.")] = importlib.import_module(_module.name)
    sys.modules["kernels"] = _package
else:
    from .selective_scan import selective_scan

    __all__ = ["selective_scan"]
