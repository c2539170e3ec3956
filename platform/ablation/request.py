"""What a command line asks for: the place, its ledger, and the study with its plan."""

import argparse
import os
from pathlib import Path

from ablation.ledger import Ledger
from ablation.plan import Plan, plan
from ablation.profile import Profile, load_profile, parse_data
from ablation.protocol import Trainer
from ablation.study import load_study
from ablation.trainers import load_trainer

__all__ = ["ledger_of", "planned", "profile_of"]


def profile_of(options: argparse.Namespace) -> Profile:
    """The profile, under the environment's and the flags' values.

    Raises StudyError with every problem at its place.
    """
    on = options.on or (Path(p) if (p := os.environ.get("ABLATION_PROFILE")) else None)
    flags = {
        "storage": options.storage,
        "data": parse_data(options.data, source="--data"),
        "workers": getattr(options, "workers", None),
        "allow_download": options.allow_download or None,
    }
    return load_profile(on, environment=os.environ, flags=flags)


def ledger_of(profile: Profile) -> Ledger:
    """The profile's ledger, or the place for one.

    Raises StorageError where it cannot be read.
    """
    ledger = Ledger.open(profile.storage)
    ledger.check(empty=True)
    return ledger


def planned(file: Path, profile: Profile) -> tuple[Plan, Trainer]:
    """The plan of a study's file.

    Raises StudyError where it cannot run at the place, AbsentError where only data are missing.
    """
    workers = profile.layout.least
    study = load_study(file, place=profile.place, workers=workers)
    trainer = load_trainer(study.trainer)
    return plan(study, trainer, profile.place, workers=workers), trainer
