"""What a single file says of its noise: what the network predicts, and whether the last level holds no signal.

Shapes tell neither. Programs say it in four ways, in the order in which they are believed here: keys without a weight
among the weights, a file of settings beside it, and metadata of modelspec and of the training programs.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.single_file.weights import Weights

log = logging.getLogger(__name__)

MARKERS = ("v_pred", "ztsnr")
"""Keys that are no weights: v prediction, and zero terminal SNR."""

_NAMES = {
    **dict.fromkeys(("epsilon", "eps", "noise"), "epsilon"),
    **dict.fromkeys(("v", "v_pred", "vpred", "v_prediction", "vprediction", "velocity"), "v_prediction"),
    **dict.fromkeys(("x0", "sample"), "sample"),
}
_FLAGS = {**dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False)}
_SETTINGS = (".yaml", ".yml")
_SCALINGS = {"EpsScaling": "epsilon", "VScaling": "v_prediction"}


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing that is said, and where.

    Args:
        value: a prediction type of diffusers, or whether there is zero terminal SNR.
    """

    value: Any
    where: str


def stated_prediction(weights: Weights) -> list[Statement]:
    """What the network predicts, from what is believed most to what is least."""
    said = [Statement("v_prediction", "the key v_pred")] if "v_pred" in weights.shapes else []
    for path, key, value in _settings(weights.path):
        if key in ("parameterization", "prediction_type"):
            said.append(Statement(_prediction(value, f"{path.name}: {key}"), f"{path.name}: {key}"))
        elif key == "target" and "denoiser_scaling" in str(value):
            name = str(value).rpartition(".")[2]
            said.append(Statement(_scaling(name, path), f"{path.name}: {name}"))
    for key in ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type", "ss_prediction_type"):
        if (text := weights.notes.get(key, "").strip()) != "":
            said.append(Statement(_prediction(text, f"metadata {key}"), f"metadata {key}"))
    if (flag := _flag(weights.notes.get("ss_v_parameterization"))) is not None:
        said.append(Statement("v_prediction" if flag else "epsilon", "metadata ss_v_parameterization"))
    for key, ending in (("modelspec.architecture", "-768-v"), ("ss_base_model_version", "_768_v")):
        if weights.notes.get(key, "").endswith(ending):
            said.append(Statement("v_prediction", f"metadata {key}"))
    return said


def stated_zero_snr(weights: Weights) -> list[Statement]:
    """Whether the last noise level holds no signal, in the same order."""
    said = [Statement(True, "the key ztsnr")] if "ztsnr" in weights.shapes else []
    for path, key, value in _settings(weights.path):
        if key in ("ztsnr", "zsnr", "use_ztsnr", "zero_terminal_snr", "rescale_betas_zero_snr"):
            said.append(Statement(_flag(value), f"{path.name}: {key}"))
    for key in ("ss_zero_terminal_snr", "modelspec.zero_terminal_snr", "ztsnr", "zsnr", "zero_terminal_snr"):
        if key in weights.notes:
            said.append(Statement(_flag(weights.notes[key]), f"metadata {key}"))
    return [statement for statement in said if statement.value is not None]


def decide(said: list[Statement], *, of: Path, option: str | None = None) -> Any:
    """The value that rules: the first that is said; None if nothing is. What contradicts it is logged as a warning.

    Args:
        said: from what is believed most to what is least.
        option: the one that decides, for the warning; None: there is none.
    """
    if not said:
        return None
    first, *others = said
    for other in others:
        if other.value != first.value:
            hint = "" if option is None else f"; {option} decides"
            log.warning(
                "%s contradicts itself: %s says %s, %s says %s; the former is taken%s",
                of, first.where, first.value, other.where, other.value, hint,
            )  # fmt: skip
    return first.value


def _settings(weights: Path) -> Iterator[tuple[Path, str, Any]]:
    """Every key and value of the file of settings that has the name of the weights, at any depth."""
    for suffix in _SETTINGS:
        path = weights.with_suffix(suffix)
        if path.is_file():
            try:
                document = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise CheckpointError(
                    f"{path}, the settings of {weights.name}, cannot be read ({' '.join(str(error).split())})",
                    expected="YAML",
                    hint="mend it, or give it another name",
                ) from error
            yield from ((path, key, value) for key, value in _pairs(document))


def _pairs(document: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield str(key), value
            yield from _pairs(value)
    elif isinstance(document, list):
        for value in document:
            yield from _pairs(value)


def _prediction(value: Any, where: str) -> str:
    name = str(value).strip().lower().replace("-", "_")
    if name not in _NAMES:
        raise CheckpointError(
            f"{where} says that the network predicts {value!r}",
            expected="epsilon, v or sample",
            hint="--prediction decides where the file is wrong",
        )
    return _NAMES[name]


def _scaling(name: str, path: Path) -> str:
    if name not in _SCALINGS:
        raise CheckpointError(
            f"{path} describes a model of continuous noise levels ({name})",
            expected=" or ".join(_SCALINGS),
            hint="such models cannot be exported",
        )
    return _SCALINGS[name]


def _flag(value: Any) -> bool | None:
    """A truth value as programs write it; None where it is none."""
    return _FLAGS.get(str(value).strip().lower())
