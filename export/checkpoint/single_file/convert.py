"""A single file, in the original layout or in diffusers' own, to the parts of a diffusers folder; no network needed."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.files import read_json
from latentrt.export.checkpoint.single_file.architectures import ARCHITECTURES, NETWORKS, OTHERS, VAE, Architecture
from latentrt.export.checkpoint.single_file.parts import NetworkPart, find_part, write_part
from latentrt.export.checkpoint.single_file.sizes import ASSUMED
from latentrt.export.checkpoint.single_file.stated import MARKERS, Statement, decide, stated_prediction, stated_zero_snr
from latentrt.export.checkpoint.single_file.weights import Weights

log = logging.getLogger(__name__)

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
_AVERAGES = ("model_ema.", "ema.", "ema_model.", "unet_ema.")
_NETWORK_PARTS = tuple(row.part for row in NETWORKS)


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a file is and holds."""

    weights: Weights
    architecture: Architecture
    parts: tuple[NetworkPart, ...]

    @property
    def text(self) -> str:
        """One line for people."""
        parts = ", ".join(f"{part.row.part} ({part.parameters / 1e6:.1f} M)" for part in self.parts)
        return f"{self.architecture.name}: {parts}; {_types_text(self.weights)}"


def recognise(weights: Weights, *, prediction: str | None = None, components: Path | None = None) -> Recognised:
    """Says what a file is, by its keys and shapes.

    Args:
        prediction: `epsilon` or `v_prediction`, if the user says so.
        components: a diffusers folder whose scheduler says it, if nothing else does.

    Raises:
        CheckpointError: it is of no architecture that is known, or two of them cannot be told apart.
    """
    for mark, what in OTHERS:
        if any(mark in key for key in weights.shapes):
            raise CheckpointError(f"{weights.path} is {what}", expected=_expected_names())
    network = next((part for row in NETWORKS if (part := find_part(row, weights)) is not None), None)
    if network is None and any(key.startswith(_AVERAGES) for key in weights.shapes):
        raise CheckpointError(
            f"{weights.path} holds averaged weights (EMA) alone, and no others; {group_keys(weights.shapes)}",
            expected="the weights of a whole model",
            hint="take the pruned file of the same model, in which the averages have the place of the weights",
        )
    if network is None:
        raise CheckpointError(
            f"{weights.path} has no denoiser that is known; it holds {group_keys(weights.shapes)}",
            expected=_expected_names(),
        )
    rows = [row for row in ARCHITECTURES if row.tells(network.config, weights.shapes)]
    if len(rows) > 1:
        rows = _by_prediction(rows, network, weights, prediction, components)
    (architecture,) = rows
    others = [find_part(row, weights) for row in (VAE, *architecture.text_encoders)]
    return Recognised(weights, architecture, (network, *(part for part in others if part is not None)))


def file_index(found: Recognised) -> dict[str, Any]:
    """model_index.json of what a file was recognised as, with all parts of the architecture, in the file or not."""
    row, network = found.architecture, found.parts[0]
    channels = network.config["in_channels"]
    if channels not in row.pipelines:
        raise CheckpointError(
            f"the {network.row.part} in {found.weights.path} takes {channels} channels",
            expected=f"{' or '.join(map(str, row.pipelines))}, as in {row.name}",
        )
    tokenizers = {
        str(each.tokenizer): ["transformers", "T5TokenizerFast" if each.optional else "CLIPTokenizer"]
        for each in row.text_encoders
    }
    return {
        "_class_name": row.pipelines[channels],
        network.row.part: ["diffusers", network.row.kind.__name__],
        "vae": ["diffusers", VAE.kind.__name__],
        **{text_encoder.part: ["transformers", text_encoder.kind.__name__] for text_encoder in row.text_encoders},
        **tokenizers,
        "scheduler": ["diffusers", row.scheduler["_class_name"]],
        **row.index,
    }


def write_file(
    found: Recognised, folder: Path, *, prediction: str | None = None, components: Path | None = None
) -> None:
    """Writes the parts that a file holds, and its scheduler, as parts of a diffusers folder.

    Raises:
        CheckpointError: a part that does not fit its architecture, or a denoiser with more in it than that has.
    """
    kin = _kin(components, found.parts[0])
    used = set()
    for part in found.parts:
        used |= write_part(part, _config(part, found.architecture, kin), folder / part.row.part)
    _report_unused(found, [key for key in found.weights.shapes if key not in used])
    (folder / "scheduler").mkdir()
    scheduler = json.dumps(_scheduler(found, prediction, kin), indent=2)
    (folder / "scheduler" / "scheduler_config.json").write_text(scheduler, encoding="utf-8")


def write_vae(weights: Weights, folder: Path, *, settings: Mapping[str, Any]) -> None:
    """Writes the autoencoder of a file, alone in it or among others.

    Args:
        folder: the part's folder to make.
        settings: the configuration of the VAE that it replaces, for what its shapes leave open.

    Raises:
        CheckpointError: there is none, or an incomplete one.
    """
    part = find_part(VAE, weights)
    if part is None:
        raise CheckpointError(
            f"{weights.path} has no VAE; it holds {group_keys(weights.shapes)}",
            expected="an AutoencoderKL in its original or in diffusers' layout",
        )
    write_part(part, {**settings, **part.config}, folder)


def vae_settings(found: Recognised, components: Path | None) -> dict[str, Any]:
    """What shapes leave open in a checkpoint's VAE, as a given folder of the same model says, else its row."""
    kin = _kin(components, found.parts[0])
    path = None if kin is None else kin / "vae" / "config.json"
    given = {} if path is None or not path.is_file() else read_json(path, expected="the configuration of a VAE")
    return {**found.architecture.vae, **given}


def group_keys(keys: Iterable[str], *, shown: int = 4) -> str:
    """Keys counted by their first word, the most frequent first."""
    counts = Counter(key.split(".")[0] for key in keys)
    rest = len(counts) - shown
    groups = ", ".join(f"{word} ({count})" for word, count in counts.most_common(shown))
    return f"{groups} and {rest} more groups" if rest > 0 else groups


def _by_prediction(
    rows: list[Architecture], network: NetworkPart, weights: Weights, prediction: str | None, components: Path | None
) -> list[Architecture]:
    """Those of the rows whose network predicts what is said, by the user, the file or the given folder."""
    said = decide(_predictions(weights, prediction, _kin(components, network)), of=weights.path, option="--prediction")
    matching = [row for row in rows if row.scheduler["prediction_type"] == said]
    if not matching:
        names = " or ".join(row.name for row in rows)
        raise CheckpointError(
            f"{weights.path} is {names}, which nothing in the file tells apart",
            expected="--prediction epsilon or --prediction v",
            hint="the page that you have it from says which; 768 px models mostly predict v, 512 px ones epsilon",
        )
    return matching


def _predictions(weights: Weights, prediction: str | None, kin: Path | None) -> list[Statement]:
    """What is said of the network's prediction: by the user, else by the file, else by a given folder."""
    if prediction is not None:
        return [Statement(prediction, "--prediction")]
    given = None if kin is None else _given_scheduler(kin).get("prediction_type")
    said = stated_prediction(weights)
    return said if said or given is None else [Statement(given, f"the scheduler of {kin}")]


def _scheduler(found: Recognised, prediction: str | None, kin: Path | None) -> dict[str, Any]:
    """The given folder's scheduler if it is of the same model, else the row's; what the file and the user say rules."""
    own, path = found.architecture.scheduler, found.weights.path
    given = {} if kin is None else _given_scheduler(kin)
    scheduler = dict(given) if given else dict(own)
    if "prediction_type" in own:
        said = decide(_predictions(found.weights, prediction, kin), of=path, option="--prediction")
        if said is not None:
            scheduler["prediction_type"] = said
    elif prediction is not None:
        raise CheckpointError(f"--prediction for {found.architecture.name}", expected="none: it predicts a flow")
    if decide(stated_zero_snr(found.weights), of=path):
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler


def _given_scheduler(folder: Path) -> dict[str, Any]:
    path = folder / "scheduler" / "scheduler_config.json"
    return read_json(path, expected="a scheduler's configuration") if path.is_file() else {}


def _kin(components: Path | None, network: NetworkPart) -> Path | None:
    """The given folder, unless its denoiser has other sizes: then it may lend text encoders, but no settings."""
    if components is None:
        return None
    config = components / network.row.part / "config.json"
    if not config.is_file():
        return components if not any((components / part).is_dir() for part in _NETWORK_PARTS) else None
    return components if _agrees(read_json(config, expected="a configuration"), network.config) else None


def _config(part: NetworkPart, row: Architecture, kin: Path | None) -> dict[str, Any]:
    """What the shapes tell, and what they leave open: as the given folder says if its part has these sizes, else the
    row."""
    constants = {part.row.part: part.row.config, "vae": row.vae, **dict.fromkeys(_NETWORK_PARTS, row.network)}
    config = {**constants[part.row.part], **part.config}
    if row.head_width is not None and part.row.part in _NETWORK_PARTS:
        config["attention_head_dim"] = tuple(width // row.head_width for width in config["block_out_channels"])
    given = None if kin is None else kin / part.row.part / "config.json"
    if given is None or not given.is_file():
        return config
    settings = read_json(given, expected="a configuration")
    told = {field: value for field, value in part.config.items() if field not in ASSUMED}
    return {**config, **settings, **told} if _agrees(settings, part.config) else config


def _agrees(given: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether a configuration has the sizes that the weights tell; lists and tuples are the same."""
    sizes = ("block_out_channels", "cross_attention_dim", "num_layers", "hidden_size", "num_hidden_layers", "d_model")
    return all(_plain(given[size]) == _plain(told[size]) for size in sizes if size in given and size in told)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _report_unused(found: Recognised, unused: list[str]) -> None:
    """Without a weight of its own, the denoiser would be another one; markers such as `v_pred` have no dot, and are
    used."""
    path, network = found.weights.path, found.parts[0]
    unused = [key for key in unused if key not in MARKERS]
    if foreign := [key for key in unused if key.startswith(network.prefix) and "." in key]:
        raise CheckpointError(
            f"the {network.row.part} in {path} has {len(foreign)} weights that {found.architecture.name} does not "
            f"have, such as {foreign[0]}",
            expected=_expected_names(),
            hint="export it from a folder in diffusers' layout, if there is one",
        )
    if unused:
        count = len(found.weights.shapes)
        log.warning("%s: %d of %d keys are not used: %s", path, len(unused), count, group_keys(unused))


def _types_text(weights: Weights) -> str:
    counts = Counter(str(dtype).removeprefix("torch.") for dtype in weights.dtypes.values())
    names = [name if len(counts) == 1 else f"{name} ({count})" for name, count in counts.most_common()]
    return f"weights in {', '.join(names)}"


def _expected_names() -> str:
    return "a checkpoint of " + ", ".join(row.name for row in ARCHITECTURES)
