"""Commands that are killed, with all of their processes, at a named point of their work.

A point is an audit event of Python (`os.rename`, `os.mkdir`, `open`, `shutil.rmtree`), raised just
before the thing is done, so a kill there leaves everything before it and nothing of it.
"""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Point:
    """The `count`-th event whose arguments, joined by " -> ", the pattern is found in."""

    event: str
    pattern: str
    count: int = 1

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment; it has to lead a process group of its own."""
        return {
            "PYTHONPATH": str(Path(__file__).parent),
            "SISMA_JAX_TESTS_KILL_AT": f"{self.event}\n{self.pattern}\n{self.count}",
        }
