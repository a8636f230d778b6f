"""Weights from Hugging Face's hub, where the user asks for them by `hf://`.

    hf://owner/name            the repository's top folder, newest revision
    hf://owner/name/folder     a folder in it
    hf://owner/name@revision   a branch, tag or commit

Downloads go through huggingface_hub (extra `hub`) into its cache. What is there is used where the
network is not, or where HF_HUB_OFFLINE=1 says so.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sisma_jax import files
from sisma_jax.errors import InputError

SCHEME = "hf://"
ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?/?")


def local_path(path: str | os.PathLike, config: str, weights: Sequence[str]) -> Path:
    """Return `path` itself, or the folder in the hub's cache that an `hf://` address names.

    Args:
      path: a local path or an address.
      config: name of the file that an address's folder has to hold.
      weights: names of files of which it has to hold one; the first that is there is fetched.

    Raises:
      InputError: if the address is malformed or of another kind, or cannot be reached and is not in
        the cache, or huggingface_hub is not installed.
    """
    text = os.fspath(path)
    if not text.startswith(SCHEME):
        return files.local_path(path)
    found = ADDRESS.fullmatch(text)
    if found is None:
        raise InputError(f"{text} is no address on the hub: write hf://owner/name or a local path")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise InputError(
            f"{text} needs huggingface_hub: install the extra `hub`, or download the folder "
            "yourself and give its path"
        ) from error
    repository, folder, revision = found[1], found[2].strip("/") or None, found[3]
    fetch = partial(hf_hub_download, repository, subfolder=folder, revision=revision)
    try:
        local = Path(fetch(config)).parent
        for name in weights[:-1]:
            try:
                fetch(name)
                return local
            except EntryNotFoundError:  # also where it is not in the cache and offline
                continue
        fetch(weights[-1])
        return local
    except Exception as error:  # the library's own kinds, its HTTP client's and the system's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{text} cannot be had ({reason}): check the name and the network, or download the "
            "folder yourself and give its path"
        ) from error
