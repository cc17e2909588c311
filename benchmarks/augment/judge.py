"""Whether labels are true, by the checker of examples/shapes, which compares pixels with the shapes' own outlines."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.augment.pictures import shapes_module
from latentrt.augment.geometry import overlap
from latentrt.augment.labels import Label, box_outline
from latentrt.augment.scores import MEETS
from latentrt.images.photo import Pixels

UNKNOWN = -1  # class of a part that the checker gives no name


@dataclass(frozen=True, slots=True)
class Tally:
    """What was found in pictures.

    Args:
        pictures: how many there are.
        pictures_true: of them, with nothing but true labels.
        labels, labels_true: likewise.
        pictures_unlabelled: with a thing that no label is of.
        seen_as: what false labels were seen as: how often, by class and what was seen.
    """

    pictures: int
    pictures_true: int
    labels: int
    labels_true: int
    pictures_unlabelled: int
    seen_as: dict[str, int]


def judged(pictures: Iterable[tuple[Pixels, Sequence[Label]]], names: Sequence[str]) -> Tally:
    """Counts true labels: those of a thing of their class whose box they meet."""
    count = true = labels = labels_true = unlabelled = 0
    seen_as: Counter[str] = Counter()
    for pixels, given in pictures:
        found = things(pixels)
        holds = [
            any(label.category == one.category and overlap(label, one) >= MEETS for one in found) for label in given
        ]
        count, labels, labels_true = count + 1, labels + len(given), labels_true + sum(holds)
        true += all(holds)
        unlabelled += any(all(overlap(one, label) < MEETS for label in given) for one in found)
        for label, held in zip(given, holds, strict=True):
            if not held:
                best = max(found, key=lambda one: overlap(label, one), default=None)
                there = best is not None and overlap(label, best) >= MEETS
                seen = "nothing there" if best is None or not there else _name(best.category, names)
                seen_as[f"{names[label.category]}: {seen}"] += 1
    return Tally(count, true, labels, labels_true, unlabelled, dict(seen_as.most_common()))


def things(pixels: Pixels) -> list[Label]:
    """What the checker sees, with boxes."""
    shapes = shapes_module("scenes").SHAPES
    height, width = pixels.shape[:2]
    found = []
    for seen in shapes_module("checker").look(pixels)[1]:
        outline = box_outline(seen.bounds) / (width, height)
        found.append(Label(shapes.index(seen.thing.shape) if seen.thing.shape in shapes else UNKNOWN, outline))
    return found


def _same(one: Label, other: Label) -> bool:
    return one.category == other.category and overlap(one, other) >= MEETS


def _name(category: int, names: Sequence[str]) -> str:
    return "unclear" if category == UNKNOWN else names[category]
