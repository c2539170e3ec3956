"""Commands about the place and about what is installed; those about studies are in `cli`.

Each takes the options of its command line and gives the exit code.
"""

import argparse
import json

from ablation.address import public
from ablation.plain import plain
from ablation.request import InputError, ledger_of, profile_of
from ablation.trainers import find_trainers, load_trainer

__all__ = ["doctor", "schema", "trainers", "ui"]


def doctor(options: argparse.Namespace) -> int:
    """Try every part of a place, and say what to mend; 1 where something is."""
    from ablation.doctor import diagnose

    code = 0
    for finding in diagnose(profile_of(options), trainer=options.trainer):
        print(plain(f"{'MEND' if finding.remedy else 'ok':4} {finding.part}: {finding.found}"))
        if finding.remedy:
            code = 1
            print(plain(f"     {finding.remedy}"), flush=True)
    return code


def ui(options: argparse.Namespace) -> int:
    """Start MLflow's server on the embedded store."""
    from ablation.mlflow_server import TRACKING_ERRORS
    from ablation.serve import serve

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
