"""A study on its way, and what it runs on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ablation.claims import claims_at
from ablation.ledger import Ledger
from ablation.plan import Plan, plan
from ablation.protocol import Place
from ablation.study import load_study
from ablation.toy import TRAINER
from chaos.nodes import Nodes
from chaos.processes import alive, command, descendants, end
from chaos.proxy import Proxy
from chaos.work import Step, steps_done

__all__ = ["INTERVAL_S", "Scale", "World"]

INTERVAL_S = 0.5
"""Between checkpoints, so that a kill repeats a few steps."""

GRACE_S = 2.0
_FRESH_S = 1.5
"""A stage whose last step is no older is at work."""

_STUDY = """\
name: chaos
trainer: toy
preset: toy
set: {{steps: {steps}, sleep_s: {sleep_s}, log_every: 5}}
seeds: {seeds}
evaluate: [{{score: {{steps: 4}}}}]
references: [noise]
metric: score/accuracy
baseline: slow
rows:
  slow: {{rate: 0.1}}
  fast: {{rate: 0.3}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the study is: two rows, so many seeds, and steps of so many seconds."""

    steps: int
    sleep_s: float
    seeds: int

    def write(self, folder: Path) -> Path:
        path = folder / "chaos.yaml"
        text = _STUDY.format(steps=self.steps, sleep_s=self.sleep_s, seeds=[*range(self.seeds)])
        path.write_text(text)
        return path


@dataclass(slots=True, kw_only=True)
class World:
    """One run of the study, begun again until it is complete."""

    folder: Path
    study: Path
    workers: int | list[int] = 1
    concurrency: int = 2
    nodes: Nodes | None = None
    storage: str = ""
    """As the study reaches it; empty for a folder on the disk."""
    tracking: str | None = None
    direct: str = ""
    direct_tracking: str = ""
    """The same storage and MLflow without proxies before them."""
    network: Mapping[str, Proxy] = field(default_factory=dict)
    """Proxies before the storage and before MLflow."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    _running: "subprocess.Popen[bytes] | None" = None
    _plan: Plan | None = None

    def __post_init__(self) -> None:
        self.scratch.mkdir(parents=True)
        self._write_profile()

    def move(self, nodes: Nodes) -> None:
        """Another cluster is the study's from now on."""
        self.nodes = nodes
        self._write_profile()

    def _write_profile(self) -> None:
        self.profile.write_text(
            f"address: {self.nodes.address if self.nodes else 'local'}\n"
            f"storage: {self.storage or self.folder / 'ledger'}\n"
            f"data: {{scratch: {self.scratch}}}\n"
            f"workers: {self.workers}\nconcurrency: {self.concurrency}\n"
            f"checkpoint_every_s: {INTERVAL_S}\ngrace_s: {GRACE_S}\npatience_s: 300\n"
            f"notice: {self.notice}\n" + (f"tracking: {self.tracking}\n" if self.tracking else "")
        )

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def profile(self) -> Path:
        return self.folder / "profile.yaml"

    @property
    def notice(self) -> Path:
        return self.folder / "notice"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.direct or self.folder / "ledger")

    @property
    def mlflow(self) -> str:
        """The MLflow store, without a proxy before it."""
        return self.direct_tracking or f"sqlite:///{self.folder / 'ledger' / 'mlflow.db'}"

    @property
    def plan(self) -> Plan:
        if self._plan is None:
            self._plan = plan(load_study(self.study), TRAINER, Place())
        return self._plan

    @property
    def num_steps(self) -> int:
        """Steps of a training."""
        return int(self.plan.cells[0].stages[0].config.steps)

    def command(self, name: str, *more: str) -> list[str]:
        """A command of the study's."""
        at = [str(self.study), "--on", str(self.profile)]
        return [sys.executable, "-m", "ablation", name, *at, *more]

    def start(self) -> None:
        """Begin the driver, or begin it again."""
        self._running = self.launch("run", "--supervise")

    def launch(self, name: str, *more: str) -> "subprocess.Popen[bytes]":
        """A command in a session of its own, its words in the log."""
        return self._launch(self.command(name, *more))

    def resume(self) -> "subprocess.Popen[bytes]":
        """`ablation resume`, which is told the study's name alone."""
        name = self.plan.study.name
        on = ("--on", str(self.profile))
        return self._launch([sys.executable, "-m", "ablation", "resume", name, *on])

    def _launch(self, command: list[str]) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, sent: signal.Signals, within_s: float = 120.0) -> int:
        """Send a signal to the driver's whole session; the exit code."""
        assert self._running is not None
        with suppress(ProcessLookupError):
            os.killpg(self._running.pid, sent)
        return self._running.wait(within_s)

    def finish(self, within_s: float) -> int:
        """Wait until the driver has ended by itself; the exit code."""
        assert self._running is not None
        return self._running.wait(within_s)

    def over(self) -> bool:
        """Whether the driver has ended by itself."""
        return self._running is not None and self._running.poll() is not None

    def clear(self) -> None:
        """End whatever still runs."""
        if self._running is not None and self._running.poll() is None:
            everything = [self._running.pid, *descendants(self._running.pid)]
            for pid in everything:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._running.wait()
            end([pid for pid in everything if alive(pid)])

    def driver(self) -> int | None:
        """The driver under its supervisor."""
        assert self._running is not None
        found = [
            pid
            for pid in descendants(self._running.pid)
            if "ablation.supervised run" in command(pid)
        ]
        return found[0] if found else None

    def titled(self, title: str) -> list[int]:
        """Ray's processes of a title."""
        assert self._running is not None
        roots = [self._running.pid, *(self.nodes.roots() if self.nodes else [])]
        pids = [pid for root in roots for pid in descendants(root)]
        return [pid for pid in pids if command(pid).startswith(title)]

    def steps(self) -> list[Step]:
        """Every step of a training that was done so far."""
        return [step for step in steps_done(self.scratch) if step.stage == "train"]

    def at_work(self) -> dict[str, Step]:
        """The last step of the lead of each training that is under way, by rate and seed."""
        steps, now = self.steps(), time.time()
        leads = self._leads()
        found: dict[str, Step] = {}
        for step in steps:
            if leads.get(step.which) == step.pid and alive(step.pid):
                found[step.which] = step
        return {
            which: step
            for which, step in found.items()
            if now - step.at < _FRESH_S and step.number < self.num_steps
        }

    def stage(self, which: str) -> str:
        """The digest of a training."""
        return self._stages()[which]

    def _stages(self) -> dict[str, str]:
        return {
            f"{stage.config.rate}/{stage.seed}": stage.digest
            for stage in self.plan.stages.values()
            if stage.name == "train"
        }

    def _leads(self) -> dict[str, int]:
        leads = {}
        for which, digest in self._stages().items():
            folder = self.ledger.stage(digest)
            for claim in claims_at(folder.storage, folder.at("lease")).values():
                if not claim.over:
                    leads[which] = claim.process.pid
        return leads
