import errno
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.process import scratch_folder, sweep, this_process

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


@linux
def test_process__that_cannot_be_looked_at_is_not_gone(monkeypatch):
    """As where this process has as many files open as it may."""
    me = this_process()

    def refuse(self: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert me.gone(me) is None


@pytest.fixture
def tmp(tmp_path, monkeypatch) -> Path:
    """The folder of temporary folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


KEEP = """
from pathlib import Path
from ablation.process import scratch_folder
folder = scratch_folder()
(Path(folder.name) / "resume").mkdir()
(Path(folder.name) / "resume" / "weights").write_bytes(bytes(1000))
print(folder.name, flush=True)
input()
"""


@linux
def test_sweep__removes_what_the_killed_left_and_nothing_of_the_living(tmp):
    command = [sys.executable, "-c", KEEP]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        theirs = Path(child.stdout.readline().strip())
        with scratch_folder() as mine:
            assert theirs.parent == Path(mine).parent == tmp
            sweep()
            assert (theirs / "resume" / "weights").exists()
            child.kill()
            child.wait()
            sweep()
            assert [*tmp.iterdir()] == [Path(mine)]
    assert [*tmp.iterdir()] == []


@pytest.fixture
def left(tmp) -> Path:
    """What a process left that was gone before this one had its number."""
    with scratch_folder() as mine:
        me = this_process()
        left = Path(mine.replace(f"-{me.born}-", "-1-"))
    left.mkdir()
    return left


@linux
def test_sweep__touches_nothing_that_may_be_anothers(left):
    tmp, name = left.parent, left.name
    kept = [
        "ablation-abcd1234",
        "ablation-results",
        f"{name[:17]}x{name[18:]}",  # of another machine
        f"{name}.mine",
        f"x{name}",
        f"{name[:18]}my-1-folder",
    ]
    for each in kept:
        (tmp / each).mkdir()
    (tmp / f"{name}a").symlink_to(tmp / "ablation-results")
    sweep()
    assert sorted(path.name for path in tmp.iterdir()) == sorted([*kept, f"{name}a"])


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="Only root gives folders away.")
def test_sweep__touches_no_other_users(left):
    os.chown(left, 12345, 12345)
    sweep()
    assert left.exists()


@linux
def test_sweep__touches_nothing_it_cannot_judge(left, monkeypatch):
    me = this_process()
    monkeypatch.setattr("ablation.process.this_process", lambda: me)

    def refuse(pid: int) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("ablation.process._born", refuse)
        sweep()
    assert left.exists()
    sweep()
    assert not left.exists()
