"""Files into values that know their lines, and files that are refused."""

from pathlib import Path

import pytest

from ablation.problems import StudyError
from ablation.yamlfile import Document, read


def load(tmp_path: Path, content: str | bytes) -> Document:
    file = tmp_path / "x.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(file)


def refusal(tmp_path: Path, content: str | bytes) -> str:
    with pytest.raises(StudyError) as caught:
        load(tmp_path, content)
    return str(caught.value).removeprefix(f"{tmp_path}/x.yaml:")


def test_read__scalars_are_yaml_1_2(tmp_path: Path) -> None:
    text = "[1, 0o14, 0x1f, 010, 1_000, 1.5, 1e-4, -0.0, true, null, yes, 2024-01-01, '5', 1:30]"
    assert load(tmp_path, text).content == [
        1, 12, 31, 10, 1000, 1.5, 1e-4, 0.0, True, None, "yes", "2024-01-01", "5", "1:30",
    ]  # fmt: skip


def test_read__every_value_has_its_line(tmp_path: Path) -> None:
    document = load(tmp_path, "\ufeffa: 1\nb:\n  - x\n  - c: {d:\n      2}\n")
    assert document.content == {"a": 1, "b": ["x", {"c": {"d": 2}}]}
    lines = [document.line(*trail) for trail in [("a",), ("b",), ("b", 0), ("b", 1, "c", "d")]]
    assert lines == [1, 2, 3, 4]
    assert document.line("b", 1, "c", "nowhere") == 4
    assert document.line("nowhere") == 1
    assert document.words["b", 1, "c", "d"] == "2"


def test_read__anchors_unfold(tmp_path: Path) -> None:
    assert load(tmp_path, "a: &x {b: 1}\nc: *x\n").content == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "3: 'a' is here twice, first in line 1. Rename one."),
        ("a: 1\nb: .inf", "2: numbers must be finite, got .inf."),
        ("a: 1e999", "1: numbers must be finite, got 1e999."),
        ("a: !!int x", '1: must be a number, got "x".'),
        ("a: !!bool yes", '1: must be true or false, got "yes".'),
        ("%YAML 1.1\n---\na: yes", '3: must be true or false, got "yes".'),
        ("a: !!python/object:os.system x", "1: must be written without tags, got "),
        ("a:\n  !mine {b: 1}", "2: must be written without tags, got '!mine'."),
        ("a: !!set {b}", "1: must be written without tags, got "),
        ("? [1, 2]\n: 3", "1: keys must be plain text."),
    ],
)
def test_read__problems_that_leave_the_rest_readable(
    tmp_path: Path, text: str, expected: str
) -> None:
    (problem,) = load(tmp_path, text).problems
    assert f"{problem.line}: {problem.sentence}".startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a: [1\nb: 2", "2: must be YAML: expected ',' or ']', but got ':'."),
        ("a: *x", "1: must be YAML: found undefined alias 'x'."),
        ("--- 1\n--- 2", "2: must be YAML: but found another document."),
        ("a: 1\nb: \x01", "2: must be YAML: special characters are not allowed."),
        (b"a: 1\nb: \xff\n", "2: must be UTF-8 text."),
        ("[" * 20_000, "1: must not be nested that deep."),
        ("a: &x [*x]", "1: must not be nested that deep."),
        ("# " + "x" * (1 << 20), "1: must not be larger than 1048576 bytes."),
    ],
)
def test_read__files_that_are_refused(tmp_path: Path, content: str | bytes, expected: str) -> None:
    assert refusal(tmp_path, content) == expected


def test_read__a_billion_laughs_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "must not unfold into more than 100000 values" in refusal(tmp_path, "\n".join(lines))


def test_read__what_is_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"x\.yaml:1: must be a file, but nothing is there"):
        read(tmp_path / "x.yaml")
    with pytest.raises(StudyError, match="must be a file, got a folder"):
        read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="must be readable: Not a directory"):
        read(tmp_path / "file" / "x.yaml")
