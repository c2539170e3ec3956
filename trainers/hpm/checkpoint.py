"""The state that a run needs to go on: one file of tensors and plain numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_state", "save_state"]

_FILE = "state.pt"


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state into an existing folder."""
    torch.save(dict(state), folder / _FILE)


def load_state(folder: Path, device: torch.device) -> dict[str, Any]:
    """What `save_state` wrote, its tensors on `device`; nothing in the file is executed."""
    state: dict[str, Any] = torch.load(folder / _FILE, map_location=device, weights_only=True)
    return state
