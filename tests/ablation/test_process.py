import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.process import this_process

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no Linux")
SAY = """
from ablation.process import this_process
me = this_process()
print(me.host, me.pid, me.born, flush=True)
input()
"""


@pytest.fixture
def child():
    with subprocess.Popen(
        [sys.executable, "-c", SAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_process__knows_itself():
    me = this_process()
    assert me == this_process()
    assert me.pid == os.getpid()
    assert me.gone(me) is False


@linux
def test_process__sees_others_come_and_go(child):
    me = this_process()
    assert child.stdout
    host, pid, born = child.stdout.readline().split()
    other = replace(me, pid=int(pid), born=born)
    assert host == me.host
    assert other.gone(me) is False
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert other.gone(me) is True  # a zombie: nobody has asked for its end yet
    child.wait()
    assert other.gone(me) is True


@linux
def test_process__one_of_the_same_number_is_another(child):
    """Numbers are used again."""
    me = this_process()
    assert replace(me, born="1").gone(me) is True
    assert replace(me, pid=child.pid).gone(me) is True


def test_process__sees_nothing_elsewhere():
    me = this_process()
    assert replace(me, host="another").gone(me) is None
    assert replace(me, host="another", pid=2**22 + 1).gone(me) is None
    assert replace(me, host="").gone(me) is None


@linux
def test_process__another_users_is_there():
    """The first process is everybody's, whoever asks."""
    me = this_process()
    stat = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
    assert replace(me, pid=1, born=stat[19]).gone(me) is False


@linux
def test_process__its_birth_is_no_matter_of_its_name(tmp_path):
    """A command's name may look like anything that stands beside it."""
    program = tmp_path / "a) Z 1 ("
    program.symlink_to(sys.executable)
    with subprocess.Popen([str(program), "-c", "input()"], stdin=subprocess.PIPE) as process:
        me = this_process()
        born = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        assert int(born) >= int(me.born)
        assert replace(me, pid=process.pid, born=born).gone(me) is False


def test_process__without_the_systems_word_has_a_place_all_the_same(monkeypatch):
    """Where there is no /proc: names of machines repeat, so addresses stand beside them."""

    def refuse(self: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    me = this_process()
    assert me == this_process()
    assert me.born == ""
    assert len(me.host.rpartition("/")[2]) == 12
    assert me.gone(me) is False
    assert replace(me, pid=2**22 + 1).gone(me) is True
