"""Any form of a checkpoint as one diffusers folder: files are converted into it, given parts are linked into it."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.files import read_json
from latentrt.export.checkpoint.folder import INDEX, Checkpoint, find_folder
from latentrt.export.checkpoint.single_file.convert import (
    PREDICTIONS,
    file_index,
    recognise,
    vae_settings,
    write_file,
    write_vae,
)
from latentrt.export.checkpoint.single_file.weights import Weights
from latentrt.export.staging import staging_folder
from latentrt.files.atomic import storage_errors

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
_PARTS = ("unet", "transformer", "vae", *_TEXT_ENCODERS, *_TOKENIZERS, "scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How a checkpoint is to be read.

    Args:
        variant: weight files to prefer in a folder, such as `fp16`.
        allow_pickle: read pickles, tensors and plain values only.
        vae: a folder or a file to take the VAE from.
        components: a diffusers folder from which whatever is missing is taken.
        prediction: `epsilon` or `v`, if the checkpoint does not say or says it wrongly.
    """

    variant: str | None = None
    allow_pickle: bool = False
    vae: Path | None = None
    components: Path | None = None
    prediction: str | None = None


@contextmanager
def open_source(
    source: str,
    *,
    options: SourceOptions | None = None,
    beside: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Checkpoint]:
    """A checkpoint of any form, open until the block ends.

    Args:
        source: a diffusers folder, its name on a hub, or a single file of weights.
        options: how to read it.
        beside: the bundle that is made of it, `reserved`: converted weights lie where that is in the making. None is
            the system's temporary folder.
        note: takes a line that says what a file was recognised as.

    Raises:
        CheckpointError: missing, damaged, not recognised, incomplete, or a pickle that is not allowed.
        EnvironmentLacks: the disk is full or not writable.
    """
    options = SourceOptions() if options is None else options
    is_file = Path(source).is_file()
    if not is_file and (options.vae, options.components, options.prediction) == (None, None, None):
        yield Checkpoint.open(source, variant=options.variant, allow_pickle=options.allow_pickle)
        return
    place = Path(tempfile.gettempdir()) if beside is None else staging_folder(beside)
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=place, ignore_cleanup_errors=True)
    with ExitStack() as stack:
        if beside is not None:
            stack.callback(_remove_empty, place)
        work = stack.enter_context(made)
        with storage_errors(place):
            originals = (
                _from_file(source, Path(work), options, note) if is_file else _from_folder(source, Path(work), options)
            )
        yield Checkpoint.open(
            work, name=source, variant=options.variant, allow_pickle=options.allow_pickle, originals=originals
        )


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it is not empty, or in its place
        folder.rmdir()


def _from_file(source: str, work: Path, options: SourceOptions, note: Callable[[str], None]) -> dict[str, Path]:
    """Fills `work` from a single file; returns the files that were converted, by their names in the fingerprint."""
    weights = Weights.open(Path(source), allow_pickle=options.allow_pickle)
    prediction = _prediction(options)
    found = recognise(weights, prediction=prediction, components=options.components)
    note(f"{source} is {found.text}")
    if options.vae is not None:
        found = replace(found, parts=tuple(part for part in found.parts if part.row.part != "vae"))
    made = {"scheduler", *(part.row.part for part in found.parts)}
    index = file_index(found)
    for text_encoder in found.architecture.text_encoders:
        given = options.components is not None and (options.components / text_encoder.part).is_dir()
        if text_encoder.optional and text_encoder.part not in made and not given:
            index[text_encoder.part] = index[str(text_encoder.tokenizer)] = [None, None]
    replaced = _replace_vae(work, options, vae_settings(found, options.components))
    _link_rest(index, work, options.components, made=made, what=f"{source} is {found.text}; it")
    write_file(found, work, prediction=prediction, components=options.components)
    written = read_json(work / "scheduler" / "scheduler_config.json", expected="the scheduler's configuration")
    _finish(work, {**index, "scheduler": ["diffusers", written["_class_name"]]})
    return {weights.path.name: weights.path, **replaced}


def _from_folder(source: str, work: Path, options: SourceOptions) -> dict[str, Path]:
    """Fills `work` with links to a folder's parts and to those that are given in their stead; returns the files that
    were converted."""
    root = find_folder(
        source,
        variant=options.variant,
        allow_pickle=options.allow_pickle,
        left_out=() if options.vae is None else ("vae",),
    )
    index = read_json(root / INDEX, expected="a folder in diffusers' layout, with model_index.json")
    settings = read_json(root / "vae" / "config.json", expected="the configuration of vae") if options.vae else {}
    if options.vae is not None and options.vae.is_file() and settings.get("_class_name", "") != "AutoencoderKL":
        raise CheckpointError(
            f"{root / 'vae'} is a {settings.get('_class_name')}, which does not say the scale of {options.vae}",
            expected="the folder of a VAE, with its configuration",
            hint="name a folder with --vae",
        )
    replaced = _replace_vae(work, options, settings)
    if (prediction := _prediction(options)) is not None:
        scheduler = read_json(root / "scheduler" / "scheduler_config.json", expected="the scheduler's configuration")
        (work / "scheduler").mkdir()
        _write_json(work / "scheduler" / "scheduler_config.json", {**scheduler, "prediction_type": prediction})
    _link_rest(index, work, root, options.components, what=str(root))
    _finish(work, index)
    return replaced


def _replace_vae(work: Path, options: SourceOptions, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Puts the VAE that is asked for in its place; returns its file if it is one."""
    if options.vae is None:
        return {}
    if options.vae.is_dir():
        inner = options.vae / "vae"
        folder = inner if inner.is_dir() else options.vae
        read_json(folder / "config.json", expected="the folder of a VAE in diffusers' layout")
        (work / "vae").symlink_to(folder.absolute(), target_is_directory=True)
        return {}
    write_vae(Weights.open(options.vae, allow_pickle=options.allow_pickle), work / "vae", settings=settings)
    return {f"vae/{options.vae.name}": options.vae}


def _link_rest(
    index: Mapping[str, Any], work: Path, *folders: Path | None, made: Set[str] = frozenset(), what: str
) -> None:
    """Links every part of the index that is neither there nor `made` later from the first folder that has it."""
    missing = []
    for name in (name for name, entry in index.items() if name in _PARTS and entry and entry[0] is not None):
        if name in made or (work / name).exists():
            continue
        folder = next((given / name for given in folders if given is not None and (given / name).is_dir()), None)
        if folder is None:
            missing.append(name)
        else:
            (work / name).symlink_to(folder.absolute(), target_is_directory=True)
    if missing:
        tokenizers = "; no single file has a tokenizer in it" if set(missing) & set(_TOKENIZERS) else ""
        raise CheckpointError(
            f"{what} lacks {', '.join(missing)}",
            expected="each part in the checkpoint or in the folder of --components",
            hint=f"give a diffusers folder of the same model with --components{tokenizers}",
        )


def _finish(work: Path, index: Mapping[str, Any]) -> None:
    _write_json(work / INDEX, {**index, "vae": ["diffusers", _kind_of_vae(work)]})
    _check_widths(work)


def _kind_of_vae(work: Path) -> str:
    """Its class: the VAE that is there may be of another kind than the one that it replaces."""
    config = read_json(work / "vae" / "config.json", expected="the configuration of vae")
    return str(config.get("_class_name", "AutoencoderKL"))


def _check_widths(work: Path) -> None:
    """Refuses parts that do not belong together: latent channels of the VAE, features of the text encoders."""

    def config(part: str) -> dict[str, Any]:
        return read_json(work / part / "config.json", expected=f"the configuration of {part}")

    network = "unet" if (work / "unet").exists() else "transformer"
    channels, latent = config(network).get("out_channels"), config("vae").get("latent_channels")
    if None not in (channels, latent) and channels != latent:
        raise CheckpointError(
            f"the VAE has {latent} latent channels",
            expected=f"{channels}, as the {network}",
            hint="it belongs to another model",
        )
    width = config(network).get("cross_attention_dim")
    text_encoders = [config(part).get("hidden_size", 0) for part in _TEXT_ENCODERS if (work / part).exists()]
    if width is not None and sum(text_encoders) != width:
        raise CheckpointError(
            f"the text encoders give {' + '.join(map(str, text_encoders))} features",
            expected=f"{width}, as the {network} takes",
            hint="they belong to another model",
        )


def _prediction(options: SourceOptions) -> str | None:
    return None if options.prediction is None else PREDICTIONS[options.prediction]


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
