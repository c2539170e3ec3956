"""What is kept of a verification: that a cell was killed on purpose and no bit of it changed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ablation.manifest import seal, unseal
from ablation.typed import Count, typed

__all__ = ["Certificate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """`kills` at random moments changed none of `steps` steps, of `total` that the stages have."""

    kills: Count
    steps: Count
    total: Count
    repeated: Count
    """Steps that were done again, since they came after the last checkpoint."""
    workers: Count
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

        Raises ValueError for anything else.
        """
        return typed(cls, unseal(content))
