"""Names of files that a bundle gives: where they may lead, on any system."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentrt.errors import BundleError

FOLLOW_LINKS = "LATENTRT_FOLLOW_LINKS"
LINKS_HINT = "if you trust it, allow links: follow_links=True, or --follow-links"
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_RESERVED = re.compile(r"bundle\.json|engines", re.IGNORECASE)
_OF_STAGING = (".done.json", ".tmp")
_LONGEST = 200
"""Bytes of one part of a path; file systems take 255, and `.part` or `.tmp` is added in the making."""


def name_problem(name: str) -> str | None:
    """What is expected instead of `name` as the name of a file or folder; None where it is right."""
    if not name or len(name.encode()) > _LONGEST:
        return f"a name of 1 to {_LONGEST} bytes"
    if _FORBIDDEN.search(name) or "/" in name:
        return 'a name without / \\ : * ? " < > | and control characters'
    if name.startswith(".") or name.endswith((".", " ")):
        return "a name that neither begins with a dot nor ends in a dot or a space"
    if _DEVICE.fullmatch(name):
        return "a name that is no device on any system"
    return None


def path_problem(path: str) -> str | None:
    """What is expected instead of `path` as the path of a file within a bundle; None where it is right."""
    parts = path.split("/")
    if any(part == "" for part in parts) or ".." in parts or "." in parts or "\\" in path:
        return "a path within the bundle, with forward slashes, such as tokenizer/tokenizer.json"
    if problem := next(filter(None, map(name_problem, parts)), None):
        return f"a path within the bundle whose every part is {problem}"
    if _RESERVED.fullmatch(parts[0]) or path.endswith(_OF_STAGING):
        return "another name: bundle.json, engines/ and names of unfinished files are the runtime's own"
    return None


def check_inside(root: Path, name: str, *, follow_links: bool) -> None:
    """Checks that no symbolic link leads from the bundle in `root` to a file elsewhere. Opens nothing.

    What huggingface_hub downloads is links to a folder that only it writes, `blobs`: these count as inside.

    Args:
        root: which may be a link itself.
        name: that `path_problem` has no objection to.
        follow_links: the user trusts links.

    Raises:
        BundleError: it leads out.
    """
    if follow_links:
        return
    home, place = root.resolve(), (root / name).resolve()
    blobs = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
    if not any(place.is_relative_to(folder) for folder in (home, *blobs)):
        raise BundleError(
            f"{root / name} is a link to {place}, outside the bundle", expected="the file itself", hint=LINKS_HINT
        )


def links_allowed() -> bool:
    """Whether the environment says that links may lead out of bundles, as `--follow-links` makes it."""
    return os.environ.get(FOLLOW_LINKS) == "1"


@contextmanager
def links_followed(allowed: bool) -> Iterator[None]:
    """Lets links lead out of bundles in this process and those that it starts; without `allowed`, changes nothing."""
    before = os.environ.get(FOLLOW_LINKS)
    if allowed:
        os.environ[FOLLOW_LINKS] = "1"
    try:
        yield
    finally:
        if allowed and before is None:
            del os.environ[FOLLOW_LINKS]
