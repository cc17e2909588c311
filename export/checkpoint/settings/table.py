"""A class's settings: which of its keys an export carries, with which values, and which change no number."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.settings.values import Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One class.

    Every argument of its `__init__` is in `carried` or in `idle`, and a test compares them with the installed version:
    what nobody has looked at is in neither, and refused where a file sets it.

    Args:
        kind: the class whose `__init__` names the settings and their defaults; of transformers, that of the
            configuration.
        carried: what the graphs follow, with the values for which they do.
        idle: what changes no number: of training, of memory, of what is left out.
        retired: what files have and `kind` does not know, and changes no number either.
    """

    kind: type
    carried: Mapping[str, Values]
    idle: frozenset[str]
    retired: frozenset[str] = field(default_factory=frozenset)

    def defaults(self) -> dict[str, Any]:
        """What the class assumes where a file is silent."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.kind).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }

    def check(self, config: Mapping[str, Any], *, where: object) -> None:
        """Refuses what is not carried.

        Args:
            config: as a file has it; keys that begin with `_` are notes.
            where: the file or folder, for the message.

        Raises:
            CheckpointError: a setting that is not known, or a value that is not carried; says which, and which are.
        """
        for key, value in config.items():
            if key in self.idle or key in self.retired or key.startswith("_"):
                continue
            if key not in self.carried:
                raise CheckpointError(
                    f"{where} sets {key} to {value!r}, and {self.kind.__name__} has no setting of that name here",
                    expected=f"settings of {self.kind.__name__}",
                    hint="made with a newer version or for another class; remove the key if it changes no number",
                )
            if not self.carried[key].holds(value):
                raise CheckpointError(
                    f"{where} sets {key} to {value!r}",
                    expected=self.carried[key].words,
                    hint=f"a {self.kind.__name__} with this setting cannot be exported",
                )

    def complete(self, config: Mapping[str, Any], *, where: object) -> dict[str, Any]:
        """A checked configuration with the class's own defaults where it is silent."""
        self.check(config, where=where)
        return {**self.defaults(), **config}
