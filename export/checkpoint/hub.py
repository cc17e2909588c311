"""A checkpoint of a model hub: the files that an export reads, and no other, in the hub's own cache.

A download that is interrupted goes on where it stopped; what is in the cache is not downloaded again.
"""

import errno
import glob
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from latentrt.errors import CheckpointError, EnvironmentLacks
from latentrt.export.messages import first_line

log = logging.getLogger(__name__)

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d{5}-of-\d{5})?"
    r"(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?(?P<suffix>\.safetensors|\.bin)"
)
_SETTINGS = (".json", ".txt", ".model")


def choose_weights(names: Collection[str], *, variant: str | None, allow_pickle: bool) -> list[str]:
    """The files of a part's weights, among all of its folder: safetensors before pickles, in each the wanted variant,
    else float32, else fp16. Empty where there are none.

    Args:
        allow_pickle: take `.bin` files where there are no others.
    """
    found = {name: match for name in sorted(names) if (match := _WEIGHTS.fullmatch(name)) is not None}
    for suffix in (".safetensors", ".bin") if allow_pickle else (".safetensors",):
        for wanted in dict.fromkeys((variant, None, "fp16")):
            if chosen := [n for n, match in found.items() if (match["suffix"], match["variant"]) == (suffix, wanted)]:
                return chosen
    return []


def download(
    name: str,
    *,
    index: str,
    parts: Sequence[str],
    variant: str | None,
    allow_pickle: bool,
    left_out: Sequence[str] = (),
) -> Path:
    """Downloads a checkpoint, or finds it in the cache.

    Args:
        index: the file that names its parts and their classes.
        parts: those that an export reads, where the index has them; ones with weights before the others.
        variant, allow_pickle: as `choose_weights` takes them.
        left_out: parts whose weights are taken from elsewhere.

    Returns:
        Its folder.

    Raises:
        CheckpointError: the hub has no such model or does not give it, it is no diffusers folder, or is not in the
            cache and the hub is out of reach.
        EnvironmentLacks: the disk is full or not writable.
    """
    try:
        table = Path(hf_hub_download(name, index))
        try:
            info = HfApi().model_info(name)
        except HfHubHTTPError:
            raise
        except Exception as error:  # of the library below, which changes with the hub's version: no answer came
            log.info("the model hub does not answer (%s): %s as it is in the cache", type(error).__name__, name)
            return table.parent
        present = [sibling.rfilename for sibling in info.siblings or []]
        named = {part: part not in left_out for part in parts if _names(table, part)}
        wanted = [index, *_needed(present, named, variant=variant, allow_pickle=allow_pickle)]
        log.info("downloading %d of the %d files of %s", len(wanted), len(present), name)
        return Path(snapshot_download(name, revision=info.sha, allow_patterns=[glob.escape(file) for file in wanted]))
    except Exception as error:
        raise _explained(name, index, error) from error


def _names(table: Path, part: str) -> bool:
    """Whether an index names a class for a part. A malformed index is refused by who reads it next."""
    try:
        entry: Any = json.loads(table.read_text(encoding="utf-8")).get(part)
    except (ValueError, AttributeError):
        return False
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)


def _needed(
    present: Sequence[str], parts: Mapping[str, bool], *, variant: str | None, allow_pickle: bool
) -> Iterator[str]:
    """Settings of the parts, and the weights of those that are true, as paths in the repository."""
    for part, weighs in parts.items():
        names = [PurePosixPath(path).name for path in present if str(PurePosixPath(path).parent) == part]
        weights = choose_weights(names, variant=variant, allow_pickle=allow_pickle) if weighs else []
        for file in names:
            shards = ".index." in file and not any("-of-" in weight for weight in weights)
            if (file.endswith(_SETTINGS) and not shards) or file in weights:
                yield f"{part}/{file}"


def _explained(name: str, index: str, error: Exception) -> CheckpointError | EnvironmentLacks:
    """What went wrong, in words of this program."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return EnvironmentLacks(
            f"{name} cannot be stored in the cache of the model hub ({error.strerror})",
            hint="make room, or set HF_HOME to a folder with room; what was downloaded is kept",
        )
    nowhere = f"no folder {name}, and "
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{nowhere}the model hub gives {name} only to those who accepted its conditions",
            expected="a model that this account may read",
            hint="accept them on the model's page, and log in with: hf auth login",
        )
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"{nowhere}the model hub has no {name}, or does not show it to this account",
            expected="a folder, a file, or the name of a model on the hub",
            hint="check the name; for a private model, log in with: hf auth login",
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError):
        return CheckpointError(
            f"{nowhere}{name} is not in the cache of the model hub, which cannot be reached",
            expected="a folder, a name in the cache, or a network",
            hint="unset HF_HUB_OFFLINE and check the network; what was downloaded of it is kept",
        )
    if isinstance(error, EntryNotFoundError):
        return CheckpointError(
            f"{name} on the model hub has no {index}",
            expected="a model in diffusers' layout",
            hint="download a single file and give its path",
        )
    return CheckpointError(
        f"{nowhere}the model hub does not give {name} ({first_line(error)})",
        expected="a folder, a file, or the name of a model on the hub",
        hint="try again: a download goes on where it stopped",
    )
