"""What a command tells its user when the input is wrong."""


class InputError(ValueError):
    """The user's input cannot be used.

    The message is one sentence, without capital letter and full stop, that names the offending
    value, where it stands and what to do about it. Commands print it behind "error:", without a
    traceback, and exit with status 2 (`sisma_jax.cli`).
    """
