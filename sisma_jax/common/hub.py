"""Weights from the Hugging Face hub, addressed as `hf://`.

    hf://owner/name            the repository's top folder, newest revision
    hf://owner/name/folder     a folder in it
    hf://owner/name@revision   a branch, tag or commit

Downloads go through huggingface_hub (extra `hub`) into its cache, which is used without a network
or with HF_HUB_OFFLINE=1.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sisma_jax.common import files
from sisma_jax.common.errors import InputError
from sisma_jax.common.install import how_to_install

SCHEME = "hf://"
ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?/?")


def local_path(path: str | os.PathLike, config: str, weights: Sequence[str]) -> Path:
    """Return `path` itself, or the folder in the hub's cache that an `hf://` address names.

    Args:
      path: a local path or an address.
      config: name of a file that the addressed folder must hold.
      weights: names of files of which it must hold one; the first that exists is fetched.

    Raises:
      InputError: if the address is malformed or has another scheme, cannot be reached and is not
        in the cache, or huggingface_hub is not installed.
    """
    text = os.fspath(path)
    if not text.startswith(SCHEME):
        return files.local_path(path)
    match = ADDRESS.fullmatch(text)
    if match is None:
        raise InputError(f"{text} is not a hub address: write hf://owner/name or a local path")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise InputError(
            f"{text} needs huggingface_hub: {how_to_install('hub')}, or download the folder "
            "yourself and give its path"
        ) from error
    repository, folder, revision = match[1], match[2].strip("/") or None, match[3]
    fetch = partial(hf_hub_download, repository, subfolder=folder, revision=revision)
    try:
        local = Path(fetch(config)).parent
        for name in weights[:-1]:
            try:
                fetch(name)
                return local
            except EntryNotFoundError:  # also offline, if it is not in the cache
                continue
        fetch(weights[-1])
        return local
    except Exception as error:  # of the library, its HTTP client or the system
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{text} cannot be fetched ({reason}): check the name and the network, or download the "
            "folder yourself and give its path"
        ) from error
