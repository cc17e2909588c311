"""One page about a new dataset: counts before and after, what was dropped and why, pictures with their boxes drawn."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentrt.augment.labels import Label
from latentrt.errors import RequestError
from latentrt.images.photo import read_photo

if TYPE_CHECKING:
    from PIL import Image

SAMPLES = 6  # pictures of each mode
SIDE = 192  # pixels
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:right}
td:first-child,th:first-child{text-align:left}figure{display:inline-block;margin:0 .6em .6em 0;width:192px;
vertical-align:top}figcaption{font-size:12px;overflow-wrap:anywhere}img{max-width:192px}.dropped{opacity:.6}"""


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A picture of the page.

    Args:
        path: of its file.
        labels: drawn on it.
        group: it is listed under.
        dropped: names of the scores that are too low; none of a picture that is kept.
    """

    path: Path
    labels: tuple[Label, ...]
    group: str
    dropped: tuple[str, ...] = ()


def report(
    names: Sequence[str],
    *,
    before: Mapping[str, int],
    after: Mapping[str, int],
    real: int,
    pictures: Sequence[Shown],
    least: Mapping[str, float],
    skipped: Mapping[str, int],
) -> str:
    """The page.

    Args:
        names: of the classes.
        before, after: objects by class in train, or pictures where folders are classes.
        real: pictures of train that are real.
        pictures: all that were made.
        least: the thresholds.
        skipped: how often a mode had nothing to do, by its reason.
    """
    kept = [each for each in pictures if not each.dropped]
    share = len(kept) / max(1, real)
    groups = list(dict.fromkeys(each.group for each in pictures))
    made, kept_of = Counter(each.group for each in pictures), Counter(each.group for each in kept)
    low = Counter(name for each in pictures for name in each.dropped)
    bounds = ", ".join(f"{name} at least {value:g}" for name, value in least.items()) or "none"
    parts = [
        f"<!doctype html><meta charset=utf-8><title>Augmented dataset</title><style>{_STYLE}</style>",
        "<h1>Augmented dataset</h1>",
        f"<p>train: {real} real pictures, {len(kept)} synthetic ones ({share:.2f} to each real one). ",
        f"{len(pictures)} were made, {len(pictures) - len(kept)} dropped. Validation and test are real.</p>",
        "<h2>Classes in train</h2>",
        _table(
            ("class", "before", "after", "factor"),
            [(name, before.get(name, 0), after.get(name, 0), _factor(before, after, name)) for name in names],
        ),
        "<h2>Modes</h2>",
        _table(
            ("mode", "made", "kept", "dropped"),
            [(name, made[name], kept_of[name], f"{1 - kept_of[name] / made[name]:.1%}") for name in groups],
        ),
        f"<p>Thresholds: {escape(bounds)}.</p>",
        _table(("dropped for", "pictures"), [*low.items()]) if low else "",
        _table(("nothing to do", "times"), [*skipped.items()]) if skipped else "",
    ]
    for group in groups:
        parts.append(f"<h2>{escape(group)}</h2>")
        parts += [_figure(each, names) for each in _some([each for each in pictures if each.group == group])]
    return "\n".join(parts) + "\n"


def boxes_drawn(path: Path, labels: Iterable[Label], names: Sequence[str]) -> "Image.Image":
    """A small picture with the outlines of its labels."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(read_photo(path).on_white())
    scale = SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(image)
    for label in labels:
        colour = _COLOURS[label.category % len(_COLOURS)]
        corners = [tuple(corner) for corner in label.outline * (np.array(image.size) - 1)]
        draw.line([*corners, corners[0]], fill=colour, width=2)
        left, top, *_ = label.bounds
        at = left * image.width + 3, max(0.0, top * image.height - 11)
        draw.text(at, names[label.category], fill=colour, stroke_width=2, stroke_fill="white")
        for x, y, seen in label.keypoints if label.keypoints is not None else ():
            if seen > 0:
                at = x * image.width, y * image.height
                draw.ellipse((at[0] - 2, at[1] - 2, at[0] + 2, at[1] + 2), fill=colour)
    return image


def _figure(shown: Shown, names: Sequence[str]) -> str:
    data = io.BytesIO()
    with suppress(RequestError):  # a broken picture, which is dropped
        boxes_drawn(shown.path, shown.labels, names).save(data, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    why = f" (dropped: {', '.join(shown.dropped)})" if shown.dropped else ""
    style = " class=dropped" if shown.dropped else ""
    return (
        f"<figure{style}><img src='{source}' alt=''><figcaption>{escape(shown.path.name + why)}</figcaption></figure>"
    )


def _some(pictures: Sequence[Shown]) -> list[Shown]:
    """A few, spread evenly, and a few that were dropped."""
    kept, dropped = [p for p in pictures if not p.dropped], [p for p in pictures if p.dropped]
    return [
        each for part, most in ((kept, SAMPLES), (dropped, 2)) for each in part[:: max(1, len(part) // most)][:most]
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    return f"<table><tr>{titles}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _factor(before: Mapping[str, int], after: Mapping[str, int], name: str) -> str:
    return f"{after.get(name, 0) / before[name]:.2f}" if before.get(name) else "new"
