"""The errors of the data modules: data that are wrong, and data that cannot be reached."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

__all__ = ["DataError", "UnreachableError", "reading"]


class DataError(ValueError):
    """A data set that is unknown, damaged or unfit for the settings; a sentence for people."""

    retry: ClassVar[bool] = False
    """The same data are as bad the next time."""


class UnreachableError(DataError):
    """A data set that is absent here and now, or that the system refuses to read.

    A network disk may come back, and another machine may have what this one lacks.
    """

    retry: ClassVar[bool] = True
    away: ClassVar[bool] = True


@contextmanager
def reading(place: object) -> Iterator[None]:
    """The system's errors as sentences that name the file, or `place` where they name none.

    Raises:
        UnreachableError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UnreachableError(
            f"{error.filename or place} cannot be read: {error.strerror or error}. "
            "Make it readable or remove it."
        ) from error
