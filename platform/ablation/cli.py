"""The command line: results to stdout, progress to stderr, and an exit code that says how it went.

0 complete, 1 some cell failed or was lost, 2 the input was wrong, 130 interrupted. No flag changes
the science: that is in the study. Ray and MLflow are imported only by the commands that use them.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console, RenderableType

from ablation.cells import Failed, Finished, Standing
from ablation.layout import PlaceError
from ablation.ledger import Ledger
from ablation.plan import Plan, plan
from ablation.problems import StudyError
from ablation.profile import Profile, load_profile, parse_data
from ablation.protocol import Trainer
from ablation.storage import StorageError
from ablation.study import Study, load_study
from ablation.trainers import TrainerError, find_trainers, load_trainer

__all__ = ["main"]


class _InputError(Exception):
    """The input was wrong, in words for people."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    options = _parser().parse_args(arguments)
    try:
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except (StudyError, StorageError, PlaceError, TrainerError, _InputError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "Interrupted. What was committed is kept: the same command goes on from there.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # `ablation table | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ablation", description="From a study in YAML to a comparison table."
    )
    parser.add_argument("--version", action="version", version=version("hpm-ablation"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, about in (
        ("plan", _plan, "show the cells of a study and what is done; runs nothing"),
        ("run", _run, "run what is missing of a study, then show its table"),
        ("status", _status, "show how every stage of a study stands"),
        ("table", _table, "show a study's comparison table"),
    ):
        sub = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        sub.add_argument("study", type=Path, metavar="STUDY", help="the study's YAML file")
        _add_place(sub)
        sub.set_defaults(command=command)
        if name == "run":
            sub.add_argument("--inline", action="store_true", help="in this process, without Ray")
            sub.add_argument("--workers", type=int, metavar="N", help="workers of a cell")
        if name == "table":
            sub.add_argument("--format", choices=("text", "md", "csv"), default="text")
    ui = commands.add_parser("ui", help="start the MLflow server on the embedded store")
    _add_place(ui)
    ui.add_argument("--port", type=int, default=5000, help="on 127.0.0.1 (default: 5000)")
    ui.set_defaults(command=_ui)
    schema = commands.add_parser("schema", help="print the JSON Schema of study files")
    schema.add_argument("--trainer", default="hpm", help="whose settings (default: hpm)")
    schema.set_defaults(command=_schema)
    trainers = commands.add_parser("trainers", help="list the installed trainers")
    trainers.set_defaults(command=_trainers)
    return parser


def _add_place(parser: argparse.ArgumentParser) -> None:
    place = parser.add_argument_group("place (never part of the science)")
    place.add_argument("--on", type=Path, metavar="PROFILE", help="a profile's YAML file")
    place.add_argument("--storage", metavar="URI", help="folder or URI of the ledger")
    place.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="where a data set lies; may be repeated",
    )


def _profile(options: argparse.Namespace) -> Profile:
    data = parse_data(options.data, source="--data")
    on = options.on or (Path(p) if (p := os.environ.get("ABLATION_PROFILE")) else None)
    flags = {"storage": options.storage, "data": data, "workers": getattr(options, "workers", None)}
    return load_profile(on, environment=os.environ, flags=flags)


def _planned(options: argparse.Namespace, profile: Profile) -> tuple[Plan, Trainer]:
    study: Study = load_study(options.study, data=profile.place.data, workers=profile.workers)
    trainer = load_trainer(study.trainer)
    return plan(study, trainer, profile.place.data, workers=profile.workers), trainer


def _plan(options: argparse.Namespace) -> int:
    from ablation.overview import overview

    profile = _profile(options)
    planned, _ = _planned(options, profile)
    standings = Ledger.open(profile.storage).standings(planned.stages)
    _print(overview(planned, standings))
    return 0


def _run(options: argparse.Namespace) -> int:
    from ablation.running import Run

    profile = _profile(options)
    planned, trainer = _planned(options, profile)
    ledger = Ledger.open(profile.storage)
    ledger.check_writable()
    standings, lost = Run(
        plan=planned,
        trainer=trainer,
        ledger=ledger,
        profile=profile,
        console=Console(stderr=True),
        inline=options.inline,
    ).finish()
    _print_table(planned, standings)
    for title, reason in lost.items():
        print(f"{title}: lost ({reason}). Run the same command again.", file=sys.stderr)
    complete = all(isinstance(standing, Finished) for standing in standings.values())
    return 0 if complete else 1


def _status(options: argparse.Namespace) -> int:
    from ablation.overview import status

    profile = _profile(options)
    planned, _ = _planned(options, profile)
    standings = Ledger.open(profile.storage).standings(planned.stages)
    _print(status(planned, standings))
    return _failed(standings)


def _table(options: argparse.Namespace) -> int:
    profile = _profile(options)
    planned, _ = _planned(options, profile)
    standings = Ledger.open(profile.storage).standings(planned.stages)
    _print_table(planned, standings, options.format)
    return _failed(standings)


def _failed(standings: Mapping[str, Standing]) -> int:
    return int(any(isinstance(standing, Failed) for standing in standings.values()))


def _print_table(planned: Plan, standings: Mapping[str, Standing], form: str = "text") -> None:
    from ablation.render import to_csv, to_markdown, to_text
    from ablation.table import tabulate

    table = tabulate(planned, standings)
    if form == "text":
        _print(to_text(table, width=Console().width))
    else:
        print({"md": to_markdown, "csv": to_csv}[form](table), end="")


def _print(shown: RenderableType) -> None:
    """To stdout by `print`, since rich ends the process where a pipe is closed."""
    console = Console()
    with console.capture() as captured:
        console.print(shown)
    print(captured.get(), end="")


def _ui(options: argparse.Namespace) -> int:
    from ablation.serve import serve
    from ablation.tracking import TRACKING_ERRORS

    profile = _profile(options)
    uri, embedded = profile.mlflow
    if embedded is None:
        raise _InputError(f"ui is for the embedded store; this profile's server is {uri}.")
    try:
        serve(uri, Ledger.open(profile.storage).studies(), port=options.port)
    except TRACKING_ERRORS as error:
        raise _InputError(f"{uri} must be a store of this MLflow: {error}") from error


def _schema(options: argparse.Namespace) -> int:
    from ablation.schema import json_schema

    schema: Mapping[str, Any] = json_schema(load_trainer(options.trainer))
    print(json.dumps(schema, indent=2))
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
