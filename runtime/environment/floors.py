"""The oldest versions that this distribution works with, as its metadata states them, against those that are here.

pyproject.toml is the one place that states them; a package that is not installed as a distribution is not judged.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from latentrt.errors import EnvironmentLacks

DISTRIBUTION = "latentrt"
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(\[(?P<extras>[\w,\s-]+)\])?\s*\(?(?P<bounds>[^;)]*)\)?\s*(;(?P<marker>.*))?"
)
_FLOOR = re.compile(r">=\s*(?P<version>[\w.]+)")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")
_RELEASE = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True, slots=True)
class Floor:
    """A distribution and the oldest version of it that will do, and the extras of it that are needed."""

    name: str
    version: str
    extras: str = ""

    def __str__(self) -> str:
        """As pip takes it."""
        return f"{self.name}{self.extras and f'[{self.extras}]'}>={self.version}"

    def found(self) -> str | None:
        """The version that is installed, None where there is none."""
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return None


def check_versions(*extras: str, what: str) -> None:
    """Raises EnvironmentLacks if what the runtime always needs, or what `what` needs by extras, is too old."""
    if (problem := too_old(*extras)) is not None:
        floor, found = problem
        raise EnvironmentLacks(
            f"{what} needs {floor.name} {floor.version}, and {floor.name} {found} is too old",
            expected=f"{floor.name} {floor.version} or newer",
            hint=f'install it with: pip install "{floor}"',
        )


def too_old(*extras: str) -> tuple[Floor, str] | None:
    """The first one whose installed version is below its floor, with that version."""
    for floor in (floor for extra in extras for floor in floors(extra)):
        found = floor.found()
        if found is not None and _release(found) < _release(floor.version):
            return floor, found
    return None


@cache
def floors(extra: str | None = None) -> tuple[Floor, ...]:
    """What the runtime always needs, and what an extra and those that it names add."""
    return tuple(dict.fromkeys(_floors(extra)))


def _floors(extra: str | None) -> Iterator[Floor]:
    for text in _requirements():
        match = _REQUIREMENT.fullmatch(text.strip())
        assert match is not None, text  # our own metadata
        of = _EXTRA.search(match["marker"] or "")
        if of is not None and of[1] != extra:
            continue
        if match["name"] == DISTRIBUTION:
            for named in (match["extras"] or "").split(","):
                yield from _floors(named.strip())
        elif (floor := _FLOOR.search(match["bounds"])) is not None:
            yield Floor(match["name"], floor["version"], match["extras"] or "")


def _requirements() -> list[str]:
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # a folder on the path, not an installation
        return []


def _release(version: str) -> tuple[int, ...]:
    """Its numbers without zeros at the end, so that 2.0 is 2.0.0; what follows them (rc1, +cpu) does not count."""
    match = _RELEASE.match(version)
    numbers = [int(part) for part in match[0].split(".")] if match is not None else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
