"""Commands about the place and about what is installed; those about studies are in `cli`.

Each takes the options of its command line and gives the exit code.
"""

import argparse
import json

from ablation.address import public
from ablation.request import InputError, ledger_of, profile_of
from ablation.trainers import find_trainers, load_trainer

__all__ = ["schema", "trainers", "ui"]


def ui(options: argparse.Namespace) -> int:
    """Start MLflow's server on the embedded store."""
    from ablation.serve import serve
    from ablation.tracking import TRACKING_ERRORS

    profile = profile_of(options)
    ledger = ledger_of(profile)
    uri, embedded = profile.mlflow(ledger.storage.local)
    if embedded is None:
        raise InputError(f"ui is for the embedded store; this profile's server is {public(uri)}.")
    if not (studies := ledger.studies()):
        raise InputError(f"{public(profile.storage)} holds no study to show. Run one first.")
    try:
        serve(uri, studies, port=options.port)
    except TRACKING_ERRORS as error:
        raise InputError(f"{uri} must be a store of this MLflow: {error}") from error


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema of study files."""
    from ablation.schema import json_schema

    print(json.dumps(json_schema(load_trainer(options.trainer)), indent=2))
    return 0


def trainers(options: argparse.Namespace) -> int:
    """List the installed trainers."""
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
