"""Rules of the house that no linter knows."""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("platform/**/*.py"), *ROOT.glob("trainers/**/*.py")])


def test_top_level_folders__are_no_packages():
    """`platform/__init__.py` would shadow Python's own module."""
    assert not list(ROOT.glob("*/__init__.py"))
    assert not list(ROOT.glob("tests/**/__init__.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source__is_short_and_says_what_it_is_for(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source__exports_what_it_says(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])
    names = getattr(import_module(module), "__all__", [])
    assert all(hasattr(sys.modules[module], name) for name in names)
    assert len(names) == len(set(names))


def test_design__names_every_module():
    tables = (ROOT / "docs" / "design.md").read_text().partition("## Cells")[0]
    folders = [ROOT / "platform" / "ablation", ROOT / "trainers" / "hpm"]
    paths = [path for folder in folders for path in folder.glob("*.py")]
    paths += (ROOT / "platform" / "ablation" / "executors").glob("*.py")
    names = {path.stem for path in paths} - {"__init__", "__main__"}
    assert {name for name in names if not re.search(rf"\b{name}`", tables)} == set()


def test_lock__pins_by_hash_and_names_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") > text.count("==") > 100
