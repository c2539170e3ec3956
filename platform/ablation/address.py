"""What lies behind a storage's address: a client of pyarrow.fs, and a folder that it reaches.

S3's client as pyarrow makes it from a URI gives up on an answer after 3 s, and asks 31 times: a
slow server never gets to answer, and a dead one is waited for 100 s without a word. It is made
anew here with settings that a process which it is sent to has too.
"""

import os
import re
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pyarrow import fs as arrow_fs

__all__ = ["ANSWER_S", "TRIES", "folder_at", "has_keys", "masked", "public", "reach"]

ANSWER_S = 10.0
"""An S3 server that is silent for so long is asked again."""

TRIES = 3
"""So often a request to S3 is made before it has failed; unpickled clients have the same number."""

_CONNECT_S = 5.0
_KEY = re.compile("key|secret|token|password|signature|^sig$|credential(?!_kind)", re.IGNORECASE)
_SECRETS = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "RAY_AUTH_TOKEN",
)
_FORGOTTEN = {"smart_defaults", "tls_ca_dir_path", "tls_verify_certificates"}
"""Options of an S3 address that do not survive pickling, so that workers would go without them."""


def folder_at(text: str | Path) -> Path:
    """A folder whose `~` is somebody's home; of nobody whom this machine knows it is a name."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def reach(uri: str) -> tuple[Any, str]:
    """The file system behind a URI and the path in it; touches nothing.

    Raises OSError or ValueError where there can be none.
    """
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        files, root = arrow_fs.FileSystem.from_uri(uri)
        return files, root
    if ":" in parts.netloc.rpartition("@")[2]:  # else what follows in a key counts as a path
        raise ValueError("a bucket has no port, and a / or ? in a key is written %2F or %3F")
    options = parse_qs(parts.query)
    if forgotten := _FORGOTTEN & {*options}:
        raise ValueError(f"workers would not know of its option {min(forgotten)}")
    files, root = arrow_fs.FileSystem.from_uri(uri)
    _, (settings,) = files.__reduce__()  # what another process would make it from
    settings |= {"connect_timeout": _CONNECT_S, "request_timeout": ANSWER_S}
    settings["retry_strategy"] = arrow_fs.AwsStandardS3RetryStrategy(max_attempts=TRIES)
    if "allow_delayed_open" not in options:
        settings["allow_delayed_open"] = True  # a small file by one request, not three
    return arrow_fs.S3FileSystem(**settings), root


def public(uri: str) -> str:
    """A URI without user, password and query, which may hold keys; a local path as it is."""
    scheme, _, place = _cut(uri)
    return scheme + place


def has_keys(uri: str) -> bool:
    """Whether a URI names a user, and so perhaps a password, or holds a key behind its `?`."""
    _, (user, query), _ = _cut(uri)
    return bool(user) or any(_KEY.search(name) for name in parse_qs(query[1:]))


def masked(text: str, uri: str) -> str:
    """A text that may repeat a URI, or more than it, without the keys in it.

    Nor has it those of the environment: a server may repeat what it was sent.
    """
    _, keys, _ = _cut(uri)
    text = text.replace(uri, public(uri))
    password = keys[0].removesuffix("@").partition(":")[2]
    for key in filter(None, (*keys, password, *_of_environment())):
        text = text.replace(key, "")
    return text


def _of_environment() -> Iterator[str]:
    """The environment's keys, and MLflow's as they are sent."""
    yield from (os.environ.get(name, "") for name in _SECRETS)
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{n}", "") for n in ("USERNAME", "PASSWORD"))
    if password:
        yield b64encode(f"{user}:{password}".encode()).decode()


def _cut(uri: str) -> tuple[str, tuple[str, str], str]:
    """Scheme, what may hold keys, and place of any text: a slash in a key may not be escaped."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return "", ("", ""), uri
    place, asked, query = rest.partition("?")
    if place.startswith("/"):  # no host, so no keys before it
        return scheme + mark, ("", asked + query), place
    if ":" in place and "@" not in place and "@" in query:  # the ? may be one of a password
        return scheme + mark, (rest[: rest.rindex("@") + 1], asked + query), ""
    keys, at, place = place.rpartition("@")
    return scheme + mark, (keys + at, asked + query), place
