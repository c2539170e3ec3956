"""What a finished stage shows people: the files that its export holds under `figures/`."""

import logging
from pathlib import Path

from ablation.identity import NAME, NAME_RULE
from ablation.manifest import DamageError, fetch
from ablation.stage_folder import StageFolder

__all__ = ["figures"]

_log = logging.getLogger(__name__)
_ACTIVE = (".htm", ".html", ".xht", ".xhtml", ".xml", ".svg", ".js", ".mjs", ".pdf")
"""What a browser may run, from the address of MLflow's own pages."""


def figures(stage: StageFolder, into: Path) -> dict[str, Path | None]:
    """The files by their path in the export, to be read only; None where one cannot be shown.

    They lie in the storage where that is local, else below `into`; nothing else of the export is
    read. There is a warning of a file that is damaged or a page, and of a name that a URL
    would change.
    """
    ending = stage.ending()
    if ending is None:
        return {}
    folder = stage.at(f"artifacts/{ending.name}")
    found: dict[str, Path | None] = {}
    for path, stored in ending.artifacts.items():
        if path.startswith("figures/"):
            found[path] = None
            try:
                if wrong := [name for name in path.split("/") if not NAME.fullmatch(name)]:
                    raise ValueError(f"names in {path} must be {NAME_RULE}, got {wrong[0]!r}.")
                if Path(path).suffix.lower() in _ACTIVE:
                    raise ValueError(f"{path} must be no page: browsers run what one holds.")
                found[path] = fetch(stage.storage, folder, {path: stored}, into) / path
            except (DamageError, ValueError) as error:
                _log.warning("MLflow is not given a figure: %s", error)
    return found
