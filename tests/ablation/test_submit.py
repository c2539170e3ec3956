"""Submissions and their drivers, on a cluster that is made up; tests/cluster has a real one."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ablation.executors.jobs import Job
from ablation.layout import LostPlaceError, PlaceError
from ablation.problems import StudyError
from ablation.profile import Profile, load_profile
from ablation.storage import Storage, StorageError
from ablation.submission import find_submissions, reread, write_submission
from ablation.submit import at_home, bring, dashboard_of, follow, keep, packed, stop
from ablation.supervise import AGAIN, BEGUN, LOST
from ablation.yamlfile import Document

PROFILE = Profile(
    address="10.0.0.5:6379",
    storage="s3://lab/x?region=eu-1",
    tracking="https://mlflow.lab",
    data={"cifar10": "/data/cifar10"},
    image="lab/ablation:0.1.0",
    workers=(1, 4),
    grace_s=25.0,
)
RUNNING = Job(state="running", over=False, code=None, message="")


def ended(code: int | None, state: str = "failed") -> Job:
    return Job(state=state, over=True, code=code, message="")


@dataclass
class Cluster:
    """Ray's jobs by name; `lives` are what becomes of each driver while it is listened to."""

    known: dict[str, Job] = field(default_factory=dict)
    given: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    lives: list[Callable[["Cluster", str], None]] = field(default_factory=list)
    environments: list[Mapping[str, str]] = field(default_factory=list)
    heads: int = 1
    meanwhile: Callable[[], object] = str
    """What others do before a driver is written down."""

    def session(self) -> str:
        self.meanwhile()
        return f"session_{self.heads}"

    def begin_anew(self) -> None:
        """The head is lost with what it knew, and another one begins."""
        self.known.clear()
        self.heads += 1

    def submit(
        self, job: str, command: str, *, folder: Path, environment: Mapping[str, str]
    ) -> None:
        files = {at.name: at.read_text() for at in folder.iterdir()}
        self.given.append((job, command, files))
        self.environments.append(environment)
        self.known[job] = RUNNING

    def look(self, job: str) -> Job | None:
        return self.known.get(job)

    def stop(self, job: str) -> None:
        self.known[job] = ended(None, "stopped")

    def follow(self, job: str, say: Callable[[str], None]) -> None:
        say(f"{job} works\n")
        self.lives.pop(0)(self, job)


def ends(code: int | None, state: str = "failed") -> Callable[[Cluster, str], None]:
    return lambda cluster, job: cluster.known.update({job: ended(code, state)})


def head_is_lost(cluster: Cluster, job: str) -> None:
    cluster.begin_anew()
    raise LostPlaceError("the head does not answer.")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path)


def document(text: str) -> Document:
    return Document(file="x.yaml", text=text)


def submission(names=("toys",), profile=PROFILE):
    return packed(names, [document(f"name: {name}\n") for name in names], profile)


def test_packed__is_what_a_driver_on_the_cluster_needs(tmp_path):
    """Its profile is this one, but for the way to the cluster, which is where it is."""
    sent = submission()
    assert sent.files["0.yaml"] == "name: toys\n"
    (tmp_path / "profile.yaml").write_text(sent.files["profile.yaml"])
    read = load_profile(tmp_path / "profile.yaml", environment={}, flags={})
    assert read == replace(PROFILE, address="auto", dashboard=None)
    assert sent.command[3:] == ("run", "0.yaml", "--supervise", "--on", "profile.yaml")
    assert sent.id.startswith("toys-")
    assert submission().id != sent.id


def test_packed__several_studies_are_one_file_that_includes_them():
    sent = submission(["a b", "c"])
    assert json.loads(sent.files["studies.yaml"])["include"] == ["0.yaml", "1.yaml"]
    assert sent.command[4] == "studies.yaml"
    assert sent.id.startswith("a-b-")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"storage": "s3://KEY:SECRET@lab/x"}, "storage must hold no keys"),
        ({"tracking": "https://me:SECRET@mlflow.lab"}, "tracking must hold no keys"),
        ({"tracking": None}, "tracking must name an MLflow server"),
    ],
)
def test_packed__refuses_a_place_that_is_none_for_a_cluster(place, said):
    with pytest.raises(StudyError, match=said) as caught:
        submission(profile=replace(PROFILE, **place))
    assert "SECRET" not in str(caught.value)


def test_packed__has_folders_as_they_are_here(tmp_path, monkeypatch):
    """A driver on the cluster works elsewhere."""
    monkeypatch.chdir(tmp_path)
    for storage, where in [("results", tmp_path / "results"), ("/disk/results", "/disk/results")]:
        place = replace(PROFILE, storage=storage, data={"cifar10": "data"})
        sent = json.loads(submission(profile=place).files["profile.yaml"])
        assert (sent["storage"], sent["data"]) == (str(where), {"cifar10": str(tmp_path / "data")})


def test_at_home__shares_the_cluster_as_it_was_submitted():
    """What a keeper's profile sets, and theirs does not, is as it is where nothing is set."""
    sent = submission(profile=replace(PROFILE, priority=3))
    keeper = replace(
        PROFILE, storage="s3://lab/here", gpus_per_worker=1, concurrency=6, data={"x": "/x"}
    )
    found = json.loads(at_home(sent, keeper).files["profile.yaml"])
    assert found == json.loads(sent.files["profile.yaml"]) | {"storage": "s3://lab/here"}


def test_dashboard__is_on_the_head_unless_it_is_named():
    assert dashboard_of(PROFILE) == "http://10.0.0.5:8265"
    assert dashboard_of(replace(PROFILE, dashboard="https://ray.lab")) == "https://ray.lab"
    for address in ("local", "auto"):
        with pytest.raises(StudyError, match="dashboard must be that of a cluster"):
            dashboard_of(replace(PROFILE, address=address))


def test_bring__gives_it_a_driver_once(storage):
    cluster, sent = Cluster(), submission()
    first, job = bring(sent, cluster, storage)
    assert (
        bring(first, cluster, storage)
        == (first, job)
        == (replace(sent, session="session_1"), RUNNING)
    )
    ((name, command, files),) = cluster.given
    assert name == f"{sent.id}-1"
    assert command == "python -m ablation run 0.yaml --supervise --on profile.yaml"
    assert files == sent.files
    assert cluster.environments[0]["RAY_JOB_STOP_WAIT_TIME_S"] == "60"
    assert cluster.environments[0][AGAIN] == "1", "submitting has taken the marks of stops away"
    assert find_submissions(storage) == [first]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_bring__keeps_how_it_ended(storage, code):
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    cluster.known[sent.job] = ended(code)
    sent, _ = bring(sent, cluster, storage)
    assert sent.over
    assert [each.code for each in find_submissions(storage)] == [code]
    assert len(cluster.given) == 1


@pytest.mark.parametrize("code", [None, 75, 130, -9, 137])
def test_bring__gives_it_another_driver_where_that_was_lost(storage, code):
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    cluster.known[sent.job] = ended(code)
    again, job = bring(sent, cluster, storage)
    assert (again.job, job) == (f"{sent.id}-2", RUNNING)
    assert find_submissions(storage) == [again]


def test_bring__gives_it_another_driver_where_the_head_was_lost(storage):
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    cluster.begin_anew()
    again, job = bring(sent, cluster, storage)
    assert (again.job, job) == (f"{sent.id}-2", RUNNING)


def test_bring__tells_a_driver_what_was_there_before(storage):
    """Then a cluster, or a storage, that is not there is no wrong input."""
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    cluster.begin_anew()
    bring(sent, cluster, storage)
    assert [LOST in each for each in cluster.environments] == [False, True]
    for environment, (_, _, files) in zip(cluster.environments, cluster.given, strict=True):
        assert environment[BEGUN] in files


def test_bring__gives_it_no_second_driver_while_another_command_does_so(storage):
    """That one has written it down already, and Ray does not know the job yet."""
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    cluster.known.clear()
    assert bring(sent, cluster, storage) == (sent, RUNNING)


def test_bring__knows_what_others_did_since_it_was_read(storage):
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    cluster.begin_anew()
    again, _ = bring(sent, cluster, storage)
    assert bring(sent, cluster, storage) == (again, RUNNING)
    cluster.begin_anew()
    write_submission(storage, replace(again, code=0))
    over, job = bring(sent, cluster, storage)
    assert (over.code, job) == (0, None)
    assert len(cluster.given) == 2


def test_stop__ends_it_for_good(storage):
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    (stopped,) = stop([sent], lambda: cluster, storage)
    (kept,) = find_submissions(storage)
    assert kept == stopped
    over, _ = bring(stopped, cluster, storage)
    assert over.code == 130
    assert len(cluster.given) == 1


def test_stop__counts_where_the_cluster_is_lost_afterwards(storage):
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    (stopped,) = stop([sent], lambda: cluster, storage)
    cluster.known.clear()
    assert bring(stopped, cluster, storage)[0].code == 130


def test_stop__counts_where_another_driver_is_written_down_in_the_same_moment(storage):
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    cluster.begin_anew()
    cluster.meanwhile = lambda: stop([sent], lambda: cluster, storage)
    again, job = bring(sent, cluster, storage)
    assert (again.job, again.stopped, job) == (f"{sent.id}-2", True, ended(None, "stopped"))
    assert bring(again, cluster, storage)[0].code == 130


def test_stop__is_kept_where_the_cluster_cannot_be_told(storage):
    cluster = Cluster()
    sent = [bring(submission([name]), cluster, storage)[0] for name in "ab"]

    def away() -> Cluster:
        raise PlaceError("nobody listens.")

    with pytest.raises(PlaceError):
        stop(sent, away, storage)
    cluster.begin_anew()
    assert [bring(each, cluster, storage)[0].code for each in sent] == [130, 130]


def test_stop__knows_the_driver_that_another_command_has_given_it(storage):
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    cluster.begin_anew()
    again, _ = bring(sent, cluster, storage)
    assert stop([sent], lambda: cluster, storage) == [replace(again, stopped=True)]
    assert cluster.known == {again.job: ended(None, "stopped")}


def test_bring__asks_a_driver_to_end_that_has_not_heard_of_it(storage):
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    stop([sent], Cluster, storage)
    assert bring(sent, cluster, storage)[0].stopped
    assert cluster.known == {sent.job: ended(None, "stopped")}


def test_bring__takes_a_stop_on_rays_own_page_for_one(storage):
    cluster = Cluster()
    sent, _ = bring(submission(), cluster, storage)
    cluster.stop(sent.job)
    assert bring(sent, cluster, storage)[0].code == 130


def test_follow__to_the_end_through_lost_drivers_and_heads(storage):
    cluster = Cluster(lives=[ends(None), head_is_lost, ends(75), ends(1)])
    away = iter([False, False, False, True, True, False, False])

    def connect() -> Cluster:
        if next(away):
            raise PlaceError("nobody listens.")
        return cluster

    said: list[str] = []
    sent = submission()
    assert follow(sent, storage, connect, said.append, pause_s=0.0) == 1
    assert [name.removeprefix(sent.id) for name, _, _ in cluster.given] == ["-1", "-2", "-3", "-4"]
    assert said.count("the head does not answer.\n") == 1
    assert said.count("nobody listens.\n") == 1
    assert find_submissions(storage)[0].code == 1


def test_follow__waits_for_a_storage_that_is_away(storage, monkeypatch):
    cluster, away, said = Cluster(lives=[ends(0)]), iter([True, True]), list[str]()

    def refuse(storage, submission):
        if next(away, False):
            raise StorageError("the storage refuses.")
        return reread(storage, submission)

    monkeypatch.setattr("ablation.submit.reread", refuse)
    assert follow(submission(), storage, lambda: cluster, said.append, pause_s=0.0) == 0
    assert said.count("the storage refuses.\n") == 1


def test_keep__gives_all_of_them_drivers_until_they_have_ended(storage):
    cluster, sent = Cluster(), [submission([name]) for name in "ab"]
    for each in sent:
        bring(each, cluster, storage)
    a, b = sent
    turns = [
        lambda: cluster.known.update({a.job: ended(-9)}),
        lambda: cluster.known.update({f"{a.id}-2": ended(0), b.job: ended(1)}),
        cluster.known.clear,
    ]
    said: list[str] = []

    def pause() -> None:
        if not turns:
            raise KeyboardInterrupt
        turns.pop(0)()

    away = iter([True, True])

    def connect() -> Cluster:
        if next(away, False):
            raise PlaceError("nobody listens.")
        return cluster

    turns = [lambda: None, lambda: None, *turns]
    with pytest.raises(KeyboardInterrupt):
        keep(PROFILE, storage, connect, said.append, pause=pause)
    assert said == [
        "nobody listens.",
        f"{a.job} was lost: {a.id}-2 goes on.",
        f"{a.id} has ended with 0.",
        f"{b.id} has ended with 1.",
    ]
    assert [each.code for each in find_submissions(storage)] == [0, 1]


def test_keep__keeps_others_where_one_is_in_trouble(storage):
    cluster, said = Cluster(), list[str]()
    sent = [bring(submission([name]), cluster, storage)[0] for name in "ab"]
    for each in sent:
        cluster.known[each.job] = ended(-9)

    def refuse() -> None:
        cluster.meanwhile = str
        raise LostPlaceError("it is not answered.")

    def pause() -> None:
        raise KeyboardInterrupt

    cluster.meanwhile = refuse
    with pytest.raises(KeyboardInterrupt):
        keep(PROFILE, storage, lambda: cluster, said.append, pause=pause)
    first, second = (each.id for each in sent)
    assert said in [
        [f"{goes}-1 was lost: {goes}-2 goes on.", "it is not answered."] for goes in (first, second)
    ]


def test_submissions__that_are_damaged_or_newer_are_not_in_the_way(storage):
    sent = submission(["a"])
    write_submission(storage, sent)
    storage.write("submissions/b.json", b"{")
    storage.write("submissions/c.json", b'{"id": "c"}')
    text = storage.read(f"submissions/{sent.id}.json") or b""
    storage.write(f"submissions/{sent.id}.json", text.replace(b"{", b'{"later": 1, ', 1))
    assert find_submissions(storage) == [sent]
