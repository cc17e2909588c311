"""Reading a bundle's manifest: form, names and what they refer to are checked here, once, before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from latentrt.errors import BundleError, IntegrityError, LatentRTError, VersionError
from latentrt.family import TEXT_ENCODERS, Family, TextEncoderSpec
from latentrt.files.names import check_inside
from latentrt.manifest.json_rules import below, broken, check, read_json, schema, shown
from latentrt.samplers import step_table
from latentrt.samplers.noise_schedule import SAMPLER_OF_SCHEDULER, NoiseSchedule

MANIFEST = "bundle.json"
FORMAT = "latentrt-bundle"
FORMAT_VERSION = 3
OLDEST = 1
ENGINES = "engines"
"""Folder of compiled forms; written to, and so held to the rule of links too."""

Row: TypeAlias = Mapping[str, Any]


def read_manifest(root: Path, *, follow_links: bool) -> dict[str, Any]:
    """bundle.json as it stands, every field that a reader acts on checked, every file there in its promised size.

    Raises:
        BundleError: no bundle, incomplete or malformed, or a name that leads out of it.
        VersionError: written in a newer format.
        IntegrityError: a file of another size than promised.
    """
    path = root / MANIFEST
    _check_there(root, path)
    check_inside(root, MANIFEST, follow_links=follow_links)
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path} is not the manifest of a bundle", expected=f'"format": "{FORMAT}"')
    _check_version(root, manifest)
    row = _in_this_format(manifest)
    check(row, schema(), file=path)
    _check_components(row, path)
    _check_files(root, row["files"], follow_links=follow_links)
    return manifest


def read_family(row: Row, path: Path) -> Family:
    """The family of a manifest that has been checked, what an older format does not say filled in."""
    family = Family.from_dict(row)
    low, high = family.size_range_px
    if low > high:
        raise broken(path, "family.size_range_px", shown(row["size_range_px"]), "the smaller number first")
    if not any(text_encoder.in_context for text_encoder in family.text_encoders):
        raise broken(path, "family.towers", "are all without in_context", "one at least that goes into the context")
    for index, text_encoder in enumerate(family.text_encoders):
        _check_text_encoder(text_encoder, below("family.towers", index), path)
    _check_noise(family.noise, path)
    _check_defaults(family, path)
    return family


def section(manifest: Row, name: str, root: Path) -> Any:
    """A part of the manifest that nothing at run time acts on, whole; None where there is none."""
    if (value := manifest.get(name)) is not None:
        rule = {key: of for key, of in schema()["properties"][name].items() if key != "$comment"}
        check(value, rule, file=root / MANIFEST, where=name, finite=False)
    return value


def _check_there(root: Path, path: Path) -> None:
    if not root.is_dir():
        raise BundleError(
            f"no bundle at {root}", expected="a directory made by `latentrt export`", hint="check the path"
        )
    if not path.is_file():
        raise BundleError(
            f"{root} has no {MANIFEST}",
            expected="a finished bundle",
            hint="an interrupted export continues when it is run again",
        )


def _check_version(root: Path, manifest: Row) -> None:
    version = manifest.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < OLDEST:
        raise broken(root / MANIFEST, "format_version", shown(version), f"a whole number from {OLDEST}")
    if version > FORMAT_VERSION:
        raise VersionError(
            f"{root} is written in bundle format {version}",
            expected=f"format {FORMAT_VERSION} or older",
            hint="update LatentRT, or export the checkpoint again with this version",
        )


def _in_this_format(manifest: Row) -> Row:
    """The manifest with the fields that an older format does not have yet, at their neutral values."""
    family = manifest.get("family")
    if manifest["format_version"] == FORMAT_VERSION or not isinstance(family, dict):
        return {**manifest, "format_version": FORMAT_VERSION}
    text_encoders = family.get(TEXT_ENCODERS)
    if isinstance(text_encoders, list):
        text_encoders = [
            {**_neutral(TextEncoderSpec), **each} if isinstance(each, dict) else each for each in text_encoders
        ]
    return {
        **manifest,
        "format_version": FORMAT_VERSION,
        "family": {**_neutral(Family), **family, **({} if text_encoders is None else {TEXT_ENCODERS: text_encoders})},
    }


def _neutral(row: type) -> dict[str, Any]:
    values = {field.name: field.default for field in fields(row) if field.default is not MISSING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check_components(manifest: Row, path: Path) -> None:
    """Every file that a row names is among `files`, every graph that a text encoder names among `components`."""
    files, components = manifest["files"], manifest["components"]
    for name, row in components.items():
        where = below("components", name)
        named = [("graph", row["graph"]), *((below("weights", i), file) for i, file in enumerate(row["weights"]))]
        for field, file in [*named, *([("keys", row["keys"])] if "keys" in row else [])]:
            if file not in files:
                raise broken(path, f"{where}.{field}", shown(file), "one of the names in `files`")
    for index, text_encoder in enumerate(manifest["family"][TEXT_ENCODERS]):
        where = below("family.towers", index)
        if text_encoder["component"] not in components:
            if "step" in components and not text_encoder.get("optional", False):  # else it is a part of a bundle
                raise broken(
                    path, f"{where}.component", shown(text_encoder["component"]), "one of the names in `components`"
                )
        elif text_encoder["tokenizer"] not in files:
            raise broken(path, f"{where}.tokenizer", shown(text_encoder["tokenizer"]), "one of the names in `files`")
    preview, channels = manifest.get("preview"), manifest["family"]["latent_channels"]
    if preview is not None and len(preview) != channels + 1:
        raise broken(path, "preview", f"has {len(preview)} rows", f"{channels + 1}, one more than latent_channels")


def _check_files(root: Path, files: Row, *, follow_links: bool) -> None:
    engines = root / ENGINES
    links = [path for path in (engines, *engines.glob("*"), *engines.glob("*/*")) if path.is_symlink()]
    for name in (*files, *(path.relative_to(root).as_posix() for path in links)):
        check_inside(root, name, follow_links=follow_links)
    for name, entry in files.items():
        path = root / name
        if not path.is_file():
            raise BundleError(
                f"bundle file {path} is missing",
                expected=f"{entry['bytes']} bytes",
                hint="copy or export the bundle again",
            )
        if (size := path.stat().st_size) != entry["bytes"]:
            raise IntegrityError(
                f"{path} has {size} bytes",
                expected=f"{entry['bytes']} as the manifest says",
                hint="the copy is incomplete or damaged: copy or export the bundle again",
            )


def _check_text_encoder(text_encoder: TextEncoderSpec, where: str, path: Path) -> None:
    if text_encoder.layers and text_encoder.clip_skip >= text_encoder.layers:
        raise broken(
            path, f"{where}.clip_skip", shown(text_encoder.clip_skip), f"less than the {text_encoder.layers} layers"
        )
    for name in ("bos_id", "eos_id", "pad_id"):
        value = getattr(text_encoder, name)
        if value is not None and value >= text_encoder.vocabulary:
            raise broken(path, f"{where}.{name}", shown(value), f"an id below vocabulary, {text_encoder.vocabulary}")


def _check_noise(noise: NoiseSchedule, path: Path) -> None:
    where, betas = "family.noise", noise.trained_betas
    if noise.scheduler not in SAMPLER_OF_SCHEDULER:
        raise broken(path, f"{where}.scheduler", shown(noise.scheduler), f"one of {', '.join(SAMPLER_OF_SCHEDULER)}")
    if betas is not None and len(betas) != noise.num_train_timesteps:
        raise broken(path, f"{where}.trained_betas", f"has {len(betas)} numbers", "num_train_timesteps of them")
    if noise.sigma_min is not None and noise.sigma_max is not None and noise.sigma_min >= noise.sigma_max:
        raise broken(path, f"{where}.sigma_min", shown(noise.sigma_min), f"less than sigma_max, {noise.sigma_max}")
    if noise.is_flow:
        return
    with np.errstate(all="ignore"):
        levels = noise.alphas_cumprod()
    falls = all(first >= second for first, second in pairwise(levels.tolist()))
    if not (np.isfinite(levels).all() and falls and 0 < levels[0] <= 1 and levels[-1] >= 0):
        raise broken(path, where, "makes noise levels that are no share of a signal", "betas from above 0 to below 1")


def _check_defaults(family: Family, path: Path) -> None:
    """Size and steps as a request has them, and a sampler that makes a table of them."""
    defaults, (low, high) = family.defaults, family.size_range_px
    if any(not low <= side <= high or side % family.multiple_px for side in defaults.size):
        expected = f"{low} to {high} px, multiples of {family.multiple_px}"
        raise broken(path, "family.defaults.size", shown(list(defaults.size)), expected)
    if family.multiple_px % family.vae_factor:
        expected = f"a multiple of vae_factor, {family.vae_factor}"
        raise broken(path, "family.size_multiple_px", shown(family.multiple_px), expected)
    try:
        with np.errstate(all="ignore"):
            table = step_table(family.noise, sampler=defaults.sampler, schedule=defaults.schedule, steps=defaults.steps)
        whole = all(np.isfinite(array).all() for array in (table.timestep, table.scalings, table.transition))
    except LatentRTError as error:
        raise BundleError(f"{path}: family.defaults: {error.found}", expected=error.expected) from error
    except (ArithmeticError, ValueError, IndexError) as error:
        raise broken(path, "family.noise", f"makes no table ({error})", "a noise schedule of a checkpoint") from error
    if not whole:
        raise broken(path, "family.noise", "makes a table with numbers that are not finite", "a noise schedule")
