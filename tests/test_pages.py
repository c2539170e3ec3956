"""What a browser makes of HTML in words, labels and errors, on the pages of MLflow."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from ablation import toy
from ablation.cli import main
from ablation.runs_page import page
from leaks import MLFLOW_LEAKS

BROWSER = shutil.which("chromium")

pytestmark = MLFLOW_LEAKS

OWN = "document.title='owned'"
HOSTILE = [
    f'<img src=x onerror="{OWN}">',
    f"<script>{OWN}</script>",
    f'"><svg/onload={OWN}>',
    f"[x](javascript:{OWN})",
    "![p](http://evil/x.png)",
]
WORDS = json.dumps(" ".join(HOSTILE))
STUDY = f"""\
name: toys
question: {WORDS}
trainer: toy
preset: quick
seeds: [0]
evaluate: [score]
metric: score/accuracy
baseline: base
published: {{base: {{value: 1, source: {WORDS}, note: {WORDS}}}}}
rows:
  base: {{rate: 0.1}}
  bad: {{fail_at: 2}}
""" + "".join(f"  {json.dumps(text)}: {{rate: 0.2{n}}}\n" for n, text in enumerate(HOSTILE))

UP_WITHIN_S = 120.0
DRAW_WITHIN_S = 300.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--virtual-time-budget=60000",
)


class Drawn(HTMLParser):
    """A page as the browser has it in the end: its words, and what of it is ours and acts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words = ""
        self.titles: list[str] = []
        self.active: list[str] = []
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        for name, value in attributes:
            acts = name.startswith("on") or (value or "").startswith("javascript:")
            if acts or (name == "src" and value in ("x", "http://evil/x.png")):
                self.active.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self._tag == "title":
            self.titles.append(data)
        elif self._tag == "script":
            self.active += [data] if OWN in data else []
        else:
            self.words += data


def fails(config: toy.Toy, step: int, scratch: Any) -> None:
    """In place of the toy's accidents: one with a hostile text."""
    if step == config.fail_at:
        raise RuntimeError(" ".join(HOSTILE))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of what `ablation ui` shows of a hostile study."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "toys.yaml").write_text(STUDY)
    place = ["--storage", str(folder / "ledger")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "_accidents", fails)
        assert main(["run", str(folder / "toys.yaml"), "--inline", *place]) == 1
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ablation", "ui", *place, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = MlflowClient(f"sqlite:///{folder / 'ledger' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("toys")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id])
        (study,) = [run.info.run_id for run in found if "ablation.study" in run.data.tags]
        (cell,) = [run.info.run_id for run in found if "<script" in run.data.tags.get("row", "")]
        wait_for(port)
        runs = f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}/runs"
        yield {
            "all rows": f"http://127.0.0.1:{port}{page(experiment.experiment_id)}",
            "the study": f"{runs}/{study}",
            "a cell": f"{runs}/{cell}",
            "the table": f"{runs}/{study}/artifacts/table.md",
        }
    finally:
        server.terminate()
        server.wait(30)


def wait_for(port: int) -> None:
    limit = time.monotonic() + UP_WITHIN_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            assert time.monotonic() < limit
            time.sleep(0.5)


ACTIVE = [
    '<img src="x" onerror="act()">',
    "<svg onload=act()></svg>",
    f"<script>{OWN}</script>",
    '<a href="javascript:act()">x</a>',
    '<img src="http://evil/x.png">',
]


@pytest.mark.parametrize("page", ACTIVE)
def test_drawn__sees_what_acts(page: str):
    assert Drawn(page).active


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
@pytest.mark.parametrize("what", ["all rows", "the study", "a cell", "the table"])
def test_page__shows_hostile_words_as_words(pages: dict[str, str], what: str, tmp_path: Path):
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path}", pages[what]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DRAW_WITHIN_S, check=True
    )
    drawn = Drawn(done.stdout)
    assert OWN in drawn.words
    assert drawn.titles
    assert all("MLflow" in title for title in drawn.titles)
    assert drawn.active == []
