"""Batches: one global order for any number of processes and threads, resumable by one integer."""

import contextlib
import threading
import time

import numpy as np
import pytest
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data import label_maps
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.input_pipeline import (
    batch_ids,
    fixed_batch,
    open_dataset,
    training_stream,
)

COUNT = 201


class Numbered:
    """Item i: an image that shows i and which side is left, and labels that do likewise."""

    classes = CELEBAMASK
    checksum = None

    def __init__(self, count: int = COUNT, fields: tuple[str, ...] = ("image", "labels")):
        self.ids = [f"number {index}" for index in range(count)]
        self._count = count
        self._fields = fields

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image = np.full((2, 2, 3), index, np.uint8)
        image[:, :, 1] = [0, 1]
        item = {"image": image, "labels": np.tile(np.array([4, 13], np.uint8), (2, 1))}
        return {field: item[field] for field in self._fields}


def numbers(batch: dict[str, np.ndarray]) -> list[int]:
    return batch["image"][:, 0, 0, 0].tolist()


def mirrored(batch: dict[str, np.ndarray]) -> np.ndarray:
    return batch["image"][:, 0, 0, 1] == 1


def take(count: int, source=None, **options) -> list[dict[str, np.ndarray]]:
    options = {"batch_size": 8, "seed": 0, **options}
    with contextlib.closing(training_stream(source or Numbered(), **options)) as stream:
        return [next(stream) for _ in range(count)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for field in batch:
            np.testing.assert_array_equal(batch[field], other[field])


def test_a_batch_stacks_the_fields_as_uint8():
    (batch,) = take(1)
    assert {field: (value.shape, value.dtype) for field, value in batch.items()} == {
        "image": ((8, 2, 2, 3), np.uint8),
        "labels": ((8, 2, 2), np.uint8),
    }


@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_processes_share_the_same_global_batches_in_contiguous_rows(process_count):
    shares = [
        take(12, process_index=index, process_count=process_count) for index in range(process_count)
    ]
    together = [
        {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_same(together, take(12))


@pytest.mark.parametrize("start", [1, 5, 200])
def test_resuming_equals_skipping(start):
    assert_same(take(4, start=start), take(start + 4)[start:])


def test_resuming_on_another_number_of_processes_continues_the_global_order():
    rows = [take(3, start=7, process_index=index, process_count=2) for index in range(2)]
    for (first, second), whole in zip(zip(*rows, strict=True), take(10)[7:], strict=True):
        assert numbers(first) + numbers(second) == numbers(whole)


def test_every_epoch_is_a_permutation_and_no_two_are_alike():
    order = [number for batch in take(COUNT // 2) for number in numbers(batch)]
    epochs = [order[start : start + COUNT] for start in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_one_record_a_batch_is_the_same_order():
    singles = [number for batch in take(16, batch_size=1) for number in numbers(batch)]
    assert singles == [number for batch in take(2) for number in numbers(batch)]


def test_the_seed_decides_the_order():
    assert_same(take(3, seed=1), take(3, seed=1))
    assert numbers(take(1, seed=1)[0]) != numbers(take(1, seed=2)[0])


def test_about_half_is_mirrored_and_a_record_not_always():
    batches = take(20, batch_size=COUNT)
    flips = {number: set() for number in range(COUNT)}
    for batch in batches:
        for number, flip in zip(numbers(batch), mirrored(batch), strict=True):
            flips[number].add(bool(flip))
    assert all(seen == {False, True} for seen in flips.values())
    share = np.mean([mirrored(batch) for batch in batches])
    # Five standard deviations of a fair coin thrown 20 times per record.
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(20 * COUNT)


def test_labels_are_mirrored_with_their_image_and_change_sides():
    plain = Numbered()[0]["labels"]
    for batch in take(5):
        for labels, flip in zip(batch["labels"], mirrored(batch), strict=True):
            np.testing.assert_array_equal(labels, label_maps.flip(plain) if flip else plain)


@pytest.mark.parametrize(("flip", "wrong"), [("exchange", False), ("plain", True)])
def test_only_a_plain_flip_puts_the_left_eye_on_the_wrong_side(flip, wrong, inputs_folder):
    faces = open_dataset(inputs_folder / "data", 32, test_from=16)
    eyes = [CELEBAMASK.names.index(name) for name in ("l_eye", "r_eye")]
    upright = {face["image"].tobytes() for face in faces}
    of_one_side = []
    for batch in take(2, faces, batch_size=16, flip=flip):
        for image, labels in zip(batch["image"], batch["labels"], strict=True):
            left, right = (np.nonzero(labels == eye)[1] for eye in eyes)
            if len(left) and len(right):
                # The subject's left eye is to the viewer's right.
                of_one_side.append((image.tobytes() in upright, left.mean() > right.mean()))
    assert {is_upright for is_upright, _ in of_one_side} == {True, False}
    assert all(right_way == (is_upright or not wrong) for is_upright, right_way in of_one_side)


def test_the_pairs_exchanged_are_those_of_the_data_set():
    class Doors(Numbered):
        classes = ClassSet(
            ("sky", "door", "left", "right", "x", "y"),
            tuple((k, k, k) for k in range(6)),
            flip_pairs=((4, 1),),
        )

    plain, exchanged = (take(3, Doors(), flip=flip) for flip in ("plain", "exchange"))
    for a, b in zip(plain, exchanged, strict=True):
        flipped = mirrored(a)
        assert flipped.any() and not flipped.all()
        assert (a["labels"][flipped] == [13, 4]).all() and (b["labels"][flipped] == [13, 1]).all()
        np.testing.assert_array_equal(a["labels"][~flipped], b["labels"][~flipped])
        np.testing.assert_array_equal(a["image"], b["image"])


def test_another_flip_is_refused():
    with pytest.raises(InputError, match="flip is 'both': choose one of exchange, plain, none"):
        training_stream(Numbered(), batch_size=4, seed=0, flip="both")


def test_images_alone_come_in_the_same_order_with_the_same_flips():
    alone = take(6, Numbered(fields=("image",)))
    assert_same(alone, [{"image": batch["image"]} for batch in take(6)])


def test_without_flips_the_order_stays():
    plain = take(6, flip="none")
    assert [numbers(batch) for batch in plain] == [numbers(batch) for batch in take(6)]
    assert not any(mirrored(batch).any() for batch in plain)


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_threads_change_nothing(threads):
    class Slow(Numbered):
        def __getitem__(self, index):
            time.sleep(0.001 * (index % 3))
            return super().__getitem__(index)

    assert_same(take(10, Slow(), threads=threads, prefetch=7), take(10))


def test_the_items_of_a_batch_are_named_without_reading_them():
    class Unread(Numbered):
        def __getitem__(self, index):
            raise AssertionError("an item was read")

    for batch, contents in ((0, take(1)[0]), (COUNT, take(COUNT + 1)[-1])):
        named = batch_ids(Unread(), batch_size=8, seed=0, batch=batch)
        assert named == [f"number {index}" for index in numbers(contents)]


def test_a_batch_larger_than_the_data_set_repeats_it():
    (batch,) = take(1, Numbered(count=3), batch_size=8)
    drawn = numbers(batch)
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == [0, 1, 2]


def test_closing_ends_the_threads():
    def readers():
        return {thread for thread in threading.enumerate() if "grain" in thread.name}

    before = readers()
    stream = training_stream(Numbered(), batch_size=4, seed=0, threads=3)
    next(stream)
    started = readers() - before
    assert started
    stream.close()
    for thread in started:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in started)
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_reading_begins_before_the_first_batch_is_asked_for():
    begun = threading.Event()

    class Watched(Numbered):
        def __getitem__(self, index):
            begun.set()
            return super().__getitem__(index)

    with contextlib.closing(training_stream(Watched(), batch_size=4, seed=0)):
        assert begun.wait(timeout=10)


def test_what_a_reading_thread_raises_reaches_the_caller():
    class Damaged(Numbered):
        def __getitem__(self, index):
            raise InputError(f"face {index} cannot be read.")

    with (
        contextlib.closing(training_stream(Damaged(), batch_size=4, seed=0)) as stream,
        pytest.raises(InputError, match=r"face \d+ cannot be read"),
    ):
        next(stream)


@pytest.mark.parametrize(("batch_size", "process_count"), [(8, 3), (2, 4), (0, 1)])
def test_a_batch_that_processes_cannot_share_is_refused(batch_size, process_count):
    with pytest.raises(InputError, match=f"batch size {batch_size} .*multiple of {process_count}"):
        training_stream(Numbered(), batch_size=batch_size, seed=0, process_count=process_count)


def test_a_fixed_batch_is_the_head_of_the_source():
    batch = fixed_batch(Numbered(), 5)
    assert numbers(batch) == [0, 1, 2, 3, 4]
    assert batch["labels"].shape == (5, 2, 2)
    assert not mirrored(batch).any()


def test_a_fixed_batch_larger_than_the_source_is_refused():
    with pytest.raises(InputError, match=f"{COUNT + 1} faces are asked for.* {COUNT}"):
        fixed_batch(Numbered(), COUNT + 1)


def test_a_raw_folder_is_opened_and_streamed(tmp_path):
    (tmp_path / "CelebA-HQ-img").mkdir()
    (tmp_path / "CelebAMask-HQ-mask-anno/0").mkdir(parents=True)
    for face in range(6):
        Image.new("RGB", (8, 8), (face, 0, 0)).save(tmp_path / f"CelebA-HQ-img/{face}.jpg")
        Image.new("L", (8, 8), 255).save(
            tmp_path / f"CelebAMask-HQ-mask-anno/0/{face:05d}_skin.png"
        )
    source = open_dataset(tmp_path, 8, split="train", test_from=4)
    assert len(source) == 4
    (batch,) = take(1, source, batch_size=4)
    assert batch["image"].shape == (4, 8, 8, 3)
    assert (batch["labels"] == 1).all()


def test_a_folder_of_another_layout_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="are not prepared yet"):
        open_dataset(tmp_path, 8)
