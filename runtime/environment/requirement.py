"""What a command cannot do without, and what to type where it is missing."""

import importlib.util
from dataclasses import dataclass

from latentrt.environment.floors import check_versions
from latentrt.environment.install import install_command
from latentrt.errors import EnvironmentLacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """An extra of this distribution, and the imports whose presence shows that it is installed."""

    extra: str
    packages: tuple[str, ...]

    def check(self, what: str) -> None:
        """Raises EnvironmentLacks, saying what to install, unless all packages are there, new enough. Imports none."""
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise EnvironmentLacks(
                f"{what} needs {', '.join(missing)}, not installed here",
                expected=f"the extra '{self.extra}'",
                hint=f"install it with: {install_command(self.extra)}",
            )
        check_versions(self.extra, what=what)
