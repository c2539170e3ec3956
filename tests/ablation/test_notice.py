import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ablation import notice
from ablation.notice import Watch, announced

Answer = Callable[[BaseHTTPRequestHandler], None]


def says(text: str, code: int = 200) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.end_headers()
        request.wfile.write(text.encode())

    return answer


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """An address on this machine that answers so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_PUT = do_GET

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{served.server_address[1]}/notice"
        finally:
            served.shutdown()
            thread.join()


def test_announced__nowhere_is_nothing():
    assert announced("") == ""


def test_announced__by_a_file(tmp_path):
    file = tmp_path / "notice"
    assert announced(str(file)) == ""
    file.touch()
    assert announced(str(file)) == f"{file} is there"
    file.unlink()
    assert announced(str(file)) == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("TERMINATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"),
        ("TRUE\n", "TRUE"),
        ('\n{"action": "terminate"}\nand more', '{"action": "terminate"}'),
        ("x" * 5000, "x" * 100),
        ("\xff\xfe", "\xff\xfe"),
    ],
)
def test_announced__by_an_address(text, told):
    with server(says(text)) as at:
        assert announced(at) == f"{at} says {told}"


@pytest.mark.parametrize("text", ["", " \n", "NONE", "None\n", "FALSE", "false", "[]", "{}"])
def test_announced__not_by_what_clouds_say_else(text):
    with server(says(text)) as at:
        assert announced(at) == ""


def test_announced__not_by_a_missing_page(caplog):
    with server(says("Not Found", 404)) as at:
        assert announced(at) == ""
    assert caplog.text == "", "it is how Amazon says that nothing is announced"


@pytest.mark.parametrize("code", [400, 403, 500, 503])
def test_announced__not_by_an_error_which_is_told_of_once(caplog, code):
    with server(says("TERMINATE", code)) as at:
        for _ in range(3):
            assert announced(at) == ""
    assert caplog.text.count(f"{at} should say when this machine is to end, but: ") == 1
    assert str(code) in caplog.text


def test_announced__not_by_silence(caplog):
    with server(says("")) as at:
        pass
    assert announced(at) == ""
    assert "refused" in caplog.text


@pytest.mark.parametrize(
    "at", ["http://", "http://[::1/x", "http://no host/", "http://127.0.0.1:99999/", "a\0b"]
)
def test_announced__not_by_what_is_no_address(at, caplog):
    assert announced(at) == ""


def test_announced__not_by_what_is_no_answer(caplog):
    """A server of another protocol."""
    with server(lambda request: request.wfile.write(b"SSH-2.0\r\n" * 9) and None) as at:
        assert announced(at) == ""
    assert "but: " in caplog.text


def test_announced__does_not_wait_for_a_slow_server(monkeypatch):
    monkeypatch.setattr(notice, "_ANSWER_WITHIN_S", 0.05)
    over = threading.Event()
    with server(lambda _: over.wait(60) and None) as at:
        begun = time.monotonic()
        assert announced(at) == ""
        assert time.monotonic() - begun < 30
        over.set()


def test_announced__goes_by_no_proxy(monkeypatch):
    """A proxy would ask for its own machine."""
    with server(says("")) as nobody:
        pass
    monkeypatch.setenv("http_proxy", nobody)
    monkeypatch.delenv("no_proxy", raising=False)
    with server(says("TRUE")) as at:
        assert announced(at) == f"{at} says TRUE"


def test_announced__asks_as_google_wants_it():
    def metadata(request: BaseHTTPRequestHandler) -> None:
        google = request.headers["Metadata-Flavor"] == "Google"
        says("TRUE" if google else "Forbidden", 200 if google else 403)(request)

    with server(metadata) as at:
        assert announced(at) == f"{at} says TRUE"


@pytest.mark.parametrize(("code", "told"), [(200, '{"action": "stop"}'), (404, "")])
def test_announced__asks_as_amazon_wants_it(code, told):
    """By a token, where the first version of its service is switched off."""

    def metadata(request: BaseHTTPRequestHandler) -> None:
        if request.command == "PUT" and request.path == "/latest/api/token":
            assert request.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
            says("secret")(request)
        elif request.headers["X-aws-ec2-metadata-token"] == "secret":
            says(told or "Not Found", code)(request)
        else:
            says("Unauthorized", 401)(request)

    with server(metadata) as at:
        assert announced(at) == (f"{at} says {told}" if told else "")


def test_announced__not_without_the_right(caplog):
    with server(says("Unauthorized", 401)) as at:
        assert announced(at) == ""
    assert "401" in caplog.text


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_watch__tells_what_is_announced_from_then_on():
    said, looks = [""], []

    def look() -> str:
        looks.append(time.monotonic())
        return said[0]

    with Watch(look, every_s=0.002) as watch:
        wait_until(lambda: len(looks) > 3)
        assert watch() == ""
        said[0] = "spot"
        wait_until(lambda: watch() == "spot")
        said[0] = ""
        count = len(looks)
        wait_until(lambda: len(looks) > count + 2)
        assert watch() == "spot", "what was announced stays so"
        said[0] = "spot, and now"
        wait_until(lambda: watch() == "spot, and now")
    count = len(looks)
    time.sleep(0.02)
    assert len(looks) == count
    assert watch() == "spot, and now"


def test_watch__looks_at_once_and_ends_at_once():
    begun = time.monotonic()
    with Watch(lambda: "spot", every_s=600.0) as watch:
        wait_until(lambda: watch() == "spot")
    assert time.monotonic() - begun < 60


def test_watch__never_keeps_the_work_waiting():
    over = threading.Event()
    with Watch(lambda: "late" if over.wait(60) else "", every_s=0.001) as watch:
        begun = time.perf_counter()
        assert {watch() for _ in range(1000)} == {""}
        assert time.perf_counter() - begun < 1
        over.set()
        wait_until(lambda: watch() == "late")


PROCESS = """
import os, signal, sys, threading, time
from ablation.notice import SIGTERM

def end(signum, frame):
    print("end", signum, flush=True)
    sys.exit(7)

SIGTERM.heed(end)
grace_s, mode = float(sys.argv[1]), sys.argv[2]

def work():
    with SIGTERM.at_work(grace_s) as told:
        assert told() == ""
        print("at work", flush=True)
        while not told():
            time.sleep(0.002)
        print(told(), flush=True)
        if mode == "leaves":
            return
        while True:
            time.sleep(0.002)

if mode == "idle":
    with SIGTERM.at_work(grace_s):
        pass
    print("idle", flush=True)
elif mode == "forks":
    with SIGTERM.at_work(600):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, b".")  # a signal before that might be forgotten with the fork
            time.sleep(600)
            os._exit(1)
        os.read(reader, 1)
        os.kill(child, signal.SIGTERM)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit(0)
elif mode == "thread":
    threading.Thread(target=work, daemon=True).start()
else:
    work()
    print("left", flush=True)
while True:
    time.sleep(0.002)
"""


@contextmanager
def process(grace_s: float, mode: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", PROCESS, str(grace_s), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def line(of: "subprocess.Popen[str]") -> str:
    assert of.stdout
    return of.stdout.readline().strip()


@pytest.mark.parametrize("mode", ["works", "thread"])
def test_sigterm__is_a_notice_first_and_an_end_after_the_grace(mode):
    with process(0.3, mode) as worker:
        assert line(worker) == "at work"
        begun = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert line(worker) == "SIGTERM, to end within 0.3 s"
        assert line(worker) == f"end {signal.SIGTERM.value}"
        assert time.monotonic() - begun >= 0.3
        assert worker.wait(60) == 7


def test_sigterm__a_second_one_ends_at_once():
    with process(600, "works") as worker:
        assert line(worker) == "at work"
        worker.send_signal(signal.SIGTERM)
        assert line(worker) == "SIGTERM, to end within 600 s"
        worker.send_signal(signal.SIGTERM)
        assert line(worker).startswith("end")
        assert worker.wait(60) == 7


def test_sigterm__means_what_it_meant_when_nothing_is_at_work():
    with process(600, "idle") as worker:
        assert line(worker) == "idle"
        worker.send_signal(signal.SIGTERM)
        assert line(worker).startswith("end")
        assert worker.wait(60) == 7


def test_sigterm__counts_though_the_work_ended_within_the_grace():
    with process(0.1, "leaves") as worker:
        assert line(worker) == "at work"
        worker.send_signal(signal.SIGTERM)
        assert line(worker).startswith("SIGTERM")
        assert line(worker) == "left"
        assert line(worker).startswith("end")
        assert worker.wait(60) == 7


def test_sigterm__without_grace_ends_at_once():
    with process(0, "works") as worker:
        assert line(worker) == "at work"
        worker.send_signal(signal.SIGTERM)
        assert worker.stdout
        assert worker.stdout.read().splitlines()[-1] == f"end {signal.SIGTERM.value}"
        assert worker.wait(60) == 7


def test_sigterm__ends_at_once_what_the_process_at_work_forked():
    """Such as a loader, which its parent ends so."""
    with process(600, "forks") as worker:
        assert line(worker) == f"end {signal.SIGTERM.value}"
        assert line(worker) == "child 7"
        assert worker.wait(60) == 0


def test_sigterm__can_only_be_heeded_by_the_main_thread():
    errors: list[BaseException] = []

    def heed() -> None:
        try:
            notice.SIGTERM.heed(lambda *_: None)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=heed)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_announced__by_a_folder_that_may_not_be_read(tmp_path, monkeypatch, caplog):
    def refuse(self: Path) -> bool:
        raise PermissionError("Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    assert announced(str(tmp_path / "x")) == ""
    assert "Permission denied" in caplog.text
