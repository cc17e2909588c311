"""What the layers of a LoRA file are multiplied by where their tensors do not say it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from latentrt.errors import RequestError
from latentrt.lora.adapter import Adapter
from latentrt.lora.sources import PEFT_WEIGHTS, Source
from latentrt.weights.safetensors_file import TensorFile

log = logging.getLogger(__name__)

PEFT_WRAPPER = "base_model.model."
"""How names begin in files that PEFT itself saved: of the module that holds the model."""

_METADATA = "lora_adapter_metadata"  # where diffusers keeps PEFT's configurations in a header, by part


@dataclass(frozen=True, slots=True)
class Strengths:
    """PEFT's configurations by the beginning of the names of layers that they are for, and the sha256 of the file that
    they are from, if it is one of its own. Layers of none have a strength of 1."""

    adapters: Mapping[str, Adapter]
    sha256: str | None = None

    def of(self, name: str, rank: int, *, dora: bool) -> float:
        for start, adapter in self.adapters.items():
            if name.startswith(start):
                return adapter.strength(name.removeprefix(start).removeprefix(PEFT_WRAPPER), rank, dora=dora)
        return 1.0


def read_strengths(file: TensorFile, source: Source, *, strict: bool) -> Strengths:
    """Those of a file, from PEFT's configuration beside it or from its header."""
    wrapped = any(name.startswith(PEFT_WRAPPER) for name in file.tensors)
    if source.config is not None and (wrapped or source.path.name == PEFT_WEIGHTS):
        try:
            data = source.config.read_bytes()
        except OSError as error:
            raise RequestError(f"{source.config} cannot be read ({error.strerror})", expected="JSON") from error
        where = str(source.config)
        return Strengths({"": Adapter.read(_json(data, where), source=where)}, hashlib.sha256(data).hexdigest())
    if _METADATA in file.metadata:
        where = f"{_METADATA} of {file.path}"
        parts: dict[str, dict[str, object]] = {}
        for key, value in _json(file.metadata[_METADATA], where).items():
            part, _, name = key.partition(".")
            parts.setdefault(f"{part}.", {})[name] = value
        return Strengths({part: Adapter.read(values, source=where) for part, values in parts.items()})
    said = any(name.endswith(".alpha") for name in file.tensors)
    if wrapped and not said:
        missing = f"{file.path} has no adapter_config.json beside it, which says alpha and rank of PEFT's LoRAs"
        if strict:
            raise RequestError(
                missing,
                expected="both, as PEFT saves them",
                hint="put it there, or take alpha = rank: latentrt.Lora(path, scale, strict=False)",
            )
        log.warning("%s: alpha = rank is assumed, a strength of 1", missing)
    return Strengths({})


def _json(data: str | bytes, where: str) -> dict[str, object]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is no JSON ({error})", expected="PEFT's configuration") from error
    if not isinstance(values, dict):
        raise RequestError(f"{where} is {type(values).__name__}", expected="PEFT's configuration")
    return values
