"""Checksums that identify data sets, computed from all bytes or from a listing.

A prepared data set records its bytes. Reading every file of a raw folder would take long, so its
checksum covers a listing only, and its suffix says so.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

_LISTED = ":listed"


def of_listing(ids: Sequence[int], parts: Mapping[int, Sequence[tuple[int, str]]]) -> str:
    """SHA-256 of all face ids and of which parts each face has (none where not listed).

    Args:
      ids: ids of all faces, ascending.
      parts: by id, class id and file of each part (`raw_layout.Face.parts`); file names do not
        matter.

    It covers neither pixels nor file sizes, so a picture that was changed in place goes unnoticed.
    """
    bits = lambda face: sum(1 << label for label, _ in parts.get(face, ()))
    rows = np.array([[face, bits(face)] for face in ids], "<i8")
    return hashlib.sha256(rows.tobytes()).hexdigest() + _LISTED


def is_of_listing(checksum: str | None) -> bool:
    """Whether pictures may differ although checksums agree."""
    return checksum is None or checksum.endswith(_LISTED)


def differ(before: str | None, now: str | None) -> bool:
    """Whether two checksums prove that data differ; those of different kinds prove nothing."""
    if None in (before, now) or is_of_listing(before) != is_of_listing(now):
        return False
    return before != now
