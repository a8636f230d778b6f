"""What tells data sets apart: a checksum of all that they hold, or of what is listed alone.

A prepared data set knows its bytes. Of a raw folder reading every file would take long; its
checksum is of a listing and says so by its end.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

_LISTED = ":listed"


def of_listing(ids: Sequence[int], parts: Mapping[int, Sequence[tuple[int, str]]]) -> str:
    """Of the ids of all faces, ascending, and of which parts each has (none where not listed).

    Args:
      ids: of the faces.
      parts: by id, class id and file of each part (`raw_layout.Face.parts`); what the files are
        called does not matter.

    It holds neither pixels nor sizes of files: a picture that was changed in place goes unnoticed.
    """
    bits = lambda face: sum(1 << label for label, _ in parts.get(face, ()))
    rows = np.array([[face, bits(face)] for face in ids], "<i8")
    return hashlib.sha256(rows.tobytes()).hexdigest() + _LISTED


def is_of_listing(checksum: str | None) -> bool:
    """Whether pictures may differ where checksums do not."""
    return checksum is None or checksum.endswith(_LISTED)


def differ(before: str | None, now: str | None) -> bool:
    """Whether two checksums are of different data; those of different kinds tell nothing."""
    if None in (before, now) or is_of_listing(before) != is_of_listing(now):
        return False
    return before != now
