"""What can be typed: the commands and their flags, none of which changes the science."""

import argparse
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from ablation.profile import workers_of

__all__ = ["make_parser"]


def make_parser(
    functions: Mapping[str, Callable[[argparse.Namespace], int]],
) -> argparse.ArgumentParser:
    """The parser; the options it gives hold their command's function as `command`."""
    parser = argparse.ArgumentParser(
        prog="ablation", description="From a study in YAML to a comparison table."
    )
    parser.add_argument("--version", action="version", version=version("hpm-ablation"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, about: str, *, place: bool = True) -> argparse.ArgumentParser:
        description = f"{about[0].upper()}{about[1:]}."
        command = commands.add_parser(name, help=about, description=description)
        if place:
            _add_place(command)
        command.set_defaults(command=functions[name])
        return command

    _add_studies(add)
    _add_cluster(add)
    ui = add("ui", "start the MLflow server on the embedded store")
    ui.add_argument("--port", type=int, default=5000, help="on 127.0.0.1 (default: 5000)")
    schema = add("schema", "print the JSON Schema of study files", place=False)
    schema.add_argument("--trainer", default="hpm", help="whose settings (default: hpm)")
    add("trainers", "list the installed trainers", place=False)
    return parser


def _add_studies(add: Callable[..., argparse.ArgumentParser]) -> None:
    for name, about in (
        ("plan", "show the cells of a study and what is done; runs nothing"),
        ("run", "run what is missing of a study, then show its table"),
        ("status", "show how every stage of a study stands"),
        ("table", "show a study's comparison table"),
        ("why", "tell what happened to the cells of a row"),
        ("verify-resume", "train a cell with kills and without, and compare every bit"),
        ("sync", "repeat in MLflow what the ledger holds of a study"),
    ):
        sub = add(name, about)
        sub.add_argument("study", type=Path, metavar="STUDY", help="the study's YAML file")
        if name == "run":
            _add_running(sub)
        if name == "table":
            sub.add_argument("--format", choices=("text", "md", "csv", "latex"), default="text")
        if name == "verify-resume":
            _add_verifying(sub)
        if name == "why":
            sub.add_argument("cell", metavar="CELL", help="a row, or `row, seed N`")
    resume = add("resume", "run what is missing of a study of the ledger")
    resume.add_argument("name", metavar="NAME", help="the study's name; its file is in the ledger")
    _add_running(resume)


def _add_cluster(add: Callable[..., argparse.ArgumentParser]) -> None:
    doctor = add("doctor", "try every part of a place, and say what to mend")
    doctor.add_argument("--trainer", default="hpm", help="whose GPUs are counted (default: hpm)")
    submit = add("submit", "send studies to a cluster, where they run by themselves")
    submit.add_argument("study", nargs="+", type=Path, metavar="STUDY", help="a study's YAML file")
    _add_priority(submit)
    submit.add_argument("--follow", action="store_true", help="show what comes of them")
    add("queue", "show what was submitted, and see that it goes on")
    add("keep", "see for ever that what was submitted goes on")
    for name, about in (
        ("logs", "print what the driver of a submission has said"),
        ("stop", "have a submission, or a cell of a study, save and end"),
    ):
        sub = add(name, about)
        sub.add_argument("name", metavar="NAME", help="a study's, or what `submit` printed")
        sub.add_argument("cell", nargs="?", metavar="CELL", help="a row, or `row, seed N`")


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inline", action="store_true", help="in this process, without Ray")
    parser.add_argument("--workers", type=workers_of, metavar="N", help="of a cell: 2, or 1..4")
    _add_priority(parser)
    parser.add_argument(
        "--supervise", action="store_true", help="begin again where the driver, or a cell, is lost"
    )


def _add_priority(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--priority", type=int, metavar="N", help="over others on the cluster")


def _add_verifying(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cell", help="a row, or `row, seed N` (default: the first)")
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of when and who (default: 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="of the training; nothing after it")


def _add_place(parser: argparse.ArgumentParser) -> None:
    place = parser.add_argument_group("place (never part of the science)")
    place.add_argument("--on", type=Path, metavar="PROFILE", help="a profile's YAML file")
    place.add_argument("--storage", metavar="URI", help="folder or URI of the ledger")
    place.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="where a data set or weights lie; may be repeated",
    )
    place.add_argument(
        "--allow-download", action="store_true", help="fetch weights that are not at hand"
    )
