"""What an attacker gets: named by who attacks and what comes of it; docs/security.md has the list.

The attackers are those of that page: who writes study files, who writes to the storage, who made
the data, whom we ask over the network, and who reads what we leave behind.
"""

import base64
import csv
import io
import json
import re
import struct
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from rich.console import Console

from ablation.address import masked
from ablation.attempts import Attempt
from ablation.cells import Failed, Finished, Standing
from ablation.certificate import Certificate
from ablation.claims import Claim
from ablation.cli import main
from ablation.commits import Commit, Ending
from ablation.doctor import diagnose
from ablation.examined import Questions, examine
from ablation.identity import digest
from ablation.include import include
from ablation.journal import Record, parse_lines, to_lines
from ablation.latex import to_latex
from ablation.ledger import Ledger
from ablation.manifest import DamageError, manifest_to_json, seal, unseal
from ablation.notice import announced, silence
from ablation.overview import status
from ablation.pictures import figures
from ablation.plain import plain
from ablation.plan import Plan, plan
from ablation.problems import StudyError
from ablation.process import Process, this_process
from ablation.profile import Profile
from ablation.protocol import Place
from ablation.render import to_markdown, to_text
from ablation.running import Run
from ablation.serve import serve
from ablation.spreadsheet import to_csv
from ablation.storage import Storage, stored_of
from ablation.study import load_study, study_of
from ablation.submission import find_submissions
from ablation.submit import at_home, packed
from ablation.table import tabulate
from ablation.testing import toy_cell
from ablation.toy import TRAINER, Toy
from ablation.why import story, work_lost
from ablation.yamlfile import Document, parse
from hpm.data.annotations import read_annotations
from hpm.data.decoding import decode
from hpm.data.descriptions import read_descriptions
from hpm.data.errors import DataError, UnreachableError
from leaks import MLFLOW_LEAKS

pytestmark = MLFLOW_LEAKS

STUDY = """\
name: toys
trainer: toy
preset: quick
seeds: [0]
evaluate: [score]
metric: score/accuracy
baseline: slow
rows:
  slow: {rate: 0.1}
  fast: {rate: 0.3}
"""
DEAD = "http://127.0.0.1:9"  # nobody listens there
ACTS = "\x1b]0;mine\x07\x1b[2J\u202eyob\r\x9b2J"
"""Sets a window's title, clears the screen, turns the direction of writing, goes to the left."""
PROFILE = Profile(address="10.0.0.5:6379", storage="s3://lab/x", tracking="https://mlflow.lab")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ABLATION_STORAGE", "results")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "toys.yaml").write_text(STUDY)
    return tmp_path


def refusal(text: str) -> str:
    with pytest.raises(StudyError) as caught:
        study_of(parse(text, "x.yaml"))
    return str(caught.value)


def planned(folder: Path, text: str = STUDY) -> Plan:
    (folder / "toys.yaml").write_text(text)
    return plan(load_study(folder / "toys.yaml"), TRAINER, Place())


def shown(renderable: Any) -> str:
    console = Console(width=300, file=io.StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def is_harmless(text: str) -> bool:
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


# Who writes study files


@pytest.mark.parametrize(
    "name",
    [
        "../toys",
        "/etc/x",
        "..",
        ".",
        "a/b",
        "a\\b",
        '"a\\0b"',
        '"a\\n"',
        "-rf",
        "x" * 101,
        "漢" * 100,
    ],
)
def test_study_name__that_climbs_gets_a_refusal(name: str) -> None:
    """Nor is one taken that no file system takes."""
    assert "name must be 1 to 100 letters" in refusal(STUDY.replace("name: toys", f"name: {name}"))


@pytest.mark.parametrize(
    "place",
    [
        "question: {}",
        "printed: {{other: {{value: 1, source: {}}}}}",
        "published: {{slow: {{value: 1, note: {}}}}}",
        "claims: {{it: {{better: fast, than: slow, says: {}}}}}",
        "claims: {{it: {{better: fast, than: slow, source: {}}}}}",
        "claims: {{{}: {{better: fast, than: slow}}}}",
    ],
)
@pytest.mark.parametrize("text", ["\x1b[2J", "\u202e", "\ud800"])
def test_study_text__that_drives_a_terminal_gets_a_refusal(place: str, text: str) -> None:
    written = json.dumps(f"a{text}b")
    sound = STUDY + place.format("fine") + "\n"
    assert study_of(parse(sound, "x.yaml"))
    assert refusal(STUDY + place.format(written) + "\n")


def test_study_label__of_any_length_gets_a_refusal() -> None:
    assert "printable label" in refusal(STUDY.replace("fast:", f"? {'f' * 501}\n  :"))


@pytest.mark.parametrize("place", ["[0]", "0.3", "toys"])
def test_study_number__too_long_to_be_printed_gets_a_refusal(place: str) -> None:
    assert "must be a number, got" in refusal(STUDY.replace(place, "0x" + "f" * 6000))


def test_study_trainer__that_is_code_gets_a_refusal() -> None:
    for name in ("os:system", "os.system", "../evil", "__import__('os')"):
        assert "trainer must be installed" in refusal(
            STUDY.replace("trainer: toy", f"trainer: {name}")
        )


def test_study_merge_key__gets_no_settings_in_by_the_back_door() -> None:
    text = STUDY.replace("slow: {rate: 0.1}", "slow: &x {rate: 0.1}")
    assert "<<.rate is no setting" in refusal(text.replace("fast: {", "fast: {<<: *x, "))


def test_include__of_a_device_without_end_gets_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text("name: all\ninclude: [/dev/zero]\n")
    (problem,) = include(tmp_path / "all.yaml").problems
    assert "must not be larger than" in str(problem)


def test_include__of_a_file_outside_gets_no_more_than_its_first_words(tmp_path: Path) -> None:
    """It has the rights of whoever runs it, and says no more than that the file is no study."""
    secret = tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_text("the password of the lab, which is long enough to be cut, is HUNTER2\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "all.yaml").write_text("name: all\ninclude: [../outside/secret]\n")
    (document,) = include(tmp_path / "in" / "all.yaml").documents
    with pytest.raises(StudyError, match="must be keys with values") as caught:
        study_of(document)
    assert "HUNTER2" not in str(caught.value)


def test_folder_of_a_study__gets_no_module_of_its_own_loaded(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a driver is begun again, the server of `ui` starts, or devices are asked for."""
    for module in ("ablation", "hpm", "mlflow", "ray", "torch"):
        (lab / f"{module}.py").write_text("open('executed', 'w')")
    monkeypatch.setenv("ABLATION_TRACKING", DEAD)
    assert main(["run", "toys.yaml", "--inline", "--supervise"]) == 0
    assert examine(Questions(trainer="toy")).devices == 0
    started: list[tuple[Any, ...]] = []
    monkeypatch.setattr("os.execve", lambda *given: started.append(given))
    serve(f"sqlite:///{lab / 'x.db'}", [], port=5000)
    ((_, command, environment),) = started
    assert "-P" in command
    assert environment["PYTHONSAFEPATH"] == "1"
    assert environment["MLFLOW_SERVER_ALLOWED_HOSTS"] == "127.0.0.1:5000,localhost:5000"
    assert not (lab / "executed").exists()


HOSTILE = [
    "<script>alert(1)</script>",
    "![x](http://evil/x.png)",
    "[x](javascript:alert(1))",
    "\\input{/etc/passwd}",
    "\\immediate\\write18{id}",
    "=cmd|'/C calc'!A0",
    "x;=1+1",
    "@SUM(1)",
    "$x^2$",
    "~~~",
]


@pytest.fixture
def table(tmp_path: Path) -> Any:
    """Of hostile labels, words and errors."""
    labels = enumerate(map(json.dumps, HOSTILE))
    rows = "".join(f"  {label}: {{rate: 0.2{n}}}\n" for n, label in labels)
    words = json.dumps("# <script> ~~~ [x](http://evil)")
    text = STUDY.replace("  fast: {rate: 0.3}\n", rows) + f"question: {words}\n"
    text += f"published: {{slow: {{value: 1, source: {words}, note: {words}}}}}\n"
    found = planned(tmp_path, text)
    standings: dict[str, Standing] = {at: Failed(f"=1+1 {ACTS} <b>") for at in found.stages}
    return tabulate(found, standings)


def test_table__in_markdown_gets_no_html_link_picture_or_block(table: Any) -> None:
    text = to_markdown(table)
    assert is_harmless(text)
    assert not re.search(r"(?<!\\)<", text)
    assert not re.search(r"(?<!\\)\]\(", text)
    assert not re.search(r"^\s*(~~~|```|#(?!#))", text, re.MULTILINE)
    assert "\\<script>alert(1)\\</script>" in text


def test_table__in_latex_gets_no_command_of_others(table: Any) -> None:
    text = to_latex(table)
    assert is_harmless(text)
    said = [line for line in text.splitlines() if not line.startswith("%")]
    known = r"\\(begin|end|toprule|midrule|bottomrule|text\w+|uparrow|pm|[&%$#_{}\\])"
    assert re.sub(known, "", "\n".join(said)).count("\\") == 0
    assert r"\textbackslash{}input\{/etc/passwd\}" in text
    assert r"\textbackslash{}immediate\textbackslash{}write18\{id\}" in text


def test_table__in_a_spreadsheet_gets_no_formula(table: Any) -> None:
    """Whatever a country's spreadsheet takes to separate fields."""
    text = to_csv(table)
    assert is_harmless(text)
    for separator in (",", ";", "\t"):
        for row in csv.reader(io.StringIO(text), delimiter=separator):
            assert not [field for field in row if field.lstrip('"')[:1] in ("=", "+", "-", "@")]


def test_table__on_a_terminal_gets_words_alone(table: Any) -> None:
    text = shown(to_text(table, width=300))
    assert is_harmless(text)
    assert "\\x1b]0;mine\\x07" in text
    assert "<script>" in text


# Who may write to the storage


NOW = 1_700_000_000_000
BAD = [None, "x", -1, 10**400, 1e308, 2**70, [], {}, [1], {"a": 1}, "../../x", ACTS]
ME = this_process()
KEPT: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "attempt": (
        Attempt.parse,
        Attempt(
            number=1, begun_ms=NOW, from_step=2, queued_ms=NOW, provenance={"host": "here"},
            ended_ms=NOW, ended="failed", step=3, cause="memory", error="it broke",
        ).to_bytes(),
    ),
    "claim": (
        Claim.parse,
        Claim(name="000001-ab", process=ME, run="r", notice="soon", now_ms=NOW).to_bytes(),
    ),
    "commit": (
        Commit.parse,
        Commit(
            name="5-ab", step=5, total=9,
            files={"a": stored_of(b"a")}, journal={"b": stored_of(b"")},
        ).to_bytes(),
    ),
    "outcome": (
        Ending.parse,
        Ending(
            outcome=Finished({"loss": 0.5}), name="ab", artifacts={"a": stored_of(b"")},
            last=Attempt(number=1, begun_ms=NOW, from_step=0),
        ).to_bytes(),
    ),
    "failure": (Ending.parse, Ending(outcome=Failed("it broke", "where")).to_bytes()),
    "certificate": (
        Certificate.parse,
        Certificate(
            kills=1, steps=2, total=3, repeated=4, workers=1, provenance={"host": "x"}
        ).to_bytes(),
    ),
    "journal": (parse_lines, to_lines([Record(1, NOW, {"loss": 0.5})])),
}  # fmt: skip


def trails(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    inner = value.items() if isinstance(value, dict) else ()
    for key, item in inner:
        yield from trails(item, (*at, key))


def put(value: Any, trail: tuple[Any, ...], new: Any) -> Any:
    if not trail:
        return new
    return {**value, trail[0]: put(value[trail[0]], trail[1:], new)}


def forged(content: bytes) -> Iterator[bytes]:
    """The content with each value exchanged for each bad one, sealed again where it was sealed."""
    sealed = b'"seal"' in content
    body = unseal(content) if sealed else json.loads(content)
    for trail in trails(body):
        for bad in BAD:
            new = put(body, trail, bad)
            yield seal(new) if sealed and isinstance(new, dict) else json.dumps(new).encode()
    yield b"[" * 100_000
    yield b'{"a": NaN}'
    yield b"\xff"


@pytest.mark.parametrize("kind", KEPT)
def test_storage_file__of_wrong_types_gets_to_be_damaged(kind: str) -> None:
    """Not to be a traceback, in whoever reads it or in whoever tells of it."""
    read, content = KEPT[kind]
    cell = toy_cell("slow", Toy(rate=0.1))
    stage = cell.stages[0].digest
    read(content)
    for changed in forged(content):
        try:
            found = read(changed)
        except (ValueError, KeyError):
            continue
        tries = {stage: (found,)} if isinstance(found, Attempt) else {}
        stands = {each.digest: found.outcome for each in cell} if isinstance(found, Ending) else {}
        ends = {each.digest: stands.get(each.digest, Failed("no")) for each in cell}
        assert "\n".join(story(cell, [cell], ends, tries))
        assert str(work_lost(tries))
        if isinstance(found, Claim):
            found.process.gone(replace(ME, host=found.process.host))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "a\0b"])
def test_manifest__that_climbs_gets_to_be_damaged(name: str) -> None:
    body = unseal(KEPT["commit"][1]) | {"files": manifest_to_json({name: stored_of(b"")})}
    with pytest.raises(ValueError, match="must stay in its folder"):
        Commit.parse(seal(body))


@pytest.mark.parametrize("name", ["../../..", "/etc", "a/b"])
def test_artifacts_folder__that_climbs_gets_to_be_damaged(name: str) -> None:
    for kind in ("outcome", "commit"):
        read, content = KEPT[kind]
        with pytest.raises(ValueError, match="pattern"):
            read(seal(unseal(content) | {"name": name}))


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    """A finished stage with a figure, which a link to a file outside has replaced."""
    ledger = Ledger.open(tmp_path / "store")
    found = ledger.stage(
        digest(trainer="t", result_version=1, stage="s", config={}, seed=0, data=None, parent=None)
    )
    ledger.storage.write(found.at("artifacts/ab/figures/a.png"), b"a picture")
    ending = Ending(
        outcome=Finished({}), name="ab", artifacts={"figures/a.png": stored_of(b"a picture")}
    )
    ledger.storage.write(found.at("outcome.json"), ending.to_bytes())
    (tmp_path / "secret").write_bytes(b"the secret of another user")
    assert figures(found, tmp_path / "a")["figures/a.png"]
    file = tmp_path / "store" / found.at("artifacts/ab/figures/a.png")
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    return found


def test_symbolic_link__gets_no_file_from_outside(stage: Any, tmp_path: Path) -> None:
    """Whoever does not know its bytes cannot name their checksum."""
    assert figures(stage, tmp_path / "b") == {"figures/a.png": None}
    with pytest.raises(DamageError):
        stage.artifacts(tmp_path / "c")


@pytest.mark.parametrize("name", ["a.html", "a.SVG", "a.xhtml", "a.js"])
def test_figure__that_a_browser_would_run_gets_not_into_mlflow(tmp_path: Path, name: str) -> None:
    ledger = Ledger.open(tmp_path)
    stage = ledger.stage("0" * 20)
    ledger.storage.write(stage.at(f"artifacts/ab/figures/{name}"), b"<script>")
    artifacts = {f"figures/{name}": stored_of(b"<script>")}
    ending = Ending(outcome=Finished({}), name="ab", artifacts=artifacts)
    ledger.storage.write(stage.at("outcome.json"), ending.to_bytes())
    assert figures(stage, tmp_path / "into") == {f"figures/{name}": None}


def test_process_number__of_others_gets_no_signal_but_a_look() -> None:
    """A claim may name any process of this machine; it is only asked whether it is there."""
    init = Process(host=ME.host, pid=1, born="0")
    assert init.gone(ME) in (True, False)
    for pid in ("1", -1, 2**31, None):
        text = json.loads(KEPT["claim"][1]) | {"process": {"host": ME.host, "pid": pid, "born": ""}}
        if pid != "1":
            with pytest.raises(ValueError, match="pid"):
                Claim.parse(json.dumps(text).encode())


def submissions(tmp_path: Path, **changes: Any) -> list[Any]:
    sent = packed(["toys"], [Document(file="x.yaml", text=STUDY)], PROFILE)
    storage = Storage.open(tmp_path)
    body = {part: getattr(sent, part) for part in sent.__slots__}
    body = {name: list(v) if isinstance(v, tuple) else v for name, v in body.items()} | changes
    storage.write(f"submissions/{sent.id}.json", json.dumps(body).encode())
    return find_submissions(storage)


def test_submission__whose_text_no_file_can_hold_gets_left_out(tmp_path: Path) -> None:
    """Or every keeper would fail at it, again and again, and keep no other."""
    sent = packed(["toys"], [Document(file="x.yaml", text=STUDY)], PROFILE)
    assert not submissions(tmp_path, files={**sent.files, "0.yaml": "\ud800"})


def test_submission__that_names_a_command_gets_ours(tmp_path: Path) -> None:
    (found,) = submissions(tmp_path, command=["sh", "-c", "id"])
    assert found.command[:4] == ("python", "-m", "ablation", "run")


@pytest.mark.parametrize(
    "files",
    [
        {"../../.bashrc": "evil"},
        {"/etc/cron.d/x": "evil"},
        {"ablation.py": "evil"},
        {"sitecustomize.py": "evil"},
        {"torch/__init__.py": "evil"},
    ],
)
def test_submission__that_brings_a_file_gets_left_out(
    tmp_path: Path, files: dict[str, str]
) -> None:
    """It would be written where whoever looks may write, or be imported by the driver."""
    sent = packed(["toys"], [Document(file="x.yaml", text=STUDY)], PROFILE)
    assert submissions(tmp_path, files=dict(sent.files))
    assert not submissions(tmp_path / "other", files={**sent.files, **files})


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "../../../home/x-00000000"},
        {"id": "another-00000000"},
        {"studies": ["../x"]},
        {"studies": []},
        {"studies": ["a", "b"]},
        {"submitted_ms": "x"},
        {"submitted_ms": 10**400},
        {"jobs": -1},
        {"grace_s": "inf"},
        {"code": 10**9},
        {"files": []},
        {"by": None},
    ],
)
def test_submission__of_wrong_types_or_places_gets_left_out(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert not submissions(tmp_path, **changes)


def test_submission__that_names_another_server_gets_no_password(tmp_path: Path) -> None:
    """Nor an answer of a cloud's metadata, nor a download: those are of whoever looks."""
    (found,) = submissions(tmp_path)
    place = json.loads(found.files["profile.yaml"]) | {
        "tracking": "https://evil", "storage": "s3://evil/x", "allow_download": True,
        "notice": "http://169.254.169.254/latest/meta-data/iam", "workers": 3, "address": "evil:1",
    }  # fmt: skip
    found = replace(found, files={**found.files, "profile.yaml": json.dumps(place)})
    brought = json.loads(at_home(found, PROFILE).files["profile.yaml"])
    assert "evil" not in json.dumps(brought)
    assert "169.254" not in json.dumps(brought)
    assert (brought["workers"], brought["address"]) == (3, "auto")
    assert not brought["allow_download"]
    for text in ("{", "[]", "[" * 100_000):
        found = replace(found, files={**found.files, "profile.yaml": text})
        assert json.loads(at_home(found, PROFILE).files["profile.yaml"])["storage"] == "s3://lab/x"


class NoJobs:
    """A cluster that knows none, and takes all."""

    given: ClassVar[list[str]] = []

    def session(self) -> str:
        return "session_1"

    def look(self, job: str) -> None:
        return None

    def submit(self, job: str, command: str, **_: Any) -> None:
        self.given.append(command)


def test_submission__that_nobody_can_read_gets_not_in_the_way_of_others(
    lab: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablation.executors.jobs.Jobs.at", lambda _: NoJobs())
    monkeypatch.setenv("ABLATION_ADDRESS", "10.0.0.5:6379")
    ledger = Ledger.open("results")
    ledger.check_writable()
    (sent,) = submissions(lab / "results")
    files = {**sent.files, "0.yaml": "include: [/etc/passwd]\nname: x\n"}
    submissions(lab / "results", files=files, by=ACTS)
    (lab / "results" / "submissions" / "x.json").write_bytes(b"[" * 100_000)
    assert main(["queue"]) == 0
    said = capsys.readouterr().out
    assert "toys: not begun" in said or "toys: 0 of 2 cells done" in said
    assert "toys: cannot be read. study.yaml:1: 'include' is no key of a study." in said
    assert is_harmless(said)
    assert [command.split()[:4] for command in NoJobs.given] == 2 * [
        ["python", "-m", "ablation", "run"]
    ]


def test_error_and_host__on_a_terminal_get_words_alone(lab: Path, capsys: Any) -> None:
    """As `why`, `status` and `table` show them."""
    found = planned(lab)
    ledger = Ledger.open("results")
    ledger.check_writable()
    stage = ledger.stage(found.cells[0].stages[0].digest)
    stage.end_attempt(
        stage.begin_attempt(time_ms=NOW, from_step=0, provenance={"host": ACTS}),
        "failed", time_ms=NOW, step=1, error=ACTS,
    )  # fmt: skip
    ledger.storage.write(
        stage.at("outcome.json"), Ending(outcome=Failed(f"Other: {ACTS}")).to_bytes()
    )
    for command in (["why", "toys.yaml", "slow"], ["status", "toys.yaml"], ["table", "toys.yaml"]):
        main(command)
        said = capsys.readouterr()
        assert is_harmless(said.out + said.err)
        assert "\\x1b" in said.out
    assert is_harmless(shown(status(found, ledger.standings(found.stages), work_lost({}))))


def test_study_folder__on_a_terminal_gets_words_alone(lab: Path, capsys: Any) -> None:
    ledger = Ledger.open("results")
    ledger.check_writable()
    (lab / "results" / "studies" / ACTS.replace("/", "")).mkdir(parents=True)
    assert main(["resume", "other"]) == 2
    said = capsys.readouterr().err
    assert "holds no study 'other'" in said
    assert is_harmless(said)


# Who made the data


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_image_bomb__gets_no_memory() -> None:
    with pytest.raises(DataError, match="must be a readable image"):
        decode(png(60_000, 60_000), named="bomb.png")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "..", "a/b.png", "a\0b"])
def test_coco_file_name__that_climbs_gets_a_refusal(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(png(4, 4))
    picture = {"id": 1, "file_name": name, "width": 4, "height": 4}
    said = {"images": [picture], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    (tmp_path / "x.json").write_text(json.dumps(said))
    with pytest.raises((DataError, UnreachableError), match="images"):
        read_annotations(tmp_path / "x.json", tmp_path / "images")


def test_data_description__nested_without_end_gets_a_refusal(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    (tmp_path / "x.json").write_bytes(deep)
    with pytest.raises(DataError, match="must be JSON"):
        read_annotations(tmp_path / "x.json", tmp_path)
    schema = pa.schema([], metadata={"huggingface": deep})
    with pytest.raises(DataError, match="is malformed"):
        read_descriptions(schema.metadata, Path("x.parquet"))


# Whom we ask over the network


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Generator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}"
        finally:
            serving.shutdown()


def says(content: bytes, *, code: int = 200, **headers: str) -> Callable[[Any], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        with suppress(OSError):  # whoever asked has enough
            handler.wfile.write(content)

    return answer


def test_notice__of_megabytes_and_escapes_gets_a_short_plain_line() -> None:
    with server(says(b"\x1b[2Jgo" + b"x" * 2**26)) as at:
        told = announced(at)
    assert len(told) < 200
    assert is_harmless(plain(told))


def test_notice__that_leads_to_a_file_gets_no_news(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("HUNTER2")
    with server(says(b"", code=302, Location=(tmp_path / "secret").as_uri())) as at:
        assert announced(at) == ""


def test_notice__with_a_password_gets_told_of_without_it() -> None:
    """What it says is kept in the storage."""
    with server(says(b"TERMINATE")) as at:
        told = announced(at.replace("//", "//user:HUNTER2@") + "/a?token=HUNTER2")
        assert told in ("", f"{at}/a says TERMINATE")
    why = silence("http://user:HUNTER2@127.0.0.1/notice")
    assert why
    assert "HUNTER2" not in why


# Who reads what we leave behind


SECRETS = {
    "RAY_AUTH_TOKEN": "HUNTER2-ray",
    "MLFLOW_TRACKING_USERNAME": "user",
    "MLFLOW_TRACKING_PASSWORD": "HUNTER2-mlflow",
    "AWS_ACCESS_KEY_ID": "AKIAHUNTER2",
    "AWS_SECRET_ACCESS_KEY": "HUNTER2-aws",
}
SENT = base64.b64encode(b"user:HUNTER2-mlflow").decode()


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("secrets")
def test_secrets__of_the_environment_are_in_nothing_that_a_run_leaves(
    lab: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the ledger, nor in MLflow's database and artifacts, nor on the terminal."""
    assert main(["run", "toys.yaml", "--inline"]) == 0
    monkeypatch.setenv("ABLATION_TRACKING", "http://user:HUNTER2@127.0.0.1:9/?token=HUNTER2")
    main(["run", "toys.yaml", "--inline"])
    assert main(["sync", "toys.yaml"]) == 1
    said = capsys.readouterr()
    assert "HUNTER2" not in said.out + said.err
    left = [at for at in lab.rglob("*") if at.is_file()]
    assert any(at.name == "mlflow.db" for at in left)
    assert [
        at for at in left if b"HUNTER2" in at.read_bytes() or SENT.encode() in at.read_bytes()
    ] == []


@pytest.mark.usefixtures("secrets")
def test_secrets__that_a_server_repeats_are_not_repeated(
    lab: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeat(handler: BaseHTTPRequestHandler) -> None:
        got = str(handler.headers.get("Authorization"))
        assert SENT in got
        says(f"I got {got}, which is HUNTER2-mlflow {ACTS}".encode(), code=400)(handler)

    assert main(["run", "toys.yaml", "--inline"]) == 0
    capsys.readouterr()
    with server(repeat) as at:
        monkeypatch.setenv("ABLATION_TRACKING", at)
        assert main(["sync", "toys.yaml"]) == 1
        findings = [*islice(diagnose(Profile(storage="results", tracking=at), trainer="toy"), 3)]
    said = capsys.readouterr().err + str(findings)
    assert "I got Basic" in said
    assert "HUNTER2" not in said
    assert SENT not in said


@pytest.mark.parametrize("key", ["user:HUNTER2@", ""])
def test_secrets__of_an_address_are_not_in_what_doctor_finds(
    lab: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    uri = f"http://{key}127.0.0.1:9"
    found = [*islice(diagnose(Profile(storage="results", tracking=uri), trainer="toy"), 3)][2]
    assert found.part == "MLflow"
    assert found.remedy
    assert "HUNTER2" not in found.found


def test_secrets__are_not_in_the_digest_that_a_run_keeps(tmp_path: Path) -> None:
    """Whoever reads the storage could try passwords against it."""
    runs = [
        Run(
            plan=planned(tmp_path), trainer=TRAINER, ledger=Ledger.open(tmp_path / "x"), run="r",
            profile=Profile(tracking=f"https://user:{password}@mlflow"), console=Console(),
        )
        for password in ("one", "two")
    ]  # fmt: skip
    assert len({run._mirrored({}) for run in runs}) == 1


@pytest.mark.usefixtures("secrets")
def test_secrets__are_in_no_argument_of_a_process(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ps` shows them to everybody, and Ray's dashboard a job's command, files and environment."""
    seen: list[Any] = []
    monkeypatch.setattr("ablation.cli.supervise", lambda command, say: seen.append(command) or 0)
    assert main(["run", "toys.yaml", "--supervise"]) == 0
    sent = packed(["toys"], [Document(file="x.yaml", text=STUDY)], PROFILE)
    assert "HUNTER2" not in str(seen) + str(sent.command) + str(sent.files)


@pytest.mark.parametrize(
    "place",
    [
        {"storage": "s3://KEY:HUNTER2@lab/x"},
        {"storage": "abfss://lab@x/y?client_secret=HUNTER2"},
        {"tracking": "https://me:HUNTER2@mlflow.lab"},
        {"tracking": "postgresql://db/x?password=HUNTER2"},
        {"tracking": "https://mlflow.lab/?token=HUNTER2"},
        {"notice": "http://me:HUNTER2@10.0.0.1/notice"},
    ],
)
def test_secrets__of_a_profile_are_not_sent_to_a_cluster(place: dict[str, str]) -> None:
    with pytest.raises(StudyError, match="must hold no keys") as caught:
        packed(["toys"], [Document(file="x.yaml", text=STUDY)], replace(PROFILE, **place))
    assert "HUNTER2" not in str(caught.value)


def test_masked__takes_out_what_the_environment_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "HUNTER2")
    assert masked("got Bearer HUNTER2.", "http://x") == "got Bearer ."
