import os

import pytest
from pyarrow import fs

from ablation.address import masked, public
from ablation.ledger import Ledger
from ablation.manifest import DamageError, fetch, manifest_from_json, seal, unseal, upload_folder
from ablation.storage import LostStorageError, Storage, StorageError, stored_of


def elsewhere(folder) -> Storage:
    """The same storage, reached as if it were not on this machine."""
    folder.mkdir(exist_ok=True)
    files = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    return Storage(files=files, root="", uri="far://away")


@pytest.fixture(params=["local", "elsewhere"])
def storage(request, tmp_path) -> Storage:
    folder = tmp_path / "store"
    return Storage.open(folder) if request.param == "local" else elsewhere(folder)


def test_storage__gives_back_what_was_written(storage):
    stored = storage.write("a/b/c.json", b"one")
    assert storage.read("a/b/c.json") == b"one"
    assert storage.measure("a/b/c.json") == stored == stored_of(b"one")
    storage.write("a/b/c.json", b"two")
    assert storage.read("a/b/c.json") == b"two"
    assert storage.names("a/b") == ["c.json"]


def test_storage__absence_is_no_error(storage):
    assert storage.read("x/y") is None
    assert storage.measure("x/y") is None
    assert storage.names("x") == []
    storage.remove("x")
    storage.remove("x/y")


def test_storage__removes_files_and_folders(storage):
    storage.write("a/b/c", b"1")
    storage.write("a/d", b"2")
    storage.remove("a/b")
    assert storage.names("a") == ["d"]
    storage.remove("a/d")
    assert storage.names("a") == []


def test_storage__copies_folders_of_large_files(storage, tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    content = os.urandom(9 * 2**20 + 1)
    (source / "deep" / "large").write_bytes(content)
    (source / "empty").write_bytes(b"")
    manifest = upload_folder(storage, source, "kept")
    folder = fetch(storage, "kept", manifest, tmp_path / "into")
    assert (folder / "deep" / "large").read_bytes() == content
    assert (folder / "empty").read_bytes() == b""
    assert manifest["deep/large"] == stored_of(content)


@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_storage__fetch_names_the_damaged_file(storage, tmp_path, damage):
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"0123456789")
    manifest = upload_folder(storage, source, "kept")
    file = tmp_path / "store" / "kept" / "weights"
    match damage:
        case "missing":
            file.unlink()
        case "short":
            file.write_bytes(b"01234")
        case "flipped":
            file.write_bytes(b"0123456788")
    with pytest.raises(DamageError, match="kept/weights must"):
        fetch(storage, "kept", manifest, tmp_path / "into")


def test_storage__fetch_of_no_files_is_an_empty_folder(storage, tmp_path):
    if storage.local is None:
        assert list(fetch(storage, "kept", {}, tmp_path / "into").iterdir()) == []


def test_storage__opens_relative_paths_and_uris(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Storage.open("here").write("x", b"1")
    assert Storage.open(f"file://{tmp_path}/here").read("x") == b"1"
    assert Storage.open(tmp_path / "here").local == Storage.open(f"file://{tmp_path}/here").local


def test_storage__opening_writes_nothing(tmp_path):
    ledger = Ledger.open(tmp_path / "new")
    assert ledger.journal("ab" * 10) == ()
    assert ledger.outcome("ab" * 10) is None
    assert ledger.studies() == []
    assert not (tmp_path / "new").exists()


def test_storage__says_that_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    ledger = Ledger.open(tmp_path / "file" / "ledger")
    assert ledger.outcome("ab" * 10) is None
    with pytest.raises(StorageError, match=r"must be a folder that can be written, got .*Choose"):
        ledger.check_writable()


def test_storage__check_leaves_only_the_layout(storage, tmp_path):
    Ledger(storage).check_writable()
    Ledger(storage).check_writable()
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["ledger.json"]


def test_storage__asks_s3_for_single_puts():
    """No network: the region is given, and nothing is read."""
    for query in ("?region=us-east-1", "?region=us-east-1&allow_delayed_open=false"):
        storage = Storage.open(f"s3://key:secret@bucket/folder{query}")
        assert (storage.root, storage.uri) == ("bucket/folder", "s3://bucket/folder")
        assert storage.local is None


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("s3://key:secret@bucket/folder?region=x", "s3://bucket/folder"),
        ("s3://key:abc/secret@bucket/folder", "s3://bucket/folder"),
        ("s3://key:abc@secret@bucket/folder", "s3://bucket/folder"),
        ("s3://bucket/folder?access=a@secret", "s3://bucket/folder"),
        ("postgresql://user:p?secret@host/db", "postgresql://"),
        ("mssql+pyodbc:///?odbc_connect=PWD=a@secret", "mssql+pyodbc:///"),
        ("https://secret@host:5000", "https://host:5000"),
        ("s3://[a/x", "s3://[a/x"),
        ("sqlite:////home/me@lab/mlflow.db", "sqlite:////home/me@lab/mlflow.db"),
        ("file:///home/me@lab", "file:///home/me@lab"),
        ("../me@lab/results?", "../me@lab/results?"),
        ("", ""),
    ],
)
def test_public__holds_no_keys(uri, shown):
    assert public(uri) == shown
    assert masked(f"It is at {uri}/x.", uri) == f"It is at {shown}/x."


def test_masked__hides_the_keys_in_what_is_made_of_the_uri():
    uri = "https://user:secret@host?token=secret"
    assert masked(f"{uri}/api, /?token=secret/api failed", uri) == "https://host/api, //api failed"


@pytest.mark.parametrize(
    "uri",
    [
        "nowhere://key:secret@host/x?token=secret",
        "s3://k:secret@b/x?what=1",
        "s3://AKIA:abc/secret@bucket/path",
        "s3://AKIA:12/secret@bucket/path?region=us-east-1",
        "s3://AKIA:a?secret@bucket/path",
        "s3://[a/x",
        "s3://key:secret@[a/x",
    ],
)
def test_storage__refuses_addresses_without_telling_secrets(uri):
    with pytest.raises(StorageError, match="must be a local folder or a URI") as caught:
        Storage.open(uri)
    assert "secret" not in str(caught.value)


def test_storage__that_was_waited_for_in_vain_is_lost(storage):
    storage.write("a/b", b"1")
    for asked, kind in ((storage, StorageError), (storage.patient(0, print), LostStorageError)):
        with pytest.raises(StorageError, match="Could not read") as caught:
            asked.read("a")
        assert caught.type is kind


def test_storage__opens_what_arrow_knows():
    storage = Storage.open("mock:///folder")
    assert storage.local is None
    storage.write("a/b", b"1")
    assert storage.read("a/b") == b"1"


def test_storage__a_folder_is_no_file(storage):
    storage.write("a/b", b"1")
    with pytest.raises(StorageError, match=r"Could not read .*/a:"):
        storage.read("a")


def test_storage__names_of_a_file_are_none(storage):
    storage.write("a", b"1")
    assert storage.names("a/b") == []


def test_manifest__seal_detects_every_flipped_bit():
    sealed = seal({"step": 12, "files": {"a": [1, 2]}})
    assert unseal(sealed) == {"step": 12, "files": {"a": [1, 2]}}
    original = unseal(sealed)
    for position in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[position] ^= 1
        try:
            assert unseal(bytes(flipped)) == original
        except ValueError:
            continue


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"step": 1', b'{"step": 1}', b"\xff"])
def test_manifest__unseals_only_what_was_sealed(content):
    with pytest.raises(ValueError, match=r"."):
        unseal(content)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_manifest__files_stay_in_their_folder(name):
    with pytest.raises(ValueError, match="must stay in its folder"):
        manifest_from_json({name: {"size": 1, "sha256": ""}})
