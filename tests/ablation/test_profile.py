from pathlib import Path

import pytest

from ablation.problems import StudyError
from ablation.profile import Profile, load_profile
from ablation.supervise import AGAIN, BEGUN, RUN


def _load(path: Path | None = None, environment=None, **flags) -> Profile:
    return load_profile(path, environment=environment or {}, flags=flags)


def _refused(*args, **kwargs) -> list[str]:
    with pytest.raises(StudyError) as caught:
        _load(*args, **kwargs)
    return str(caught.value).splitlines()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lab" / "lab.yaml"


def _write(file: Path, text: str) -> Path:
    file.parent.mkdir()
    file.write_text(text)
    return file


def test_load_profile__defaults_need_nothing():
    assert _load() == Profile()


def test_load_profile__later_source_wins(file):
    _write(file, "workers: 2\nloaders: 3\nconcurrency: 4\n")
    environment = {"ABLATION_LOADERS": "5", "ABLATION_CONCURRENCY": "6", "OTHER": "x"}
    profile = _load(file, environment, concurrency=7, storage=None)
    assert (profile.workers, profile.loaders, profile.concurrency) == (2, 5, 7)


def test_load_profile__folders_of_a_file_are_relative_to_it(file, tmp_path):
    _write(file, f"storage: results\ndata: {{cifar: ../data/cifar, net: {tmp_path / 'net'}}}\n")
    profile = _load(file)
    assert profile.storage == str(tmp_path / "lab" / "results")
    assert profile.place.data["cifar"].resolve() == tmp_path / "data" / "cifar"
    assert profile.place.data["net"] == tmp_path / "net"


def test_load_profile__a_uri_is_no_folder(file):
    assert _load(_write(file, "storage: s3://lab/results\n")).storage == "s3://lab/results"
    file.write_text("workers: 2\n")
    assert _load(file).storage == "ablation-results"


def test_load_profile__data_sets_add_up(file):
    _write(file, "data: {a: /file, b: /file}\n")
    profile = _load(file, {"ABLATION_DATA": "b=/variable, c=/variable"}, data={"c": "/flag"})
    assert profile.data == {"a": "/file", "b": "/variable", "c": "/flag"}


def test_load_profile__numbers_from_the_environment():
    profile = _load(environment={"ABLATION_CHECKPOINT_EVERY_S": "2.5", "ABLATION_WORKERS": "2"})
    assert (profile.checkpoint_every_s, profile.workers) == (2.5, 2)


def test_load_profile__all_problems_at_once(file):
    _write(file, "workers: 0\nwrokers: 1\nloaders: many\n")
    lines = _refused(file)
    assert lines == [
        f"{file}:1: workers must be at least 1, got 0.",
        f"{file}:2: wrokers is no setting. Did you mean 'workers'?",
        f'{file}:3: loaders must be a whole number, got "many".',
    ]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "WORKERS",
            "two",
            'workers must be a whole number or a list of 2, each a whole number, got "two".',
        ),
        ("CHECKPOINT_EVERY_S", "0", "checkpoint_every_s must be at least 0.01, got 0."),
        ("GPUS_PER_WORKER", "-1", "gpus_per_worker must be at least 0, got -1."),
    ],
)
def test_load_profile__wrong_variable(name, value, sentence):
    assert _refused(environment={f"ABLATION_{name}": value}) == [f"the environment: {sentence}"]


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.5:6379", "head:1", "[::1]:65535"])
def test_load_profile__address(address):
    assert _load(environment={"ABLATION_ADDRESS": address}).address == address


@pytest.mark.parametrize(
    "address", ["", "head", ":6379", "head:", "head:port", "head:0", "head:65536", "ray://head:1"]
)
def test_load_profile__address_of_nothing(address):
    (line,) = _refused(environment={"ABLATION_ADDRESS": address})
    assert line == (
        f"the environment: address must be local, auto or HOST:PORT of a cluster's head, "
        f"got {address!r}."
    )


@pytest.mark.parametrize(
    ("tracking", "shown"),
    [
        ("http://u:secret@[a", "http://[a"),
        ("https://u:secret@host:port", "https://host:port"),
        ("https://u:se/cret@host", "https://host"),
        ("http:///host", "http:///host"),
        ("postgresql://u:secret@[a/db", "postgresql://[a/db"),
    ],
)
def test_load_profile__tracking_that_is_no_address(tracking, shown):
    (line,) = _refused(environment={"ABLATION_TRACKING": tracking})
    assert line == (
        f"the environment: tracking must be an MLflow URI such as http://HOST:PORT or "
        f"postgresql://HOST/NAME, got {shown}. In a password, write / as %2F and [ as %5B."
    )


@pytest.mark.parametrize(
    "tracking",
    [
        "http://host:5000",
        "https://u:t@host",
        "postgresql://u:p/w@host/db",
        "sqlite:///a.db",
        "runs",
    ],
)
def test_load_profile__tracking(tracking):
    profile = _load(environment={"ABLATION_TRACKING": tracking})
    assert profile.mlflow(Path("/lab")) == (tracking, None)


def test_profile__embedded_mlflow_lies_beside_a_local_ledger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Profile().mlflow(Path("/lab")) == ("sqlite:////lab/mlflow.db", Path("/lab/mlflow"))
    here = tmp_path / "ablation-results"
    assert Profile().mlflow(None) == (f"sqlite:///{here}/mlflow.db", here / "mlflow")


def test_load_profile__is_none_of_its_fields_what_names_a_run():
    assert _load(environment={RUN: "5", BEGUN: "6", AGAIN: "1"}) == Profile()


def test_load_profile__wrong_flag():
    assert _refused(workers=0) == ["the flags: workers must be at least 1, got 0."]


def test_load_profile__no_settings_at_all(file):
    assert _refused(_write(file, "- a\n")) == [f"{file}:1: a profile must be settings by name."]


def test_load_profile__empty_file_is_the_defaults(file):
    assert _load(_write(file, "# nothing yet\n")) == Profile()


def test_load_profile__layout_and_place():
    profile = Profile(workers=2, cpus_per_worker=3, loaders=1, concurrency=5)
    assert (profile.layout.workers, profile.layout.concurrency) == (2, 5)
    assert (profile.place.threads, profile.place.loaders) == (3, 1)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("True", True), ("false", False)])
def test_load_profile__allow_download(text, value):
    assert _load().place.download is False
    assert _load(environment={"ABLATION_ALLOW_DOWNLOAD": text}).place.download is value
    assert _load(environment={"ABLATION_ALLOW_DOWNLOAD": text}, allow_download=True).place.download


def test_load_profile__allow_download_is_true_or_false(file):
    (line,) = _refused(environment={"ABLATION_ALLOW_DOWNLOAD": "maybe"})
    assert line == 'the environment: allow_download must be true or false, got "maybe".'
    assert _load(_write(file, "allow_download: true\n")).place.download
