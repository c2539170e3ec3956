"""An S3 server behind a network that refuses, delays, cuts, corrupts and loses."""

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablation import address
from ablation.manifest import DamageError, fetch, upload_folder
from ablation.storage import Storage, StorageError, stored_of
from chaos.proxy import Fault

SMALL, LARGE = b"one " * 50, os.urandom(11 * 2**20)
VERBS = ["read", "write", "upload", "download", "measure", "names", "remove"]
PASSING = [
    *((verb, kind) for verb in VERBS for kind in ("refuse", "error", "lose")),
    *((verb, kind) for verb in ("write", "upload") for kind in ("cut upload", "flip upload")),
    *((verb, "cut download") for verb in ("read", "write", "download", "measure", "names")),
    *((verb, "garbage") for verb in ("write", "upload", "names", "remove")),
]


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "small").write_bytes(SMALL)
    (folder / "empty").write_bytes(b"")
    return folder


def request(storage: Storage, verb: str, source: Path) -> Any:
    """One request, and what came of it."""
    acts: dict[str, Callable[[], Any]] = {
        "read": lambda: storage.read("a/b"),
        "write": lambda: storage.write("a/b", SMALL[::-1]),
        "upload": lambda: storage.upload(source / "small", "a/b", check=True),
        "download": lambda: storage.download("a/b", source / "got"),
        "measure": lambda: storage.measure("a/b"),
        "names": lambda: storage.names("a"),
        "remove": lambda: storage.remove("a/b"),
    }
    return acts[verb]()


EXPECTED = {
    "read": SMALL,
    "write": stored_of(SMALL[::-1]),
    "upload": stored_of(SMALL),
    "download": stored_of(SMALL),
    "measure": stored_of(SMALL),
    "names": ["b"],
    "remove": None,
}


def test_s3__does_what_a_storage_must(s3, source, tmp_path):
    (source / "deep").mkdir()
    (source / "deep" / "large").write_bytes(LARGE)
    storage = s3.storage()
    assert (storage.local, storage.uri) == (None, f"s3://bucket/{s3.folder}")
    assert storage.read("a/b") is None
    assert storage.measure("a/b") is None
    assert storage.names("a") == []
    storage.remove("a/b")
    storage.remove("a")
    assert storage.write("a/b", SMALL) == storage.measure("a/b") == stored_of(SMALL)
    storage.write("a/b", b"")
    assert storage.read("a/b") == b""
    manifest = upload_folder(storage, source, "a/c")
    assert manifest["deep/large"] == stored_of(LARGE)
    assert storage.names("a") == ["b", "c"]
    got = fetch(storage, "a/c", manifest, tmp_path / "into")
    assert (got / "deep" / "large").read_bytes() == LARGE
    assert (got / "empty").read_bytes() == b""
    storage.remove("a/c")
    assert storage.names("a") == ["b"]
    storage.remove("a/b")
    assert storage.names("a") == []


def test_s3__a_small_file_is_one_put(s3):
    asked: list[str] = []
    s3.proxy.faults = [Fault("delay", when=lambda r: bool(asked.append(r.method)))]
    s3.storage().write("a/b", SMALL)
    assert asked == ["PUT", "HEAD", "GET"]


@pytest.mark.parametrize(("verb", "kind"), PASSING)
def test_s3__a_fault_that_passes_is_outlived(s3, source, hasty, verb, kind):
    storage = s3.storage().patient(60.0, print)
    storage.write("a/b", SMALL)
    s3.proxy.faults = [Fault(kind, times=2)]
    assert request(storage, verb, source) == EXPECTED[verb]
    assert s3.proxy.counts[kind] == 2
    s3.proxy.faults = []
    left = {"write": SMALL[::-1], "remove": None}.get(verb, SMALL)
    assert storage.read("a/b") == left


@pytest.mark.parametrize("verb", VERBS)
def test_s3__an_outage_is_one_clear_error(s3, source, hasty, verb):
    """The same request is granted afterwards."""
    storage = s3.storage()
    storage.write("a/b", SMALL)
    s3.proxy.faults = [Fault("refuse")]
    with pytest.raises(StorageError, match=rf"Could not \w+ s3://bucket/{s3.folder}/a.*\.$") as got:
        request(storage.patient(0.2, print), verb, source)
    assert "secret" not in str(got.value)
    s3.proxy.faults = []
    assert request(storage, verb, source) == EXPECTED[verb]


def test_s3__a_slow_server_is_waited_for(s3):
    """By itself, pyarrow would give up after 3 s, each time anew."""
    s3.proxy.faults = [Fault("delay", seconds=3.5)]
    assert s3.storage().read("a/b") is None
    assert s3.proxy.counts["delay"] == 1


def test_s3__a_silent_server_is_told_of(s3, monkeypatch, hasty):
    monkeypatch.setattr(address, "ANSWER_S", 1.0)
    said: list[str] = []
    storage = s3.storage().patient(2.5, said.append)
    s3.proxy.faults = [Fault("delay", seconds=60)]
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"Could not list .*too slow"):
        storage.names("a")
    assert time.monotonic() - began < 8
    assert len(said) == 1
    assert "Waiting for the storage" in said[0]


def test_s3__a_silent_server_is_waited_for_half_a_minute_at_most():
    assert address.ANSWER_S > 3
    assert address.ANSWER_S * address.TRIES <= 30


def test_s3__another_process_has_the_same_client(s3):
    for storage in (s3.storage(), pickle.loads(pickle.dumps(s3.storage()))):
        _, (settings,) = storage.files.__reduce__()
        assert settings["request_timeout"] == address.ANSWER_S
        assert settings["allow_delayed_open"]


@pytest.mark.parametrize(
    "option", ["tls_verify_certificates=false", "tls_ca_dir_path=/x", "smart_defaults=auto"]
)
def test_s3__refuses_options_that_workers_would_not_have(option):
    with pytest.raises(StorageError, match=f"would not know of its option {option.split('=')[0]}"):
        Storage.open(f"s3://key:secret@bucket/folder?region=us-east-1&{option}")


@pytest.mark.parametrize("verb", ["read", "measure", "download"])
def test_s3__a_file_that_goes_while_it_is_read_is_gone(s3, source, verb):
    past, storage = s3.storage(past=True), s3.storage()
    storage.write("a/b", SMALL)

    def gone(request) -> bool:
        if request.method == "GET" and request.path.endswith("/a/b"):
            past.remove("a/b")
        return False

    s3.proxy.faults = [Fault("delay", when=gone)]
    assert request(storage, verb, source) is None


def test_s3__a_flipped_bit_of_a_download_is_found_and_asked_for_again(s3, source, tmp_path):
    storage = s3.storage()
    manifest = upload_folder(storage, source, "kept")
    s3.proxy.faults = [Fault("flip download", times=1)]
    folder = fetch(storage, "kept", manifest, tmp_path / "into")
    assert (folder / "small").read_bytes() == SMALL
    assert s3.proxy.counts["flip download"] == 1
    s3.proxy.faults = [Fault("flip download", when=lambda r: r.path.endswith("small"))]
    with pytest.raises(DamageError, match="kept/small must have the bytes that were written"):
        fetch(storage, "kept", manifest, tmp_path / "into")


def test_s3__a_flipped_bit_of_an_upload_is_found(s3, source, tmp_path, hasty):
    """At once where it is checked, else when it is fetched."""
    storage = s3.storage()
    s3.proxy.faults = [Fault("flip upload", times=1, when=lambda r: r.path.endswith("small"))]
    with pytest.raises(StorageError, match="other bytes than were written"):
        storage.upload(source / "small", "kept/small", check=True)
    s3.proxy.faults = [Fault("flip upload", times=1, when=lambda r: r.path.endswith("small"))]
    with pytest.raises((DamageError, StorageError), match="kept/small"):
        fetch(storage, "kept", upload_folder(storage, source, "kept"), tmp_path / "into")
    s3.proxy.faults = [Fault("flip upload", times=1, when=lambda r: r.path.endswith("small"))]
    manifest = upload_folder(storage.patient(60.0, print), source, "kept", check=True)
    fetch(storage, "kept", manifest, tmp_path / "into")
    assert s3.proxy.counts["flip upload"] == 3


def test_s3__a_name_that_is_no_text_is_a_refusal(s3, hasty):
    storage = s3.storage()
    storage.write("a/b", SMALL)
    key = f"{s3.folder}/a/".encode() + b"\xe5"
    page = b"<ListBucketResult><Contents><Key>" + key + b"</Key></Contents></ListBucketResult>"
    for times, patience_s in ((None, 0.0), (1, 60.0)):
        s3.proxy.faults = [Fault("garbage", times=times, body=page)]
        if patience_s:
            assert storage.patient(patience_s, print).names("a") == ["b"]
        else:
            with pytest.raises(StorageError, match=r"Could not list .*decode"):
                storage.names("a")


@pytest.mark.parametrize("page", [b"", b"<html><body>Sign in</body></html>"])
def test_s3__a_page_in_place_of_the_server_takes_nothing(s3, source, page):
    """A portal says 200 to everything: what it says is believed where nothing hangs on it."""
    storage = s3.storage()
    storage.write("a/b", SMALL)
    s3.proxy.faults = [Fault("garbage", body=page)]
    for verb in ("write", "upload"):
        with pytest.raises(StorageError, match="Could not write"):
            request(storage, verb, source)
    s3.proxy.faults = []
    assert storage.read("a/b") == SMALL
