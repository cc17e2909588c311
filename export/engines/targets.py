"""Which GPUs an engine is for, and which number formats they have."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from latentrt.errors import EnvironmentLacks, RequestError
from latentrt.export.engines.cards import architecture
from latentrt.export.engines.variants import Variant

FIRST_OF_DEFAULT = 80  # an engine without capabilities runs on sm80 and later; Turing needs one of its own
TURING = 75


@dataclass(frozen=True, slots=True)
class Target:
    """What one engine is built for.

    Args:
        gpus: as the record names them: `sm89`, or `sm80+` for that one and all later ones.
        capabilities: set in the builder; none for its default, and for the GPU that is present.
    """

    gpus: tuple[str, ...]
    _: KW_ONLY
    capabilities: tuple[int, ...] = ()

    def __str__(self) -> str:
        return ",".join(self.gpus)


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Something that a graph may contain and GPUs before `since` have not."""

    what: str
    _: KW_ONLY
    since: int


# Each was tried with TensorRT for RTX 1.7: its compiler refuses these, for these architectures. Names of types are
# those of the records; `products` are the types of matrix products.
LACKING_TYPES = {
    "bfloat16": Unsupported("bf16", since=80),
    "float8_e4m3fn": Unsupported("fp8", since=89),
    "float4_e2m1fn": Unsupported("fp4", since=120),
}
LACKING_PRODUCTS = {"float32": Unsupported("float32 matrix products", since=80)}


def lacks(types: Collection[str], products: Collection[str]) -> list[Unsupported]:
    """What a graph contains that not every GPU has."""
    return [
        *(lack for name, lack in LACKING_TYPES.items() if name in types),
        *(lack for name, lack in LACKING_PRODUCTS.items() if name in products),
    ]


def default_targets(contents: Mapping[str, Sequence[Unsupported]]) -> tuple[Target, ...]:
    """The engine for all GPUs but Turing, and one for Turing where it has all that is in `contents`, by component."""
    first = max([FIRST_OF_DEFAULT, *(lack.since for found in contents.values() for lack in found)])
    later = Target((f"sm{first}+",))
    everywhere = not any(contents.values())
    return (later, Target((f"sm{TURING}",), capabilities=(TURING,))) if everywhere else (later,)


def asked_targets(gpus: Sequence[str], variant: Variant) -> tuple[Target, ...]:
    """One engine for all of `gpus`, but for Turing's and for `sm80+`, which have their own. Cards may stand for their
    architectures: `rtx4090` for `sm89`.

    Raises:
        RequestError: a name that is no architecture, or one that this variant does not compile for.
    """
    default = f"sm{FIRST_OF_DEFAULT}+"
    asked, gpus = gpus, [architecture(gpu) for gpu in gpus]
    for name, gpu in zip(asked, gpus, strict=True):
        if gpu != default and gpu not in {f"sm{number}" for number in variant.capabilities}:
            raise RequestError(
                f"GPU architecture '{gpu}'" if name == gpu else f"GPU '{name}', which is {gpu}",
                expected=f"some of {' '.join(f'sm{number}' for number in variant.capabilities)}, or {default}; or"
                " cards such as rtx4090, l40s, a100, t4",
                hint=f"{variant.title} has no engines for others: use --backend tensorrt there, or onnxruntime",
            )
    if not gpus:
        raise RequestError("no GPU architecture is named", expected=f"such as sm89,sm120 or {default}")
    numbers = sorted({int(gpu.removeprefix("sm")) for gpu in gpus if gpu != default})
    newer = tuple(number for number in numbers if number != TURING)
    groups = [(default,)] if default in gpus else []
    targets = [Target(group) for group in groups]
    targets += [Target(tuple(f"sm{number}" for number in newer), capabilities=newer)] if newer else []
    return (*targets, *([Target((f"sm{TURING}",), capabilities=(TURING,))] if TURING in numbers else []))


def refuse_unfit(targets: Sequence[Target], contents: Mapping[str, Sequence[Unsupported]], *, precision: str) -> None:
    """Raises RequestError, with the whole list, where a GPU lacks what a component contains."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for target in targets:
        for gpu in target.gpus:
            number = int(gpu.removeprefix("sm").removesuffix("+"))
            for component, found in contents.items():
                missing = [f"{lack.what} (sm{lack.since} and later)" for lack in found if number < lack.since]
                if missing:
                    reasons.setdefault((gpu, " and no ".join(missing)), []).append(component)
    if reasons:
        raise RequestError(
            "; ".join(f"{gpu} has no {what}: see {', '.join(parts)}" for (gpu, what), parts in reasons.items()),
            expected=f"GPUs that have all that this {precision} bundle contains",
            hint="leave them out of --gpus, or build a bundle of another precision for them",
        )


def present_target(variant: Variant, gpus: Sequence[str] | None) -> Target:
    """The GPU that is here, for a variant that builds on it."""
    try:
        from latentrt.backends.cuda.api import open_cuda

        here = open_cuda().gpu().architecture
    except EnvironmentLacks as error:
        raise EnvironmentLacks(
            f"{variant.title} builds engines on the GPU that they are for: {error.found}",
            expected="an NVIDIA GPU and its driver",
            hint="build on that machine; --backend tensorrt-rtx builds without a GPU",
        ) from error
    if gpus is not None and tuple(map(architecture, gpus)) != (here,):
        raise RequestError(
            f"engines for {','.join(gpus)} cannot be built here: the GPU is an {here}",
            expected=f"no --gpus, or {here}",
            hint=f"{variant.title} builds for the GPU that is present; --backend tensorrt-rtx for others",
        )
    return Target((here,))
