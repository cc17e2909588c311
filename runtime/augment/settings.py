"""What is made of a dataset, and whether it can be: bundle, labels, templates and scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from latentrt.augment.labels import Form
from latentrt.augment.modes import Mode
from latentrt.augment.scores import Sample, Score, check_least, check_scores, scored
from latentrt.augment.source import STEM_BYTES, Source
from latentrt.augment.templates import Templates
from latentrt.augment.variants import Copies
from latentrt.bundle import Bundle
from latentrt.errors import RequestError
from latentrt.images.photo import read_photo
from latentrt.request import Request
from latentrt.values import Kind, Number, Whole, settle

_SETTINGS: Mapping[str, Kind] = {"visible": Number(0, 1), "dilate": Whole(0, 1024), "extend": Number(0, 4, above=True)}
OF_EDGES = ("canny", "edge", "outline")
"""Parts of a ControlNet's name that say that it reads edges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is made of a dataset.

    Args:
        copies: how many pictures, of which kind.
        templates: of their prompts.
        request: everything else about them, such as steps.
        control: the ControlNet that reads edges; None is the only one whose name says so (`OF_EDGES`).
        visible, dilate, extend: as in `Ground`.
        scores: by name, besides `contrast` and `distance`.
        least: scores below which a picture is dropped; what is not named is as in `USUAL`.

    Raises:
        RequestError: a value out of range.
    """

    copies: Copies
    templates: Templates = field(default_factory=Templates)
    request: Request = field(default_factory=lambda: Request(""))
    control: str | None = None
    visible: float = 0.3
    dilate: int = 8
    extend: float = 0.25
    scores: Mapping[str, Score] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settle(self, _SETTINGS)
        check_scores(self.scores, self.least)


def check_bundle(bundle: Bundle, form: Form, modes: Sequence[Mode], control: str | None) -> str | None:
    """The ControlNet for edges, where one is needed.

    Raises:
        RequestError: a mode that the bundle or the labels do not allow.
    """
    for mode in modes:
        if form.task not in mode.kind.tasks:
            raise RequestError(
                f"mode {mode.name} for the task {form.task}",
                expected=f"one of {', '.join(mode.kind.tasks)}",
                hint="it would leave labels that are not true",
            )
        for component in mode.kind.needs:
            if component not in bundle.components:
                raise RequestError(
                    f"mode {mode.name} needs {component}, which {bundle.name} has not",
                    expected="a bundle that was exported with it",
                )
    if all(mode.name != "edges" for mode in modes):
        return control
    names = list(bundle.controls)
    of_edges = [name for name in names if any(word in name.casefold() for word in OF_EDGES)]
    if control is None and len(of_edges) == 1:
        return of_edges[0]
    if control not in names:
        found = "which ControlNet reads edges is not said" if control is None else f"no ControlNet '{control}'"
        raise RequestError(
            f"mode edges: {found}",
            expected=f"one of {', '.join(names)}" if names else "a bundle with a ControlNet for edges",
            hint="name it with control" if names else "add one: latentrt control",
        )
    return control


def check_templates(source: Source, settings: Augmentation) -> None:
    """Raises RequestError for anything that prompts cannot be made with."""
    others = [picture.path.name for picture in source.pictures] + [bad.path.name for bad in source.bad]
    train = [picture.path.name for picture in source.of("train")]
    alone = [""] if settings.copies.empty or not train else []
    settings.templates.check(source.form.names, train=[*train, *alone], others=others)


def check_folders(form: Form) -> None:
    """Raises RequestError for a class that its folder cannot be called after."""
    for name in form.names if form.task == "classify" else ():
        if name != Path(name).name or name == ".." or "\\" in name or not 0 < len(name.encode()) <= STEM_BYTES:
            raise RequestError(
                f"a class called '{name:.40}'", expected=f"the name of a folder, of at most {STEM_BYTES} bytes"
            )


def try_scores(source: Source, settings: Augmentation, there: Iterable[str]) -> None:
    """Raises RequestError for thresholds without a score, and for scores that fail on a real picture."""
    check_least(settings.least, {"contrast", "distance", *settings.scores, *there})
    for picture in source.of("train")[:1]:
        names = [source.form.names[label.category] for label in picture.labels]
        prompt = settings.templates.of_picture(names, np.random.default_rng(0), file=picture.path.name)
        pixels = read_photo(picture.path).on_white()
        sample = Sample(pixels, prompt, picture.labels, source.form, folder=picture.folder)
        for name, score in settings.scores.items():
            scored(name, score, sample, str(picture.path))
