"""Wheels for a machine with another Python: what packages need there, less what is there already."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from latentrt.environment.floors import DISTRIBUTION
from latentrt.errors import EnvironmentLacks, RequestError

_LINE = re.compile(r"([A-Za-z0-9][\w.-]*)(?:==([\w.+!-]+))?")
_LEGACY = {(2, 5): "manylinux1", (2, 12): "manylinux2010", (2, 17): "manylinux2014"}
_OLDEST_GLIBC = 5


@dataclass(frozen=True, slots=True)
class Target:
    """The machine that wheels are for: Linux on x86-64.

    Args:
        python: `3.12`.
        glibc: `2.28`; wheels that were built for a later one do not run there.
    """

    python: str
    glibc: str

    @property
    def platforms(self) -> list[str]:
        """As wheels are tagged, the best first."""
        _, minor = _numbers(self.glibc)
        found = []
        for each in range(minor, _OLDEST_GLIBC - 1, -1):
            found.append(f"manylinux_2_{each}_x86_64")
            found += [f"{_LEGACY[2, each]}_x86_64"] if (2, each) in _LEGACY else []
        return [*found, "linux_x86_64"]

    @property
    def tags(self) -> frozenset[Tag]:
        """Of all wheels that run there."""
        version = _numbers(self.python)
        own = cpython_tags(version, platforms=self.platforms)
        pure = [Tag(python, "none", platform) for python in ("py3", f"py{version[0]}{version[1]}")
                for platform in ("any", *self.platforms)]  # fmt: skip
        return frozenset([*own, *pure])

    @property
    def markers(self) -> dict[str, str]:
        """The environment that requirements are conditional on."""
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": "x86_64",
        }

    def runs(self, wheel: Path) -> bool:
        """Whether a wheel can be installed there, by its name."""
        return not self.tags.isdisjoint(parse_wheel_filename(wheel.name)[3])


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Gets wheels, each once.

    Args:
        target: what they are for.
        folder: where they lie.
        there: versions of what is there already, by canonical name; None: one that is not known, which is trusted.
        pins: versions to prefer.
        never: names that are taken for granted.
    """

    target: Target
    folder: Path
    _: KW_ONLY
    there: Mapping[str, str | None]
    pins: Mapping[str, str]
    never: Collection[str] = ()

    def closure(self, texts: Sequence[str], *, own: Path, packed: Mapping[str, Path]) -> dict[str, Path]:
        """The wheels of requirements and of all that these require in turn, by canonical name.

        Args:
            texts: such as `latentrt[export]` or `diffusers>=0.40`.
            own: the wheel of this distribution.
            packed: wheels that have been packed before.

        Raises:
            EnvironmentLacks: there is no wheel of one for the target.
        """
        found: dict[str, Path] = {}
        asked: set[tuple[str, str]] = set()
        queue = [Requirement(text) for text in texts]
        while queue:
            requirement = queue.pop(0)
            name = canonicalize_name(requirement.name)
            if name in self.never or self.has(requirement):
                continue
            if name not in found and name not in packed:
                found[name] = own if name == DISTRIBUTION else self._fetch(requirement)
            wheel = found[name] if name in found else packed[name]
            for extra in ("", *sorted(requirement.extras)):
                if (name, extra) not in asked:
                    asked.add((name, extra))
                    queue += requirements(wheel, extra, self.target)
        return found

    def has(self, requirement: Requirement) -> bool:
        """Whether the machine has what is required."""
        name = canonicalize_name(requirement.name)
        version = self.there.get(name)
        return name in self.there and (version is None or requirement.specifier.contains(version, prereleases=True))

    def _fetch(self, requirement: Requirement) -> Path:
        pin = self.pins.get(canonicalize_name(requirement.name))
        if pin is not None and requirement.specifier.contains(pin, prereleases=True):
            wanted = f"{requirement.name}=={pin}"
        else:
            wanted = f"{requirement.name}{requirement.specifier}"
        place = self.folder / canonicalize_name(requirement.name)
        said = _pip("download", "--no-deps", "--dest", str(place), *options(self.target), wanted)
        if not list(place.glob("*.whl")):  # those in pure Python may be there as source alone
            said = _pip("wheel", "--no-deps", "--wheel-dir", str(place), wanted) or said
        wheels = sorted(place.glob("*.whl"))
        if not wheels or not self.target.runs(wheels[-1]):
            raise EnvironmentLacks(
                f"there is no wheel of {wanted} for Python {self.target.python} and glibc {self.target.glibc}: {said}",
                hint="name another --python or --glibc, or put the package into the list of --there",
            )
        return wheels[-1]


def requirements(wheel: Path, extra: str, target: Target) -> Iterator[Requirement]:
    """What a wheel asks for on a machine, always or for one of its extras."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        head = HeaderParser().parsestr(file.read(name).decode("utf-8"))
    for text in head.get_all("Requires-Dist", []):
        requirement = Requirement(text)
        if requirement.marker is None:
            applies = extra == ""
        else:
            applies = requirement.marker.evaluate({**target.markers, "extra": extra})
        if applies:
            yield requirement


def options(target: Target) -> list[str]:
    """Of pip, for another machine."""
    platforms = [word for platform in target.platforms for word in ("--platform", platform)]
    return ["--only-binary=:all:", "--implementation", "cp", "--python-version", target.python, *platforms]


def own_wheel(root: Path, folder: Path) -> Path:
    """The wheel of this checkout."""
    said = _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(root))
    wheels = sorted(folder.glob(f"{DISTRIBUTION}-*.whl"))
    if not wheels:
        raise EnvironmentLacks(f"the wheel of {root} cannot be built: {said}")
    return wheels[-1]


def unpack_wheels(wheels: Sequence[Path], into: Path, target: Target) -> None:
    """Installs wheels to a folder as they would be there."""
    said = _pip(
        *("install", "--no-deps", "--no-compile", "--no-index", "--target", str(into), *options(target)),
        *map(str, wheels),
    )
    if not into.is_dir():
        raise EnvironmentLacks(f"wheels cannot be unpacked: {said}")


def read_there(path: Path) -> dict[str, str | None]:
    """What a machine has, from a list in the form of `pip list --format=freeze`; a name alone is a version that is not
    known.

    Raises:
        RequestError: a line that is neither.
    """
    found: dict[str, str | None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise RequestError(f"{path}:{number}: '{text}'", expected="NAME==VERSION, or NAME")
        found[canonicalize_name(match[1])] = match[2]
    return found


def read_pins(root: Path) -> dict[str, str]:
    """The exact versions of `constraints/`."""
    found: dict[str, str] = {}
    for path in sorted((root / "constraints").glob("*.txt")):
        for name, version in re.findall(r"^([\w.-]+)==([\w.+]+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found[canonicalize_name(name)] = str(Version(version).public)
    return found


def _pip(*words: str) -> str:
    """Runs pip; the last line that it says where it fails, else nothing."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines[-1] if lines else f"pip ended with {done.returncode}")


def _numbers(version: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)\.(\d+)", version)
    if match is None:
        raise RequestError(f"'{version}'", expected="two numbers, such as 3.12")
    return int(match[1]), int(match[2])
