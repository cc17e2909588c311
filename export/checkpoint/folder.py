"""A checkpoint in diffusers' folder layout: found, checked before anything is computed, loaded part by part."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from diffusers import AutoencoderKL, AutoencoderTiny, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from latentrt.bundle import sha256_file
from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.files import (
    check_allowed,
    check_safetensors,
    check_shards,
    load_module,
    read_json,
    refuse_pointer,
    variant_of,
)
from latentrt.export.checkpoint.hub import choose_weights, download
from latentrt.export.checkpoint.settings import PARTS as SETTINGS
from latentrt.export.checkpoint.settings import PIPELINES, SCHEDULERS
from latentrt.export.messages import first_line

INDEX = "model_index.json"
_LAYOUT = "a folder in diffusers' layout, with model_index.json, the name of one on a model hub, or a file of weights"
PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Folders with weights that may be there, in the order of the pipelines of diffusers."""
_CLASSES: Mapping[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        UNet2DConditionModel,
        SD3Transformer2DModel,
        AutoencoderKL,
        AutoencoderTiny,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        T5EncoderModel,
    )
}
_EXPORTED = {"model.onnx": "ONNX Runtime", "openvino_model.xml": "OpenVINO"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder whose parts are there and whole.

    Args:
        source: what the user called it.
        variant: the files to prefer, such as `fp16`.
        allow_pickle: read `.bin` files where there are no others.
        originals: files that the folder was converted from, by their names in the fingerprint; the parts that are no
            links stem from them.
    """

    root: Path
    source: str
    index: Mapping[str, Any]
    variant: str | None = None
    allow_pickle: bool = False
    originals: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        name: str | None = None,
        variant: str | None = None,
        allow_pickle: bool = False,
        originals: Mapping[str, Path] | None = None,
    ) -> Self:
        """Finds a checkpoint and checks that its files are complete, without reading the weights.

        Args:
            source: a folder, or its name on a hub.
            name: what the user called it, if not `source`.
            variant, allow_pickle, originals: as the class has them.

        Raises:
            CheckpointError: missing, not Stable Diffusion, or a truncated file.
        """
        root = find_folder(str(source), variant=variant, allow_pickle=allow_pickle)
        index = read_json(root / INDEX, expected=_LAYOUT)
        _refuse_exported(root, index)
        kind = index.get("_class_name", "")
        checkpoint = cls(
            root,
            str(source) if name is None else name,
            index,
            variant,
            allow_pickle,
            {} if originals is None else originals,
        )
        wanted = [checkpoint.network, "vae", "scheduler", *(map(tokenizer_of, checkpoint.text_encoders))]
        missing = [part for part in wanted if not _named(index, part)]
        if not checkpoint.text_encoders:
            missing.append("text_encoder")
        if kind not in PIPELINES or missing:
            lacking = f" without {', '.join(missing)}" if missing else ""
            raise CheckpointError(
                f"{root / INDEX} describes a {kind or 'model of no class'}{lacking}",
                expected="a Stable Diffusion pipeline: unet or transformer, vae, scheduler, text encoders, tokenizers",
                hint=f"the classes that are known: {', '.join(PIPELINES)}",
            )
        PIPELINES[kind].check(index, where=root / INDEX)
        for part in (*checkpoint.parts, "scheduler"):
            checkpoint.config(part)
        files = [file for part in checkpoint.parts for file in checkpoint.weight_files(part)]
        if variant is not None and not any(variant_of(file) == variant for file in files):
            raise CheckpointError(
                f"no part of {root} has weights of the variant '{variant}'",
                expected=f"files such as diffusion_pytorch_model.{variant}.safetensors",
            )
        for file in files:
            refuse_pointer(file)
            if file.suffix == ".safetensors":
                check_safetensors(file)
        return checkpoint

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts with weights."""
        return tuple(part for part in PARTS if _named(self.index, part))

    @property
    def network(self) -> str:
        """The part that denoises: `transformer` where there is one, else `unet`."""
        return "transformer" if _named(self.index, "transformer") else "unet"

    def without(self, part: str) -> Self:
        """The checkpoint as if it lacked a text encoder, one that it has."""
        if part not in self.text_encoders:
            raise CheckpointError(f"no text encoder {part!r}", expected=f"one of {', '.join(self.text_encoders)}")
        return replace(self, index={**self.index, part: [None, None], tokenizer_of(part): [None, None]})

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The parts that are text encoders."""
        return tuple(part for part in self.parts if part.startswith("text_encoder"))

    def config(self, part: str) -> dict[str, Any]:
        """A part's configuration, with the defaults of its class where the file is silent. A scheduler's stays silent:
        each sampler has defaults of its own.

        Raises:
            CheckpointError: missing or malformed, of a class that is not known, or with a setting that is not carried.
        """
        kind = str(self.index[part][1])
        if part == "scheduler":
            file = self.root / part / "scheduler_config.json"
            config = {**read_json(file, expected="the configuration of scheduler"), "_class_name": kind}
            if kind in SCHEDULERS:
                SCHEDULERS[kind].check(config, where=file)
            return config
        file = self.root / part / "config.json"
        return complete_config(read_json(file, expected=f"the configuration of {part}"), kind, where=file)

    def weight_files(self, part: str) -> list[Path]:
        """The files of a part's weights: the wanted variant, else float32 or fp16, whichever is there.

        Raises:
            CheckpointError: there are none, a shard is missing, or they are pickles and not allowed.
        """
        folder = self.root / part
        names = [file.name for file in folder.glob("*")]
        if files := [folder / name for name in choose_weights(names, variant=self.variant, allow_pickle=True)]:
            check_allowed(files, allow_pickle=self.allow_pickle)
            check_shards(files)
            return files
        raise CheckpointError(
            f"no weights in {folder}",
            expected="*.safetensors",
            hint="convert other formats with diffusers' save_pretrained(..., safe_serialization=True)",
        )

    def fingerprint(self) -> dict[str, str]:
        """sha256 of every configuration and weight file that the export reads, by path; of converted weights, the
        file that they stem from."""
        parts = [part for part in self.parts if not self.originals or (self.root / part).is_symlink()]
        weights = [file for part in parts for file in self.weight_files(part)]
        configs = sorted(file for file in self.root.glob("*/*") if file.suffix in (".json", ".txt"))
        files = {str(file.relative_to(self.root)): file for file in (self.root / INDEX, *configs, *weights)}
        return {name: sha256_file(file) for name, file in {**files, **self.originals}.items()}

    def load(self, part: str) -> nn.Module:
        """A part in float32, of the class that model_index.json names."""
        kind = str(self.index[part][1])
        if kind not in _CLASSES:
            raise CheckpointError(f"{self.root / part} is a {kind}", expected=f"one of {', '.join(sorted(_CLASSES))}")
        file = self.weight_files(part)[0]
        return load_module(_CLASSES[kind], self.root / part, weights=file, variant=variant_of(file))

    def unet(self) -> UNet2DConditionModel:
        """The denoiser in float32."""
        return self.load("unet")

    def vae(self) -> AutoencoderKL | AutoencoderTiny:
        """The autoencoder in float32."""
        return self.load("vae")

    def text_encoder(self, part: str = "text_encoder") -> CLIPTextModel | CLIPTextModelWithProjection:
        """A text encoder in float32."""
        return self.load(part)

    def tokenizer(self, part: str = "tokenizer") -> CLIPTokenizer | T5TokenizerFast:
        """A tokenizer; a CheckpointError where its files are missing or malformed."""
        for file in (self.root / part).glob("*"):
            refuse_pointer(file)
        kind = T5TokenizerFast if str(self.index[part][1]).startswith("T5") else CLIPTokenizer
        try:
            return kind.from_pretrained(self.root / part)
        except Exception as error:
            raise CheckpointError(
                f"the tokenizer in {self.root / part} cannot be read ({first_line(error)})",
                expected="tokenizer.json, or vocab.json and merges.txt",
            ) from error


def complete_config(config: Mapping[str, Any], kind: str, *, where: Path) -> dict[str, Any]:
    """A part's configuration with the defaults of its class.

    Raises:
        CheckpointError: a class that is not known, or a setting that is not carried.
    """
    if kind not in SETTINGS:
        raise CheckpointError(f"{where.parent} is a {kind}", expected=f"one of {', '.join(sorted(SETTINGS))}")
    text = config.get("text_config")  # of a whole CLIP, from which transformers takes the text encoder
    return SETTINGS[kind].complete(text if isinstance(text, Mapping) else config, where=where)


def tokenizer_of(text_encoder: str) -> str:
    """The folder of a text encoder's tokenizer: `tokenizer_2` for `text_encoder_2`."""
    return text_encoder.replace("text_encoder", "tokenizer")


def _named(index: Mapping[str, Any], part: str) -> bool:
    """Whether an index names a class for a part; `[null, null]` stands for one that was left out."""
    match index.get(part):
        case [str(), str()]:
            return True
        case _:
            return False


def _refuse_exported(root: Path, index: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a folder that Optimum or diffusers made of a checkpoint, for another runtime."""
    for network in ("unet", "transformer"):
        found = next((name for name in _EXPORTED if (root / network / name).is_file()), None)
        if found is not None:
            config = root / network / "config.json"
            settings = read_json(config, expected="the network's configuration") if config.is_file() else {}
            origin = settings.get("_name_or_path") or index.get("_name_or_path")
            raise CheckpointError(
                f"{root} holds {network}/{found}: a model that was already exported, for {_EXPORTED[found]}",
                expected="the checkpoint that it was made from, with weights in safetensors",
                hint=f"it names {origin} as its origin"
                if origin
                else "give the folder or the hub's name that was exported",
            )


def find_folder(
    source: str, *, variant: str | None = None, allow_pickle: bool = False, left_out: Sequence[str] = ()
) -> Path:
    """The folder at a path, or of a name on a model hub, of which what an export reads is downloaded.

    Args:
        variant, allow_pickle: as the checkpoint will be opened.

    Raises:
        CheckpointError: there is none.
        EnvironmentLacks: the disk is full or not writable.
    """
    root = Path(source)
    if root.exists():
        if not root.is_dir():
            raise CheckpointError(
                f"{root} is a file",
                expected="a folder",
                hint="latentrt.export.checkpoint.sources.open_source reads files",
            )
        return root
    if not _HUB_NAME.fullmatch(source):
        raise CheckpointError(f"no checkpoint at {source}", expected=_LAYOUT, hint="check the path")
    parts = (*PARTS, "scheduler", *(tokenizer_of(part) for part in PARTS if part.startswith("text_encoder")))
    return download(source, index=INDEX, parts=parts, variant=variant, allow_pickle=allow_pickle, left_out=left_out)
