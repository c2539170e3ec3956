"""The one error of the data modules."""

__all__ = ["DataError"]


class DataError(ValueError):
    """A data set that is unknown, absent, or cannot be read; its text is a sentence for people."""
