"""PEFT's configuration of a LoRA: `adapter_config.json` beside its weights, or what diffusers keeps of it in a header.

Source: peft's `LoraConfig` and `LoraLayer.update_layer` for the values, `get_pattern_key` and
`check_target_module_exists` for the names. Every key is known, or the file is refused: some change the numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentrt.errors import RequestError

_ALPHA = 8  # what PEFT takes where a configuration has no lora_alpha

_FOLLOWED = frozenset(
    """
    r lora_alpha use_rslora rank_pattern alpha_pattern use_dora target_modules exclude_modules layers_to_transform
    layers_pattern
    """.split()  # noqa: SIM905
)
# They say how it was trained, or concern layers that no denoiser and no text encoder has.
_WITHOUT_EFFECT = frozenset(
    """
    task_type auto_mapping peft_version base_model_name_or_path revision inference_mode lora_dropout fan_in_fan_out
    megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config velora_config qalora_group_size
    runtime_config ensure_weight_tying
    """.split()  # noqa: SIM905
)
# Other ways to begin subtract from the weights that the LoRA is for.
_VALUES: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
_LONGEST_PATTERN = 1000


@dataclass(frozen=True, slots=True)
class Adapter:
    """A configuration that has been checked.

    Args:
        source: where it stands, for messages.
        rank, alpha: of layers that no pattern names; None: the configuration has no rank.
        ranks, alphas: of those that a pattern names, the first that fits.
        rslora: the strength is alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732), not alpha / rank.
        dora: the file has magnitudes, too.
        targets, excluded: the modules that have layers: names or their ends, or one pattern; None: any.
        indices, lists: and only those at these indices, of lists of these names; None: all.
    """

    source: str
    rank: int | None
    alpha: float
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]
    rslora: bool
    dora: bool
    targets: str | Sequence[str] | None
    excluded: str | Sequence[str] | None
    indices: Sequence[int] | None
    lists: Sequence[str]

    @classmethod
    def read(cls, values: Mapping[str, Any], *, source: str) -> Adapter:
        """Checks a configuration."""
        _check_keys(values, source)
        reader = _Reader(values, source)
        rank = reader.numbers("r")
        alpha = reader.numbers("lora_alpha")
        return cls(
            source,
            rank=None if rank is None else int(rank),
            alpha=_ALPHA if alpha is None else alpha,
            ranks=reader.patterns("rank_pattern"),
            alphas=reader.patterns("alpha_pattern"),
            rslora=reader.flag("use_rslora"),
            dora=reader.flag("use_dora"),
            targets=None if values.get("target_modules") == "all-linear" else reader.names("target_modules"),
            excluded=reader.names("exclude_modules"),
            indices=reader.indices("layers_to_transform"),
            lists=_listed(reader.names("layers_pattern")),
        )

    def strength(self, module: str, rank: int, *, dora: bool) -> float:
        """What up @ down of a module is multiplied by; it must not say something else than the module's tensors."""
        expected = self._of(module, self.ranks, self.rank)
        if expected is not None and expected != rank:
            raise self._differs(module, f"rank {rank}", f"{expected:g}")
        if dora != self.dora:
            raise self._differs(module, f"{'' if dora else 'no '}magnitudes", f"use_dora {self.dora}")
        if not self._names(module):
            raise self._differs(module, "a layer", "it is none of target_modules")
        alpha = self._of(module, self.alphas, self.alpha)
        assert alpha is not None
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def _of(self, module: str, patterns: Mapping[str, float], otherwise: float | None) -> float | None:
        fitting = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
        return next(fitting, otherwise)

    def _names(self, module: str) -> bool:
        if self.excluded and _named(module, self.excluded):
            return False
        if self.targets is None or isinstance(self.targets, str) or self.indices is None:
            return self.targets is None or _named(module, self.targets)
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.lists] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for pattern in patterns if (match := re.match(pattern, module)) is not None), None)
        return _named(module, self.targets) and found is not None and int(found[1]) in self.indices

    def _differs(self, module: str, found: str, expected: str) -> RequestError:
        return RequestError(
            f"{module} has {found}, and {self.source} says {expected}",
            expected="a configuration of this file",
            hint="they belong to different LoRAs: download both again",
        )


def _check_keys(values: Mapping[str, Any], source: str) -> None:
    for key, value in values.items():
        if key in _FOLLOWED or key in _WITHOUT_EFFECT or value is None or value in (False, "", [], {}):
            continue
        if key not in _VALUES:
            raise RequestError(f"{key} {value!r} in {source}", expected="none", hint="this kind is not supported")
        if value not in _VALUES[key]:
            raise RequestError(
                f"{key} {value!r} in {source}",
                expected=" or ".join(map(repr, _VALUES[key])),
                hint="PEFT can merge such a LoRA into the checkpoint before it is exported",
            )


def _named(module: str, names: str | Sequence[str]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names)


def _listed(names: str | Sequence[str] | None) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names if names is not None else ()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Values by key, each of the type that it has in PEFT."""

    values: Mapping[str, Any]
    source: str

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        return self._checked(key, value, isinstance(value, bool | None), "true or false") is True

    def numbers(self, key: str) -> float | None:
        value = self.values.get(key)
        return None if value is None else self._number(key, value)

    def patterns(self, key: str) -> dict[str, float]:
        value = self.values.get(key)
        value = {} if value is None else value
        self._checked(key, value, isinstance(value, dict), "numbers by pattern")
        return {self._pattern(key, pattern): self._number(key, number) for pattern, number in value.items()}

    def names(self, key: str) -> str | tuple[str, ...] | None:
        value = self.values.get(key)
        if value is None or value in ([], ""):
            return None
        if isinstance(value, str):
            return self._pattern(key, value)
        fine = isinstance(value, list) and all(isinstance(name, str) for name in value)
        return tuple(self._checked(key, value, fine, "names"))

    def indices(self, key: str) -> tuple[int, ...] | None:
        value = self.values.get(key)
        value = [value] if isinstance(value, int) else value
        fine = value is None or (isinstance(value, list) and all(isinstance(index, int) for index in value))
        self._checked(key, value, fine, "numbers of layers")
        return tuple(value) if value else None

    def _number(self, key: str, value: Any) -> float:
        fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(
            self._checked(key, value, fine and (key == "lora_alpha" or "alpha" in key or value > 0), "a number")
        )

    def _pattern(self, key: str, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            self._checked(key, pattern, False, "patterns that can be read")
        self._checked(
            key, pattern, len(pattern) <= _LONGEST_PATTERN, f"patterns of up to {_LONGEST_PATTERN} characters"
        )
        return pattern

    def _checked(self, key: str, value: Any, fine: bool, expected: str) -> Any:
        if not fine:
            raise RequestError(f"{key} {value!r:.80} in {self.source}", expected=expected, hint="the file is damaged")
        return value
