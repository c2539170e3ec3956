"""The one error of the data modules."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["DataError", "reading"]


class DataError(ValueError):
    """A data set that is unknown, absent, or cannot be read; its text is a sentence for people."""


@contextmanager
def reading(place: object) -> Iterator[None]:
    """The system's errors as sentences that name the file, or `place` where they name none.

    Raises:
        DataError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or place} cannot be read: {error.strerror or error}. "
            "Make it readable or remove it."
        ) from error
