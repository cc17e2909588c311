"""What is made of a bundle's graphs for a backend, and lies below `engines`: which, whose, and how it is removed."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from latentrt.bundle import Bundle, Component
from latentrt.concurrency.locks import lock_target
from latentrt.errors import EnvironmentLacks, RequestError


def chosen_components(bundle: Bundle, names: Sequence[str] | None) -> list[Component]:
    """The components of these names, each once; None is all."""
    chosen = list(bundle.components) if names is None else list(dict.fromkeys(names))
    unknown = [name for name in chosen if name not in bundle.components]
    if unknown or not chosen:
        raise RequestError(
            f"component '{unknown[0]}'" if unknown else "no component is named",
            expected=f"some of {', '.join(bundle.components)}",
        )
    return [bundle.components[name] for name in chosen]


def is_shared(folder: Path, bundle: Bundle) -> bool:
    """Whether other bundles may keep theirs in `folder` too: it is not the bundle's own."""
    return folder.resolve() != (bundle.root / "engines").resolve()


def remove_finished(home: Path, record: str) -> None:
    """Removes what lies in `home`, which counts as finished by the file `record`."""
    try:
        with lock_target(home):
            (home / record).unlink()  # first: what is left of an interrupted removal is not finished
            shutil.rmtree(home)
    except OSError as error:
        raise EnvironmentLacks(
            f"{home} cannot be removed ({error.strerror})", hint="check the permissions of the folder"
        ) from error
