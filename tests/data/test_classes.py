"""The class list holds together: names, colours and mirror pairs speak of the same ids."""

import numpy as np

from sisma_jax.data.classes import CLASSES, FLIP_PAIRS, PALETTE, UNLABELLED


def test_nineteen_classes_in_the_order_of_the_data_set():
    assert len(CLASSES) == len(set(CLASSES)) == 19
    assert CLASSES[0] == "background"
    assert CLASSES[1:4] == ("skin", "nose", "eye_g")
    assert CLASSES[10:15] == ("mouth", "u_lip", "l_lip", "hair", "hat")
    assert CLASSES[15:] == ("ear_r", "neck_l", "neck", "cloth")


def test_every_class_has_a_colour_of_its_own():
    assert PALETTE.shape == (19, 3) and PALETTE.dtype == np.uint8
    assert len(np.unique(PALETTE, axis=0)) == 19
    assert PALETTE[CLASSES.index("hair")].tolist() == [0, 0, 204]


def test_palette_cannot_be_changed_by_accident():
    assert not PALETTE.flags.writeable


def test_mirror_pairs_are_the_left_and_right_of_one_part():
    pairs = {(CLASSES[left], CLASSES[right]) for left, right in FLIP_PAIRS}
    assert pairs == {("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear")}


def test_unlabelled_is_no_class_and_fits_a_byte():
    assert len(CLASSES) <= UNLABELLED <= 255
