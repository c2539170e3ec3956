"""Makes the secrets that compose.yaml reads, at random: `make_secrets.py [FOLDER]`.

A secret that is there is left alone: delete its file to have a new one. The folder is closed to
other users, and its files are readable by all, for containers read them as users of their own.
"""

import secrets
import sys
from pathlib import Path

_HERE = Path(__file__).parent / "secrets"
_BYTES = 32


def contents() -> dict[str, str]:
    """New secrets by file name; two are in the form that AWS' and MLflow's clients read."""
    s3 = {
        "aws_access_key_id": secrets.token_hex(10),
        "aws_secret_access_key": secrets.token_hex(_BYTES),
    }
    mlflow = {
        "mlflow_tracking_username": "studies",
        "mlflow_tracking_password": secrets.token_hex(_BYTES),
    }
    return {
        "ray_token": secrets.token_hex(_BYTES),
        "postgres_password": secrets.token_hex(_BYTES),
        "mlflow_admin_password": secrets.token_hex(_BYTES),
        "mlflow_server_key": secrets.token_hex(_BYTES),
        "s3_credentials": _ini("default", s3),
        "mlflow_credentials": _ini("mlflow", mlflow),
    }


def _ini(section: str, values: dict[str, str]) -> str:
    return "\n".join([f"[{section}]", *(f"{name} = {text}" for name, text in values.items()), ""])


def make(folder: Path) -> list[str]:
    """Write those secrets that are not in a folder; the names of the new ones."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    new = {name: text for name, text in contents().items() if not (folder / name).exists()}
    for name, text in new.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o444)
    return [*new]


if __name__ == "__main__":
    _folder = Path(sys.argv[1]) if len(sys.argv) > 1 else _HERE
    print(f"{_folder}: made {', '.join(make(_folder)) or 'nothing, all are there'}")
