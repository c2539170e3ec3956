import getpass
import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from ablation.provenance import git_state, now_ms, provenance
from ablation.testing import ToyTrainer


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path) -> Path:
    git(tmp_path, "init")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "trainer.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_provenance__git_tells_commit_and_changes(checkout):
    source = checkout / "package" / "trainer.py"
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state(source) == {"commit": commit, "dirty": False}
    (checkout / "notes.txt").write_text("not the trainer's source")
    assert git_state(source) == {"commit": commit, "dirty": False}
    source.write_text("x = 2\n")
    assert git_state(source) == {"commit": commit, "dirty": True}


def test_provenance__git_knows_nothing_of_untracked_files(checkout, tmp_path_factory):
    installed = checkout / "package" / "installed.py"
    installed.touch()
    assert git_state(installed) is None
    assert git_state(tmp_path_factory.mktemp("bare") / "x.py") is None


def test_provenance__needs_no_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state(checkout / "package" / "trainer.py") is None


def test_provenance__says_who_where_and_with_what():
    before = now_ms()
    origin = provenance(ToyTrainer())
    assert before <= origin["time_ms"] <= now_ms()
    assert {"torch", "ray", "mlflow", "numpy"} <= set(origin["packages"])
    assert origin["trainer"]["name"] == "toy"
    assert origin["user"]
    assert origin["image"] == ""
    assert json.loads(json.dumps(origin)) == origin


def test_provenance__a_nameless_user_is_a_number(monkeypatch):
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert provenance(ToyTrainer())["user"].isdigit()


def test_provenance__leaves_out_packages_that_are_absent(monkeypatch):
    def version(package: str) -> str:
        if package == "timm":
            raise metadata.PackageNotFoundError
        return "1.2"

    monkeypatch.setattr(metadata, "version", version)
    packages = provenance(ToyTrainer())["packages"]
    assert "timm" not in packages
    assert packages["numpy"] == "1.2"


def test_provenance__a_trainer_without_a_file_has_no_commit():
    by_hand = type("ByHand", (), {"name": "x", "result_version": 1, "__module__": "__nowhere__"})
    assert provenance(by_hand())["trainer"]["git"] is None
