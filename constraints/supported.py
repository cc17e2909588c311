"""Leaves hashes in runtime.txt of what pip installs on CPython 3.11 to 3.14 of Linux with glibc, macOS and Windows.

uv run --with pypi-simple --with packaging constraints/supported.py        (needs a network)
"""

import re
from pathlib import Path

from packaging.utils import parse_wheel_filename
from pypi_simple import DistributionPackage, PyPISimple

FILE = Path(__file__).with_name("runtime.txt")
PYTHON = re.compile(r"py3|py2\.py3|cp3|cp31[1-4]")
PLATFORM = re.compile(r"any|(manylinux|macosx|win).*(x86_64|amd64|arm64|aarch64|universal2)")


def supported(package: DistributionPackage) -> bool:
    """Whether a file is a wheel of such a machine."""
    if package.package_type != "wheel":
        return False
    tags = parse_wheel_filename(package.filename)[3]
    return any(
        PLATFORM.fullmatch(tag.platform)
        and not tag.abi.endswith("t")
        and (PYTHON.fullmatch(tag.interpreter) or tag.abi == "abi3")
        for tag in tags
    )


def hashes(index: PyPISimple, name: str, version: str) -> list[str]:
    """Of the wheels; of a release without any, of all that it has."""
    files = [package for package in index.get_project_page(name).packages if package.version == version]
    return sorted(package.digests["sha256"] for package in [*filter(supported, files)] or files)


def main() -> None:
    with PyPISimple() as index:

        def kept(row: re.Match[str]) -> str:
            found = [digest for digest in hashes(index, row["name"], row["version"]) if digest in row["hashes"]]
            lines = [row["head"], *(f" --hash=sha256:{digest}" for digest in found)]
            return " \\\n".join(lines) + "\n"

        head = r"(?P<head>(?P<name>[\w.-]+)==(?P<version>[\w.+]+)(?: ;[^\\\n]*)?)"
        text = re.sub(head + r"(?P<hashes>(?: \\\n +--hash=sha256:\w+)+)\n", kept, FILE.read_text())
    FILE.write_text(text)


if __name__ == "__main__":
    main()
