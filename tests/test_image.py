"""The image's recipe, what it takes of the lock, and what compose.yaml has before it starts."""

import configparser
import io
import re
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError

import pytest

from deployed import DOCKER, ROOT, documents, script

DOCKERFILE = (DOCKER / "Dockerfile").read_text()
LOCK = """\
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:aa \\
    --hash=sha256:ab
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:ac
nvidia-cublas==13.4 ; sys_platform == 'linux' \\
    --hash=sha256:ba
pytest==8.4 \\
    --hash=sha256:ca
torch==2.15.0 \\
    --hash=sha256:da
torchvision==0.29.2 \\
    --hash=sha256:db
triton==3.9.0 ; sys_platform == 'linux' \\
    --hash=sha256:ea
tritonclient==1.0 \\
    --hash=sha256:eb
"""
NEEDED = "numpy==2.4.6\nnvidia-cublas==13.4\ntorch==2.15.0\ntorchvision==0.29.2\ntriton==3.9.0\n"


def test_image__needs_nothing_that_only_buildkit_has():
    assert not re.search(r"<<|--mount|--chmod|--link|^# *syntax=", DOCKERFILE, re.M)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${BASE}"}
    assert re.search(r"^ARG BASE=docker\.io/library/python:3\.11-slim-bookworm$", DOCKERFILE, re.M)


def test_image__is_not_roots():
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.M) == ["1000:1000"]
    assert DOCKERFILE.index("USER 1000") > DOCKERFILE.index("COPY --from=build")


def test_image__says_what_it_was_built_as():
    """By the name that compose.yaml gives it; the profile's `image` is compared with that."""
    (name,) = re.findall(r"^ARG NAME=(\S+)", DOCKERFILE, re.M)
    assert "ENV ABLATION_BUILT_AS=${NAME}" in DOCKERFILE
    (compose,) = documents(DOCKER / "compose.yaml")
    assert compose["services"]["head"]["build"]["args"]["NAME"] == f"${{ABLATION_BUILT_AS:-{name}}}"
    assert compose["services"]["worker"]["image"] == f"${{ABLATION_BUILT_AS:-{name}}}"


def test_image__installs_by_hash_and_not_editable():
    assert "--require-hashes" in DOCKERFILE
    assert "--editable" not in DOCKERFILE
    installs = re.findall(r"uv pip install((?:[^;\\]|\\\n)*)", DOCKERFILE)
    assert len(installs) == 3
    assert all("--no-deps" in each for each in installs)


def test_image__copies_only_what_the_context_lets_through():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)
    sources = {word.removeprefix("./") for line in copied for word in line.split()}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)


def test_lock__cuda_is_the_lock_as_it_is_without_what_the_image_does_not_need():
    part = script("lock").part
    expected = "".join(
        line for line in LOCK.splitlines(keepends=True) if not re.search("pytest|ca$", line)
    )
    expected = expected.partition("triton==")[0]
    assert part(LOCK, NEEDED, "cuda") == expected
    assert part(LOCK, NEEDED, "cuda", rest=True) == ""


def test_lock__cpu_takes_torch_from_elsewhere_and_nothing_of_cuda():
    part = script("lock").part
    text = part(LOCK, NEEDED + "tritonclient==1.0\n", "cpu")
    assert re.findall(r"^(\S+)==", text, re.M) == ["numpy", "numpy", "tritonclient"]
    assert part(LOCK, NEEDED, "cpu", rest=True) == "torch==2.15.0\ntorchvision==0.29.2\n"


@pytest.mark.parametrize(
    ("needed", "variant", "words"),
    [(NEEDED + "flask-wtf==1.3\n", "cuda", "flask-wtf"), (NEEDED, "tpu", "VARIANT")],
)
def test_lock__refuses_what_it_cannot_give(needed, variant, words):
    with pytest.raises(ValueError, match=words):
        script("lock").part(LOCK, needed, variant)


def test_lock__of_the_repository_is_understood(tmp_path):
    needed = tmp_path / "needed.txt"
    needed.write_text(NEEDED.replace("2.4.6", "0"))
    command = [sys.executable, str(DOCKER / "lock.py"), str(ROOT / "requirements.lock"), needed]
    done = subprocess.run([*command, "cpu"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("numpy==")
    assert all(line.startswith(("numpy==", "    --hash=sha256:")) for line in lines)
    assert not lines[-1].endswith("\\")
    refused = subprocess.run([*command, "tpu"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "cuda or cpu" in refused.stderr


def _kept(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_secrets__are_those_that_compose_reads_and_made_once(tmp_path):
    (compose,) = documents(DOCKER / "compose.yaml")
    folder, make = tmp_path / "secrets", script("make_secrets").make
    assert {*make(folder)} == {*compose["secrets"]}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    before = _kept(folder)
    assert make(folder) == []
    assert _kept(folder) == before
    (folder / "ray_token").unlink()
    assert make(folder) == ["ray_token"]
    assert _kept(folder)["ray_token"] != before["ray_token"]


def test_secrets__can_be_read_by_who_needs_them(tmp_path):
    script("make_secrets").make(tmp_path / "secrets")
    texts = _kept(tmp_path / "secrets")
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.read_string(texts["s3_credentials"])
    parsed.read_string(texts["mlflow_credentials"])
    key = re.findall(r"^aws_secret_access_key *= *(.*)$", texts["s3_credentials"], re.M)
    assert key == [parsed["default"]["aws_secret_access_key"]]
    assert {*parsed["mlflow"]} == {"mlflow_tracking_username", "mlflow_tracking_password"}
    plain = [texts[n] for n in ("ray_token", "postgres_password", "mlflow_server_key")]
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in plain)


def _refusal(code: str) -> HTTPError:
    body = io.BytesIO(f'{{"error_code": "{code}"}}'.encode())
    return HTTPError("http://mlflow:5000", 400, "no", {}, body)  # type: ignore[arg-type]


@pytest.mark.parametrize("known", [False, True])
def test_setup__makes_the_user_or_tells_its_password_anew(tmp_path, known):
    script("make_secrets").make(tmp_path)
    told = []

    def tell(method: str, what: str, user: dict[str, str]) -> None:
        told.append((method, what, user["username"], len(user["password"])))
        if what == "create" and known:
            raise _refusal("RESOURCE_ALREADY_EXISTS")

    script("setup").make_user(tmp_path / "mlflow_credentials", tell)
    assert told[0] == ("POST", "create", "studies", 64)
    assert told[1:] == [("PATCH", "update-password", "studies", 64)] * known


def test_setup__other_refusals_are_errors(tmp_path):
    script("make_secrets").make(tmp_path)

    def tell(method: str, what: str, user: dict[str, str]) -> None:
        raise _refusal("PERMISSION_DENIED")

    with pytest.raises(HTTPError):
        script("setup").make_user(tmp_path / "mlflow_credentials", tell)
