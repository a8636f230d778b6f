"""Who may use a page that asks for a password."""

import os
import stat
from pathlib import Path

from sisma_jax.errors import InputError


def read_accounts(path: Path) -> list[tuple[str, str]]:
    """Read a file of lines `user:password`.

    Returns:
      (user, password) of each line, in order; empty lines do not count.

    Raises:
      InputError: if there is no such file or nobody in it, a line is none of these, somebody is in
        it twice, or users of this machine other than its owner may read it.
    """
    try:
        status = path.stat()
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"--auth {path} is no UTF-8 text: save it as such") from None
    except OSError as error:
        raise InputError(
            f"--auth names a file of lines user:password, and this one cannot be read "
            f"({error.strerror}); on the command line a password would be seen by everyone on this "
            "machine"
        ) from None
    # Windows keeps its permissions elsewhere; a pipe has no readers but this command.
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
