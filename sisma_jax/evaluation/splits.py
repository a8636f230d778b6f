"""The splits of a data set that an evaluation reads."""

from collections.abc import Sequence

from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import ClassSet
from sisma_jax.data.input_pipeline import Source, open_dataset
from sisma_jax.data.raw import FIELDS
from sisma_jax.evaluation.pictures import SplitPictures


def open_split(
    path: str,
    size: int,
    split: str,
    test_from: int,
    *,
    classes: ClassSet | None = None,
    fields: Sequence[str] = FIELDS,
) -> Source:
    """Open a split of a data set.

    Raises:
      InputError: if there is none, or its classes are not `classes`.
    """
    source = open_dataset(
        path,
        size,
        split=split,
        test_from=test_from,
        fields=fields,
        test_from_option="--test-from ",
    )
    if classes is not None and source.classes != classes:
        raise InputError(
            f"{path} has the classes {', '.join(source.classes.names)}, but the model was trained "
            f"on {', '.join(classes.names)}: give --data a set of the model's classes"
        )
    return source


def first_of(source: Source, count: int) -> SplitPictures:
    """The first `count` items of a split, or all if there are fewer.

    Raises:
      InputError: if there are fewer than two.
    """
    if len(source) < 2:
        raise InputError(f"{source} has {len(source)} faces: scores of a set need at least 2")
    if len(source) < count:
        print(f"{source} has {len(source)} faces, fewer than --count {count}: all are used")
    return SplitPictures(source, min(count, len(source)))
