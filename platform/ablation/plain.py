"""Text of others for a terminal, or for a file that somebody shows on one: it only says something.

A name, an error or a host that others wrote may hold what moves the cursor, sets the window's title
or turns the direction of writing.
"""

import logging
import re
import unicodedata

__all__ = ["PlainFormatter", "is_plain", "plain"]

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ACTS = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what acts: control, format, lone surrogates, separators of lines."""


def plain(text: str) -> str:
    """The text without colours; of what acts, all but line breaks and tabs is spelled out."""
    if text.isprintable():
        return text
    return "".join(map(_shown, _COLOUR.sub("", text)))


def is_plain(text: str) -> bool:
    """Whether nothing in a text acts, but line breaks and tabs."""
    return all(_shown(mark) == mark for mark in text)


def _shown(mark: str) -> str:
    if mark in "\n\t" or unicodedata.category(mark) not in _ACTS:
        return mark
    return ascii(mark)[1:-1]


class PlainFormatter(logging.Formatter):
    """Log records as plain text."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one text."""
        return plain(super().format(record))
