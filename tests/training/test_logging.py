"""metrics.jsonl and TensorBoard's events, and disks that are full."""

import errno
import json
import struct
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tensorboardX import record_writer
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sisma_jax.runs.folder import RunFolder
from sisma_jax.training.logging import MetricsLog


def events(folder):
    """Those of the only file: length, checksum, event and checksum of each."""
    [path] = folder.glob("events.out.tfevents.*")
    data = path.read_bytes()
    found, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        found.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 12 + length + 4
    return found


def test_what_is_written_is_there_at_once(tmp_path):
    log = MetricsLog(RunFolder(tmp_path), start=4)
    log.write(6, {"loss": 0.5, "norm": float("inf"), "rate": 2.0})
    log.image(6, "samples", np.zeros((4, 6, 3), np.uint8))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 6,
        "loss": 0.5,
        "rate": 2.0,
    }
    version, began, *rest = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (began.step, began.session_log.status) == (5, SessionLog.START)
    values = [(event.step, value) for event in rest for value in event.summary.value]
    assert [(step, value.tag) for step, value in values] == [
        (6, "loss"),
        (6, "rate"),
        (6, "samples"),
    ]
    assert [value.simple_value for _, value in values[:2]] == [0.5, 2.0]
    assert (values[2][1].image.height, values[2][1].image.width) == (4, 6)
    log.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("kind", ["scalars", "images"])
def test_events_on_a_full_disk_are_an_error_and_no_waiting(tmp_path, monkeypatch, kind):
    full = partial(record_writer.open_file, "/dev/full")
    monkeypatch.setattr(record_writer, "open_file", lambda path: full())
    raised = []

    def write():
        log = MetricsLog(RunFolder(tmp_path), start=0)
        for step in range(1, 30):  # more than a queue would hold
            try:
                if kind == "scalars":
                    log.write(step, {"loss": 0.5})
                else:
                    log.image(step, "samples", np.zeros((4, 4, 3), np.uint8))
            except OSError as error:
                raised.append(error.errno)
        log.close()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(timeout=30)
    assert not writer.is_alive()
    assert raised == 29 * [errno.ENOSPC]
