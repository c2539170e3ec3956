"""The command line: results to stdout, progress to stderr, and an exit code that says how it went.

0 complete, 1 some cell failed or was stopped, 2 the input was wrong, 75 a cell, the cluster or the
storage was lost, 130 interrupted. No flag changes the science: that is in the study. Ray and MLflow
are imported only by the commands that use them.
"""

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from ablation import cluster_commands as cluster
from ablation import place_commands as place
from ablation.address import public
from ablation.arguments import make_parser
from ablation.cells import Failed, Finished, Standing
from ablation.include import include
from ablation.layout import LostPlaceError, PlaceError
from ablation.ledger import Ledger
from ablation.plain import PlainFormatter, plain
from ablation.plan import Plan
from ablation.problems import StudyError, nearest
from ablation.profile import Profile
from ablation.request import InputError, glimpse, ledger_of, planned, planned_one, profile_of
from ablation.stops import standings_of, want_all
from ablation.storage import LostStorageError, StorageError
from ablation.submitted import check_names, data_of, text_of
from ablation.supervise import AGAIN, run_name, supervise
from ablation.trainers import TrainerError

if TYPE_CHECKING:
    from ablation.running import Run
    from ablation.table import Table

__all__ = ["main"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    if logging.lastResort:  # what shows warnings
        logging.lastResort.setFormatter(PlainFormatter())
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser(_COMMANDS).parse_args(arguments)
    code = 0
    try:
        supervised = getattr(options, "supervise", False)
        code = int(_supervise(arguments) if supervised else options.command(options))
        sys.stdout.flush()
    except LostPlaceError as error:
        _say(str(error))
        return os.EX_TEMPFAIL
    except LostStorageError as error:
        _say(f"{error} Run the same command again when the storage answers.")
        return os.EX_TEMPFAIL
    except (StudyError, StorageError, PlaceError, TrainerError, InputError) as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("Interrupted. What was committed is kept: the same command goes on from there.")
        return 130
    except BrokenPipeError:  # `ablation table | head`
        _hush()
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _say(
            f"The disk of temporary files at {gettempdir()} is full: {error}. What was committed "
            f"is kept. Make room, or name another folder in TMPDIR, and run the same command again."
        )
        return os.EX_TEMPFAIL
    return code


def _hush() -> None:
    """Nobody reads stdout any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    with suppress(BrokenPipeError):  # who reads no more still wants the work done
        print(plain(text), file=sys.stderr, flush=True)


def _plan(options: argparse.Namespace) -> int:
    from ablation.overview import overview, totals

    included = include(options.study)
    plans, standings, absent = glimpse(included, profile_of(options))
    shown = [overview(asked, standings) for asked in plans]
    if included.name:
        shown.append(totals(included, plans, standings))
    _print(*shown)
    if absent:
        raise absent
    return 0


def _run(options: argparse.Namespace) -> int:
    return _finish(options, profile_of(options))


def _resume(options: argparse.Namespace) -> int:
    profile = profile_of(options)
    ledger = ledger_of(profile)
    text = text_of(ledger, options.name)
    if text is None:
        known = nearest(options.name, ledger.studies())
        raise InputError(f"{public(profile.storage)} holds no study {options.name!r}.{known}")
    profile = replace(profile, data={**data_of(ledger, options.name), **profile.data})
    with TemporaryDirectory(prefix="ablation-") as folder:
        options.study = Path(folder) / f"{options.name}.yaml"
        options.study.write_text(text, encoding="utf-8")
        return _finish(options, profile)


def _supervise(arguments: Sequence[str]) -> int:
    # argparse takes `--super` for it too.
    rest = [argument for argument in arguments if not argument.startswith("--su")]
    # -P: the folder that it is begun in may be a stranger's, with modules of its own.
    return supervise([sys.executable, "-P", "-m", "ablation.supervised", *rest], _say)


def _runs(
    options: argparse.Namespace, profile: Profile, *, anew: bool = False, looks: bool = False
) -> Iterator["Run"]:
    """A run for each study, one after the other; all are checked before the first begins.

    What was stopped is wanted again if they are run `anew`; who only `looks` needs no data.
    """
    from ablation.running import Run

    ledger = ledger_of(profile)
    plans = planned(include(options.study), profile, before=ledger if looks else None)
    inline = getattr(options, "inline", False)
    check_names(ledger, [asked.study for asked, _ in plans])
    name = run_name(inline=inline)
    for asked, _ in plans if anew else ():
        want_all(ledger, asked.study.name)
    for asked, trainer in plans:
        if len(plans) > 1:
            _say(f"{asked.study.name}:")
        yield Run(
            plan=asked,
            trainer=trainer,
            ledger=ledger,
            profile=profile,
            console=Console(stderr=True),
            run=name,
            inline=inline,
        )


def _finish(options: argparse.Namespace, profile: Profile) -> int:
    return max(_finish_one(run) for run in _runs(options, profile, anew=AGAIN not in os.environ))


def _finish_one(run: "Run") -> int:
    standings, lost = run.finish()
    ledger = run.ledger.patient(run.profile.patience_s, _say)
    try:
        _print_tables([_tabulated(run.plan, standings, ledger)])
    except BrokenPipeError:
        _hush()
    for title, reason in lost.items():
        _say(f"{title}: lost ({reason}). Run the same command again.")
    complete = all(isinstance(standing, Finished) for standing in standings.values())
    return os.EX_TEMPFAIL if lost else int(not complete)


def _status(options: argparse.Namespace) -> int:
    from ablation.overview import status
    from ablation.why import work_lost

    shown, codes = [], []
    for asked, standings, ledger in _stands(options):
        shown.append(status(asked, standings, work_lost(ledger.tries(asked.stages))))
        codes.append(_failed(standings))
    _print(*shown)
    return max(codes)


def _table(options: argparse.Namespace) -> int:
    stands = _stands(options)
    _print_tables([_tabulated(*each) for each in stands], options.format)
    return max(_failed(standings) for _, standings, _ in stands)


def _stands(options: argparse.Namespace) -> list[tuple[Plan, dict[str, Standing], Ledger]]:
    """The plan of each study, and how its stages stand in the ledger."""
    profile = profile_of(options)
    ledger = ledger_of(profile)
    plans = planned(include(options.study), profile, before=ledger)
    return [(asked, standings_of(asked, ledger), ledger) for asked, _ in plans]


def _why(options: argparse.Namespace) -> int:
    from ablation.why import story

    profile = profile_of(options)
    ledger = ledger_of(profile)
    asked, _ = planned_one(options.study, profile, before=ledger)
    standings, tries = standings_of(asked, ledger), ledger.tries(asked.stages)
    for cell in asked.called(options.cell):
        print(plain("\n".join(story(cell, asked.cells, standings, tries))))
    return 0


def _verify_resume(options: argparse.Namespace) -> int:
    from ablation.verify import Verification, on_cluster

    profile = profile_of(options)
    profile = replace(profile, workers=profile.layout.least)  # as many in both runs
    asked, trainer = planned_one(options.study, profile)
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
    print(plain(finding.text))
    return 0 if finding.certificate else 1


def _sync(options: argparse.Namespace) -> int:
    return max(0 if run.sync() else 1 for run in _runs(options, profile_of(options), looks=True))


def _failed(standings: Mapping[str, Standing]) -> int:
    return int(any(isinstance(standing, Failed) for standing in standings.values()))


def _tabulated(asked: Plan, standings: Mapping[str, Standing], ledger: Ledger) -> "Table":
    from ablation.table import tabulate

    return tabulate(asked, standings, ledger.certificates(asked.heads))


def _print_tables(tables: Sequence["Table"], form: str = "text") -> None:
    from ablation.render import to_text, written

    if form == "text":
        _print(*(to_text(table, width=Console().width) for table in tables))
    else:
        print(written(tables, form), end="")


def _print(*shown: RenderableType) -> None:
    """To stdout by `print`, since rich ends the process where a pipe is closed; a line between."""
    console = Console()
    for at, each in enumerate(shown):
        with console.capture() as captured:
            console.print(each)
        print("\n" * bool(at) + captured.get(), end="")


_COMMANDS = {
    "plan": _plan,
    "run": _run,
    "resume": _resume,
    "status": _status,
    "table": _table,
    "why": _why,
    "verify-resume": _verify_resume,
    "sync": _sync,
    "doctor": place.doctor,
    "submit": cluster.submit,
    "queue": cluster.queue,
    "keep": cluster.keep,
    "logs": cluster.logs,
    "stop": cluster.stop,
    "ui": place.ui,
    "schema": place.schema,
    "trainers": place.trainers,
}
