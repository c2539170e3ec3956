"""What is kept of a verification: that a cell was killed on purpose and no bit of it changed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ablation.manifest import seal, unseal

__all__ = ["Certificate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """`kills` at random moments changed none of `steps` steps, of `total` that the stages have."""

    kills: int
    steps: int
    total: int
    repeated: int
    """Steps that were done again, since they came after the last checkpoint."""
    workers: int
    provenance: Mapping[str, Any]
    """Who verified it, when and with what."""

    def __str__(self) -> str:
        return (
            f"all {self.steps} steps compared, of {self.total}, are the same to the last bit "
            f"(kills: {self.kills}, steps repeated: {self.repeated}, workers: {self.workers})."
        )

    def to_bytes(self) -> bytes:
        """The certificate as a sealed object."""
        return seal(asdict(self))

    @classmethod
    def parse(cls, content: bytes) -> "Certificate":
        """The inverse of `to_bytes`.

        Raises ValueError or TypeError for anything else.
        """
        return cls(**unseal(content))
