"""What a command cannot do without, and what to type where it is missing."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from latentrt.environment.floors import check_versions
from latentrt.environment.install import install_command
from latentrt.errors import EnvironmentLacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """An extra of this distribution, and the imports whose presence shows that it is installed.

    Args:
        alternatives: other extras that bring the same imports.
    """

    extra: str
    packages: tuple[str, ...]
    alternatives: tuple[str, ...] = ()

    def missing(self) -> tuple[str, ...]:
        return tuple(package for package in self.packages if not importable(package))

    @property
    def extras(self) -> tuple[str, ...]:
        return self.extra, *self.alternatives


def importable(package: str) -> bool:
    """Whether a package is here; nothing is imported. A folder that an uninstallation left behind is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def check_requirements(what: str, requirements: Sequence[Requirement]) -> None:
    """Raises EnvironmentLacks, saying all that is to be installed, unless every package is there and new enough."""
    lacking = [each for each in dict.fromkeys(requirements) if each.missing()]
    if lacking:
        packages = dict.fromkeys(package for each in lacking for package in each.missing())
        raise EnvironmentLacks(
            f"{what} needs {', '.join(packages)}, not installed here",
            expected=f"the extra{'s' if len(lacking) > 1 else ''} {' and '.join(map(_choice, lacking))}",
            hint=f"install with: {install_command(*(each.extra for each in lacking))}",
        )
    check_versions(*(extra for each in requirements for extra in each.extras), what=what)


def _choice(requirement: Requirement) -> str:
    return " or ".join(f"'{extra}'" for extra in requirement.extras)
