"""Accounts of a page that asks for a password."""

import os
import stat
from pathlib import Path

from sisma_jax.common.errors import InputError


def read_accounts(path: Path) -> list[tuple[str, str]]:
    """Read a file of lines `user:password`.

    Returns:
      (user, password) of each line, in order; empty lines are skipped.

    Raises:
      InputError: if the file is missing or empty, a line has another form, a user occurs twice, or
        other users of this machine may read the file.
    """
    try:
        status = path.stat()
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"--auth {path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        if ":" in str(path):  # a password may be in it
            raise InputError(
                "--auth has user:password where the name of a file of such lines is needed: write "
                "them into a file, since a password on the command line would be visible to "
                "everyone on this machine"
            ) from None
        raise InputError(
            f"--auth {path} cannot be read ({error.strerror}): name a file of lines user:password"
        ) from None
    # Windows keeps permissions elsewhere; a pipe has no other readers.
    others = stat.S_IRWXG | stat.S_IRWXO
    if os.name == "posix" and stat.S_ISREG(status.st_mode) and status.st_mode & others:
        raise InputError(f"--auth {path} is open to other users of this machine: chmod 600 {path}")
    accounts: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        user, _, password = line.partition(":")
        user = user.strip()
        if not user or not password:
            raise InputError(f"line {number} of --auth {path} is not of the form user:password")
        if user in accounts:
            raise InputError(f"line {number} of --auth {path} names {user!r} again: remove one")
        accounts[user] = password
    if not accounts:
        raise InputError(f"--auth {path} holds no line user:password, so nobody could log in")
    return list(accounts.items())
