"""Training commands in processes of their own, alone or several as one run."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.tiny_runs import arguments

ROOT = Path(__file__).parents[2]
GLOO = re.compile(
    r"(\s|\d|\[Gloo\]|Rank|is connected to|peer ranks\.|"
    r"Expected number of connected peer ranks is :)*"
)
"""What gloo says of itself, whose threads write in between each other's words."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(
    inputs, workdir, *, last=(), processes=1, devices=2, cache=None, kill_at=None, **overrides
):
    """Start the processes of a tiny run.

    Args:
      inputs, workdir, overrides: as of `runs.arguments`.
      last: further options of the last process.
      processes, devices: how many, and of how many devices each.
      cache: folder of compiled programs.
      kill_at: a point of `tests.killing` at which they die.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "PYTHONUNBUFFERED": "1",
    }
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    if kill_at is not None:
        environment |= kill_at.environment()
    port = free_port()
    started = []
    for process in range(processes):
        among = ["--coordinator", f"localhost:{port}", "--processes", str(processes)]
        among += ["--process", str(process)]
        command = [sys.executable, "-m", "sisma_jax.train"]
        command += arguments(inputs, workdir, **overrides)
        command += last if process == processes - 1 else []
        started.append(Started(command + (among if processes > 1 else []), environment))
    return started


class Started:
    """A process whose output goes to files: nobody reads a pipe while another one is waited for."""

    def __init__(self, command, environment):
        self.files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=self.files[0],
            stderr=self.files[1],
            start_new_session=True,
        )

    def text(self):
        """What it wrote to stdout and to stderr, but for what gloo says of itself."""
        found = []
        for file in self.files:
            file.seek(0)
            found.append("".join(x for x in file if not GLOO.fullmatch(x)))
        return found

    def send_signal(self, number):
        self.process.send_signal(number)


def ends(started, timeout=300):
    """(status, stdout, stderr) of each."""
    try:
        return [(one.process.wait(timeout), *one.text()) for one in started]
    finally:
        for one in started:
            one.process.kill()


def wait_for(condition, started, seconds=240):
    """Until `condition()`; fails where a process ends first."""
    until = time.monotonic() + seconds
    while not condition():
        for one in started:
            assert one.process.poll() is None, one.text()[1][-2000:]
        assert time.monotonic() < until
        time.sleep(0.05)


def saved(workdir) -> list[int]:
    """Steps of the finished checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(x.name) for x in folder.glob("*") if x.name.isdigit())
