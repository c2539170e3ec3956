"""Rules between the fields of a configuration, and the error that names all that are broken."""

from typing import ClassVar, TypeAlias

__all__ = ["ConfigError", "Rule", "at_least_one", "require"]

Rule: TypeAlias = tuple[bool, str, str]
"""Whether it holds, the dotted path that it is about, and what must hold, with what was got."""


class ConfigError(ValueError):
    """Settings that cannot be; `problems` pairs each dotted path with what must hold there."""

    retry: ClassVar[bool] = False

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{path} {sentence}" for path, sentence in problems))


def require(*rules: Rule) -> None:
    """Raise one ConfigError for all rules (holds, path, sentence) that do not hold."""
    if problems := [(path, sentence) for holds, path, sentence in rules if not holds]:
        raise ConfigError(problems)


def at_least_one(config: object, *names: str) -> list[Rule]:
    """Rules that fields of these names hold at least 1."""
    values = {name: getattr(config, name) for name in names}
    return [(v >= 1, name, f"must be at least 1, got {v}.") for name, v in values.items()]
