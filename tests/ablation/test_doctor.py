"""What the doctor says of what it finds; test_cluster has it look at a real cluster."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from ray.runtime_env import RuntimeEnv

from ablation.doctor import SENDER, about_nodes, diagnose, read_findings
from ablation.examined import Examination, Questions, examine, versions
from ablation.executors.jobs import Job
from ablation.executors.probe import Node
from ablation.profile import Profile
from ablation.storage import Storage

MINE = {"python": "3.11.9", "torch": "2.9.0"}
PROFILE = Profile(data={"cifar10": "/data/cifar10"}, loaders=2, notice="/run/notice/end")
WELL = Examination(
    versions=MINE,
    data={"cifar10": ("test.parquet", "train.parquet")},
    storage="",
    notice="",
    devices=0,
    shared_memory=2**32,
)


def node(answer: Examination | str, address: str = "10.0.0.1", **has: float) -> Node[Examination]:
    return Node(address=address, resources={"CPU": 4, **has}, answer=answer)


def said(*nodes: Node[Examination], profile: Profile = PROFILE) -> list[str]:
    return [f"{f.part}: {f.found}" for f in about_nodes(nodes, profile, MINE) if f.remedy]


def test_node__that_is_well():
    (finding,) = about_nodes([node(WELL)], PROFILE, MINE)
    assert finding.part == "node 10.0.0.1"
    assert finding.found == "4 CPUs and 0 GPUs, sees the storage, cifar10"
    assert not finding.remedy


@pytest.mark.parametrize(
    ("ill", "found"),
    [
        (
            {"versions": {"python": "3.11.9", "torch": "2.8.0"}},
            "it has torch 2.8.0, and this machine torch 2.9.0",
        ),
        ({"data": {"cifar10": None}}, "cifar10 is not at /data/cifar10"),
        ({"storage": "it is another one there"}, "storage: it is another one there"),
        ({"notice": "refused"}, "/run/notice/end does not answer: refused"),
        ({"devices": 2}, "Ray counts 0 GPUs, and the trainer can use 2"),
        (
            {"devices": "No module named 'torch'"},
            "the trainer cannot look for GPUs: No module named 'torch'",
        ),
        (
            {"shared_memory": 2**26},
            "/dev/shm has 0.06 GiB free, too few for loader processes",
        ),
    ],
)
def test_node__that_is_ill(ill, found):
    assert said(node(replace(WELL, **ill))) == [f"node 10.0.0.1: {found}"]


def test_node__must_run_the_image_that_the_profile_names():
    place, other = (
        replace(PROFILE, image="lab/ablation:0.1.0"),
        replace(WELL, image="ablation:0.0.9"),
    )
    assert not said(node(replace(WELL, image="lab/ablation:0.1.0")), profile=place)
    assert not said(node(other))
    assert said(node(other, "a"), node(WELL, "b"), profile=place) == [
        "node a: it runs ablation:0.0.9, and not lab/ablation:0.1.0",
        "node b: it runs no image that says its name, and not lab/ablation:0.1.0",
    ]


@pytest.mark.parametrize("field", ["working_dir", "worker_process_setup_hook"])
def test_image__cannot_be_handed_to_ray_beside_what_drivers_and_workers_need(field):
    """The study's files, and the hook by which SIGTERM is heard: else Ray could start the image."""
    with pytest.raises(ValueError, match="'image_uri' field currently cannot be used together"):
        RuntimeEnv(image_uri="ablation:0.1.0", **{field: "s3://lab/x.zip"})


def test_node__whose_data_are_not_those_of_the_first():
    """The first that has any: one without them is told of by itself."""
    other = replace(WELL, data={"cifar10": ("train.parquet",)})
    none = replace(WELL, data={"cifar10": None})
    assert said(node(none, "a"), node(WELL, "b"), node(other, "c")) == [
        "node a: cifar10 is not at /data/cifar10",
        "node c: /data/cifar10 holds 1 names, not those of the other nodes' cifar10",
    ]


def test_node__that_cannot_be_asked():
    assert said(node("it gave no answer for 3 s")) == [
        "node 10.0.0.1: cannot be asked: it gave no answer for 3 s"
    ]


@pytest.mark.parametrize("memory", [None, 2**26])
def test_node__needs_shared_memory_for_loaders_only(memory):
    assert not said(node(replace(WELL, shared_memory=memory)), profile=replace(PROFILE, loaders=0))
    assert not said(node(replace(WELL, shared_memory=None)))


def test_node__needs_only_those_versions_that_both_have():
    assert not said(node(replace(WELL, versions={"torch": "2.9.0", "timm": "1.0.20"})))


def questions(tmp_path: Path, **more: object) -> Questions:
    storage = Storage.open(tmp_path / "results")
    storage.write("mark", b"x")
    return replace(Questions(storage=storage, mark="mark", trainer="toy"), **more)


def test_examine__finds_what_is_there(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b").touch()
    (tmp_path / "set" / "a").touch()
    data = {"set": tmp_path / "set", "file": tmp_path / "set" / "a", "none": tmp_path / "none"}
    found = examine(questions(tmp_path, data=data, notice=str(tmp_path / "end")))
    assert found.data == {"set": ("a", "b"), "file": (), "none": None}
    assert (found.storage, found.notice, found.devices) == ("", "", 0)
    assert found.versions == versions()
    assert found.versions["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]
    assert (tmp_path / "results" / "mark").exists()
    assert [each.name for each in (tmp_path / "results").iterdir()] == ["mark"]


def test_examine__says_which_image_it_runs_in(tmp_path, monkeypatch):
    assert examine(questions(tmp_path)).image == ""
    monkeypatch.setenv("ABLATION_BUILT_AS", "ablation:0.1.0")
    assert examine(questions(tmp_path)).image == "ablation:0.1.0"


def test_examine__knows_another_disk_by_the_mark(tmp_path):
    found = examine(questions(tmp_path, mark="of the driver"))
    assert found.storage == "it is another one there: what was written here is not in it"


def test_examine__of_a_storage_that_cannot_be_written(tmp_path):
    asked = questions(tmp_path)
    (tmp_path / "results").chmod(0o500)
    (tmp_path / "results" / "mark").rename(tmp_path / "mark")
    (tmp_path / "results").rmdir()
    (tmp_path / "results").touch()
    assert "Could not" in examine(asked).storage or "another one" in examine(asked).storage


@pytest.mark.parametrize(
    ("notice", "why"),
    [
        ("{}/none/end", "its folder {}/none is not there"),
        ("http://127.0.0.1:9/end", "Connection refused"),
    ],
)
def test_examine__of_a_source_of_notices_that_is_none(notice, why, tmp_path):
    found = examine(questions(tmp_path, notice=notice.format(tmp_path)))
    assert why.format(tmp_path) in found.notice


def test_examine__of_a_trainer_that_does_not_load(tmp_path):
    found = examine(questions(tmp_path, trainer="bakery"))
    assert isinstance(found.devices, str)
    assert found.devices.endswith("trainer must be installed, got 'bakery'. Choose from: hpm, toy.")


def test_read__takes_findings_from_what_a_job_says():
    """Between what Ray and others say; a remedy is the line after."""
    lines = [
        "2026-01-01 INFO Runtime env is setting up.",
        "ok   storage: s3://lab can be written: 5 ms",
        "MEND node 10.0.0.2: cifar10 is not at /data/cifar10",
        "     Copy it there.",
        "ok   node 10.0.0.3: 4 CPUs",
    ]
    assert [(f.part, f.found, f.remedy) for f in read_findings(lines)] == [
        ("on the head, storage", "s3://lab can be written: 5 ms", ""),
        ("on the head, node 10.0.0.2", "cifar10 is not at /data/cifar10", "Copy it there."),
        ("on the head, node 10.0.0.3", "4 CPUs", ""),
    ]


@dataclass
class Jobs:
    """A cluster on whose head a doctor says something, and ends with a code."""

    text: str
    code: int | None
    environment: Mapping[str, str] = field(default_factory=dict)
    address: str = "http://10.0.0.5:8265"

    def submit(
        self, job: str, command: str, *, folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.environment = environment

    def follow(self, job: str, say: Callable[[str], None]) -> None:
        say(self.text)

    def look(self, job: str) -> Job:
        return Job(state="failed", over=self.code is not None, code=self.code, message="")


ALL_WELL = "ok   storage: s3://lab can be written\nok   node 10.0.0.2: 4 CPUs\n"
ILL = "MEND node 10.0.0.2: cifar10 is not at /data\n     Copy it there.\n"


@pytest.mark.parametrize(
    ("text", "code", "is_whole"),
    [
        (ALL_WELL, 0, True),
        (ALL_WELL + ILL, 1, True),
        (ALL_WELL + "MemoryError\n", 1, False),
        (ALL_WELL, None, False),
        (ALL_WELL, -9, False),
        (ILL.partition("\n")[0], None, False),
        ("", 0, False),
    ],
)
def test_diagnose__sees_whether_the_heads_doctor_came_to_its_end(
    text, code, is_whole, tmp_path, monkeypatch
):
    jobs = Jobs(text, code)
    monkeypatch.setattr("ablation.executors.jobs.Jobs.at", lambda _: jobs)
    profile = Profile(address="10.0.0.5:6379", storage=str(tmp_path))
    found = [each for each in diagnose(profile, trainer="toy") if each.part == "cluster"]
    last = (text or "it said nothing").splitlines()[-1]
    said = [] if is_whole else [f"its head's doctor did not come to its end: {last}"]
    assert [each.found for each in found] == said
    assert all(each.remedy for each in found)


def test_diagnose__knows_another_disk_on_the_head(tmp_path, monkeypatch):
    """Whose doctor can write there, and all nodes see what it has written."""
    jobs = Jobs(ALL_WELL, 0)
    monkeypatch.setattr("ablation.executors.jobs.Jobs.at", lambda _: jobs)
    here = Profile(address="10.0.0.5:6379", storage=str(tmp_path / "here"))
    findings = diagnose(here, trainer="toy")
    assert "dashboard" in [next(findings).part for _ in range(4)]
    next(findings)
    monkeypatch.setenv(SENDER, jobs.environment[SENDER])
    there = diagnose(replace(here, address="local", storage=str(tmp_path / "there")), trainer="toy")
    assert next(there).remedy == ""
    storage = next(there)
    assert storage.found.endswith("there is not what lies there for whoever asks.")
    assert "one disk is mounted" in storage.remedy
    same = diagnose(replace(here, address="local"), trainer="toy")
    assert [next(same).remedy for _ in range(2)] == ["", ""]
    assert [*findings]


def test_diagnose__asks_the_cluster_of_a_dashboard_wherever_this_machine_would_run(
    tmp_path, monkeypatch
):
    """As `submit` does, and as behind a forwarded port."""
    monkeypatch.setattr("ablation.executors.jobs.Jobs.at", lambda _: Jobs(ALL_WELL, 0))
    profile = Profile(dashboard="http://127.0.0.1:8265", storage=str(tmp_path))
    parts = [each.part for each in diagnose(profile, trainer="toy")]
    assert parts[-2:] == ["on the head, storage", "on the head, node 10.0.0.2"]
