"""Data sets damaged at random, and preparations killed at random."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data import layouts
from sisma_jax.data.prepared import PreparedDataset
from tests.datasets import SIZE, TEST_FROM, write_raw, write_toy
from tests.killing import Point


def command(source: Path, out: Path) -> list[str]:
    words = ["--source", source, "--out", out, "--size", SIZE, "--shard-size", 2, "--workers", 2]
    words += ["--test-from", TEST_FROM]
    return [sys.executable, "-m", "sisma_jax.prepare", *map(str, words)]


def assert_same_records(out, whole):
    assert json.loads((out / "dataset.json").read_text()) == json.loads(
        (whole / "dataset.json").read_text()
    )
    for split in ("train", "test"):
        one, other = (PreparedDataset(path, SIZE, split=split) for path in (out, whole))
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a["image"], b["image"])
            np.testing.assert_array_equal(a["labels"], b["labels"])
    assert not (out / ".unfinished").exists()


POINTS = {
    "before the plan": Point("os.rename", r"plan\.json"),
    "while a shard is written": Point("open", r"/CelebA-HQ-img/1\.jpg"),
    "before a shard appears": Point("os.rename", r"-> .*\.arrayrecord$"),
    "between a shard and its note": Point("os.rename", r"-> .*\.arrayrecord\.json"),
    "in the middle of the shards": Point("os.rename", r"-> .*\.arrayrecord$", 2),
    "before the list of rejected items": Point("os.rename", r"-> .*rejected\.jsonl"),
    "before the description": Point("os.rename", r"-> .*dataset\.json"),
    "while it tidies up": Point("os.remove", r"plan\.json"),
}


@pytest.mark.slow
def test_killed_at_every_point_it_ends_with_the_same_records(tmp_path):
    raw = write_raw(tmp_path / "raw")
    subprocess.run(command(raw, tmp_path / "whole"), check=True, capture_output=True)
    for name, point in POINTS.items():
        killed = subprocess.run(
            command(raw, tmp_path / "out"),
            env=os.environ | point.environment(), capture_output=True, start_new_session=True,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, name
    subprocess.run(command(raw, tmp_path / "out"), check=True, capture_output=True)
    assert_same_records(tmp_path / "out", tmp_path / "whole")


@pytest.mark.night
def test_killed_at_random_moments_it_ends_with_the_same_records(tmp_path):
    raw = write_raw(tmp_path / "raw")
    began = time.monotonic()
    subprocess.run(command(raw, tmp_path / "whole"), check=True, capture_output=True)
    duration = time.monotonic() - began
    dice, killed = random.Random(0), 0
    out = tmp_path / "out"
    while killed < 20:
        process = subprocess.Popen(
            command(raw, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=dice.uniform(0.3, 1.0) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            duration *= 1.05  # not always before the work has begun
        if (out / "dataset.json").exists():  # finished in spite of it: begin anew, and kill sooner
            assert_same_records(out, tmp_path / "whole")
            shutil.rmtree(out)
            duration *= 0.8
    subprocess.run(command(raw, out), check=True, capture_output=True)
    assert_same_records(out, tmp_path / "whole")


def damage(path: Path, dice: random.Random) -> bool:
    """Something that happens to files; whether it must show."""
    content = bytearray(path.read_bytes())
    kind = dice.randrange(9)
    if kind == 0:
        content = content[: dice.randrange(len(content))]
    elif kind == 1:
        for _ in range(dice.randint(1, 30)):
            content[dice.randrange(len(content))] = dice.randrange(256)
    elif kind == 2:
        at = dice.randrange(len(content))
        content[at:at] = dice.randbytes(dice.randint(1, 100))
    elif kind == 3:
        content = bytearray(dice.randbytes(dice.randint(0, 500)))
    elif kind == 4:
        size = dice.choice([(1, 1), (SIZE, 7), (SIZE // 2, SIZE // 2), (100, 100), (SIZE, SIZE)])
        mode = dice.choice(["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I", "CMYK"])
        image = Image.new(mode, size, dice.randrange(2))
        suffix = "PNG" if path.suffix == ".png" and mode != "CMYK" else "JPEG"
        try:
            image.save(path, suffix)
        except OSError:  # a mode that JPEG does not have
            image.convert("L").save(path, suffix)
        return False
    elif kind == 5:
        path.rename(
            path.with_name(dice.choice(["x", "00003_ski", "-1", "é", "0000000"]) + path.suffix)
        )
        return False
    elif kind == 6:
        path.unlink()
        return False
    elif kind == 7:
        shutil.copy(path, path.with_suffix(dice.choice([".PNG", ".jpeg", ".jpg", ".txt"])))
        return False
    else:
        content = content[::-1]
    path.write_bytes(content)
    return path.suffix == ".png"  # a JPEG has no checksums


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=pytest.mark.slow if seed < 6 else pytest.mark.night)
        for seed in range(20)
    ],
)
def test_damaged_inputs_are_read_right_or_rejected(seed, tmp_path):
    """Fifty damaged files each: never another error than a reason, never a wrong label map."""
    dice = random.Random(seed)
    kind = ("raw", "toy")[seed % 2]
    write = write_raw if kind == "raw" else write_toy
    intact = write(tmp_path / "intact")
    options = dict(test_from=TEST_FROM)
    layout = layouts.survey(intact, **options)
    reader = layouts.Reader(SIZE, layout.classes, "canonical", crop=False)
    entries = [entry for split in layout.splits.values() for entry in split]
    right = {entry.id: reader.read(entry) for entry in entries}
    for round_number in range(50):
        copy = Path(shutil.copytree(intact, tmp_path / "copy"))
        files = sorted(p for p in copy.rglob("*") if p.suffix in (".png", ".jpg"))
        victim = dice.choice(files)
        number = victim.stem.split("_")[0]
        its = str(int(number)) if kind == "raw" else victim.stem
        shows = damage(victim, dice)
        try:
            found = layouts.survey(copy, **options)
        except InputError:
            found = dataclasses.replace(layout, splits={}, rejected=[])
        for split in found.splits.values():
            for entry in split:
                try:
                    item = reader.read(entry)
                except InputError as error:
                    assert str(error), (round_number, victim)
                    continue
                assert item["image"].shape == (SIZE, SIZE, 3), (round_number, victim)
                labels = item["labels"]
                assert labels.shape == (SIZE, SIZE) and labels.dtype == np.uint8
                assert labels.max() < len(layout.classes)
                # Whatever is not the victim's is as it was, and so is what was read of it.
                if its != entry.id or shows:
                    np.testing.assert_array_equal(labels, right[entry.id]["labels"])
                    np.testing.assert_array_equal(item["image"], right[entry.id]["image"])
        shutil.rmtree(copy)
