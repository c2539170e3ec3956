"""The command line: results to stdout, progress to stderr, and an exit code that says how it went.

0 complete, 1 some cell failed or was lost, 2 the input was wrong, 75 the cluster or the storage was
lost, 130 interrupted. No flag changes the science: that is in the study. Ray and MLflow are
imported only by the commands that use them.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from ablation.address import public
from ablation.arguments import make_parser
from ablation.cells import Failed, Finished, Standing
from ablation.layout import LostPlaceError, PlaceError
from ablation.ledger import Ledger
from ablation.plan import Plan, sketch
from ablation.problems import StudyError, nearest
from ablation.profile import Profile
from ablation.request import ledger_of, planned, profile_of
from ablation.storage import LostStorageError, StorageError
from ablation.study import AbsentError
from ablation.submitted import data_of, text_of
from ablation.supervise import run_name, supervise
from ablation.trainers import TrainerError, find_trainers, load_trainer

if TYPE_CHECKING:
    from ablation.running import Run

__all__ = ["main"]


class _InputError(Exception):
    """The input was wrong, in words for people."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser(_COMMANDS).parse_args(arguments)
    try:
        supervised = getattr(options, "supervise", False)
        code = int(_supervise(arguments) if supervised else options.command(options))
        sys.stdout.flush()
        return code
    except LostPlaceError as error:
        _say(str(error))
        return os.EX_TEMPFAIL
    except LostStorageError as error:
        _say(f"{error} Run the same command again when the storage answers.")
        return os.EX_TEMPFAIL
    except (StudyError, StorageError, PlaceError, TrainerError, _InputError) as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("Interrupted. What was committed is kept: the same command goes on from there.")
        return 130
    except BrokenPipeError:  # `ablation table | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _plan(options: argparse.Namespace) -> int:
    from ablation.overview import overview

    profile = profile_of(options)
    try:
        asked, _ = planned(options.study, profile)
    except AbsentError as error:
        _print(overview(sketch(error.study, load_trainer(error.study.trainer)), None))
        raise
    _print(overview(asked, ledger_of(profile).standings(asked.stages)))
    return 0


def _run(options: argparse.Namespace) -> int:
    return _finish(options, profile_of(options))


def _resume(options: argparse.Namespace) -> int:
    profile = profile_of(options)
    ledger = ledger_of(profile)
    text = text_of(ledger, options.name)
    if text is None:
        known = nearest(options.name, ledger.studies())
        raise _InputError(f"{public(profile.storage)} holds no study {options.name!r}.{known}")
    profile = replace(profile, data={**data_of(ledger, options.name), **profile.data})
    with TemporaryDirectory(prefix="ablation-") as folder:
        options.study = Path(folder) / f"{options.name}.yaml"
        options.study.write_text(text, encoding="utf-8")
        return _finish(options, profile)


def _supervise(arguments: Sequence[str]) -> int:
    # argparse takes `--super` for it too.
    rest = [argument for argument in arguments if not argument.startswith("--su")]
    return supervise([sys.executable, "-m", "ablation.supervised", *rest], _say)


def _begin(options: argparse.Namespace, profile: Profile) -> "Run":
    from ablation.running import Run

    asked, trainer = planned(options.study, profile)
    inline = getattr(options, "inline", False)
    return Run(
        plan=asked,
        trainer=trainer,
        ledger=ledger_of(profile),
        profile=profile,
        console=Console(stderr=True),
        run=run_name(inline=inline),
        inline=inline,
    )


def _finish(options: argparse.Namespace, profile: Profile) -> int:
    run = _begin(options, profile)
    standings, lost = run.finish()
    _print_table(run.plan, standings, run.ledger.patient(profile.patience_s, _say))
    for title, reason in lost.items():
        _say(f"{title}: lost ({reason}). Run the same command again.")
    return int(not all(isinstance(standing, Finished) for standing in standings.values()))


def _status(options: argparse.Namespace) -> int:
    from ablation.overview import status
    from ablation.why import work_lost

    profile = profile_of(options)
    asked, _ = planned(options.study, profile)
    ledger = ledger_of(profile)
    standings = ledger.standings(asked.stages)
    _print(status(asked, standings, work_lost(ledger.tries(asked.stages))))
    return _failed(standings)


def _table(options: argparse.Namespace) -> int:
    profile = profile_of(options)
    asked, _ = planned(options.study, profile)
    ledger = ledger_of(profile)
    standings = ledger.standings(asked.stages)
    _print_table(asked, standings, ledger, options.format)
    return _failed(standings)


def _why(options: argparse.Namespace) -> int:
    from ablation.why import story

    profile = profile_of(options)
    asked, _ = planned(options.study, profile)
    found = asked.called(options.cell)
    ledger = ledger_of(profile)
    standings = ledger.standings(asked.stages)
    tries = ledger.tries(asked.stages)
    for cell in found:
        print("\n".join(story(cell, asked.cells, standings, tries)))
    return 0


def _verify_resume(options: argparse.Namespace) -> int:
    from ablation.verify import Verification, on_cluster

    profile = profile_of(options)
    profile = replace(profile, workers=profile.layout.least)  # as many in both runs
    asked, trainer = planned(options.study, profile)
    try:
        finding = Verification(
            cell=asked.called(options.cell or asked.cells[0].title)[0],
            trainer=trainer,
            ledger=ledger_of(profile),
            profile=profile,
            kills=options.kills,
            seed=options.seed,
            steps=options.steps,
        ).run(on_cluster(asked, profile, Console(stderr=True)))
    except KeyboardInterrupt:
        _say("Interrupted. Nothing was verified.")
        return 130
    print(finding.text)
    return 0 if finding.certificate else 1


def _sync(options: argparse.Namespace) -> int:
    return 0 if _begin(options, profile_of(options)).sync() else 1


def _failed(standings: Mapping[str, Standing]) -> int:
    return int(any(isinstance(standing, Failed) for standing in standings.values()))


def _print_table(
    asked: Plan, standings: Mapping[str, Standing], ledger: Ledger, form: str = "text"
) -> None:
    from ablation.render import to_markdown, to_text
    from ablation.spreadsheet import to_csv
    from ablation.table import tabulate

    table = tabulate(asked, standings, ledger.certificates(asked.heads))
    if form == "text":
        _print(to_text(table, width=Console().width))
    else:
        print(to_csv(table) if form == "csv" else to_markdown(table), end="")


def _print(shown: RenderableType) -> None:
    """To stdout by `print`, since rich ends the process where a pipe is closed."""
    console = Console()
    with console.capture() as captured:
        console.print(shown)
    print(captured.get(), end="")


def _ui(options: argparse.Namespace) -> int:
    from ablation.serve import serve
    from ablation.tracking import TRACKING_ERRORS

    profile = profile_of(options)
    ledger = ledger_of(profile)
    uri, embedded = profile.mlflow(ledger.storage.local)
    if embedded is None:
        raise _InputError(f"ui is for the embedded store; this profile's server is {public(uri)}.")
    if not (studies := ledger.studies()):
        raise _InputError(f"{public(profile.storage)} holds no study to show. Run one first.")
    try:
        serve(uri, studies, port=options.port)
    except TRACKING_ERRORS as error:
        raise _InputError(f"{uri} must be a store of this MLflow: {error}") from error


def _schema(options: argparse.Namespace) -> int:
    from ablation.schema import json_schema

    print(json.dumps(json_schema(load_trainer(options.trainer)), indent=2))
    return 0


def _trainers(options: argparse.Namespace) -> int:
    for name in sorted(find_trainers()):
        trainer = load_trainer(name)
        print(f"{name} (result version {trainer.result_version})")
        for label, names in (
            ("stages", trainer.stages()),
            ("presets", trainer.presets()),
            ("metrics", trainer.metrics()),
        ):
            print(f"  {label}: {', '.join(names)}")
    return 0


_COMMANDS = {
    "plan": _plan,
    "run": _run,
    "resume": _resume,
    "status": _status,
    "table": _table,
    "why": _why,
    "verify-resume": _verify_resume,
    "sync": _sync,
    "ui": _ui,
    "schema": _schema,
    "trainers": _trainers,
}
