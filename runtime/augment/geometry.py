"""Labels under resizing, cropping, letterboxing and outpainting: moved, clipped, dropped where too little is left."""

from dataclasses import dataclass, replace

import numpy as np

from latentrt.augment.labels import Label, Points, box_outline
from latentrt.images.framing import Size

TINY = 1e-12  # areas below have no share
FITS = ("resize", "crop", "letterbox")


@dataclass(frozen=True, slots=True)
class Move:
    """Where a picture lies on another one: a point `p` of it comes to `p * scale + shift`, both as shares.

    Args:
        scale, shift: along x and y.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)

    def __call__(self, points: Points) -> Points:
        """Points [N, 2], moved."""
        moved: Points = points * self.scale + self.shift
        return moved

    def then(self, other: "Move") -> "Move":
        """This move, and the other one after it."""
        scale = self.scale[0] * other.scale[0], self.scale[1] * other.scale[1]
        shift = tuple(s * o + t for s, o, t in zip(self.shift, other.scale, other.shift, strict=True))
        return Move(scale, (shift[0], shift[1]))


STAY = Move()


def placed(size: Size, at: tuple[float, float], canvas: Size) -> Move:
    """A picture drawn with `size` pixels and its top left corner at `at`, on a canvas; parts may lie outside."""
    return Move(
        (size[0] / canvas[0], size[1] / canvas[1]),
        (at[0] / canvas[0], at[1] / canvas[1]),
    )


def fitted(picture: Size, canvas: Size, fit: str) -> tuple[Size, tuple[int, int]]:
    """How large a picture is drawn on a canvas of another size, and where its top left corner lies.

    Args:
        fit: `resize` stretches, `crop` covers the canvas and cuts evenly, `letterbox` shows all and pads evenly.
    """
    if fit == "resize":
        return canvas, (0, 0)
    across, down = canvas[0] / picture[0], canvas[1] / picture[1]
    scale = max(across, down) if fit == "crop" else min(across, down)
    size = max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))
    return size, ((canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2)


def moved(label: Label, move: Move, *, task: str, visible: float) -> Label | None:
    """The label on the other picture, clipped to it; None if less than the share `visible` of its area is left.

    Boxes stay boxes. Of a polygon the part inside is left, as one polygon. Of an oriented box that is cut the corners
    outside are drawn to the border, so that it keeps four. Keypoints outside become unseen.
    """
    if move == STAY:
        return label
    outline = move(label.outline)
    inside = clip(outline)
    whole = area(outline)
    share = area(inside) / whole if whole > TINY else _share_of_bounds(outline)
    if share < visible or len(inside) < 3 or area(_bounding(inside)) <= TINY:
        return None
    if task == "obb":
        inside = outline.clip(0, 1)
    elif task != "segment":
        inside = _bounding(inside)
    return replace(label, outline=inside, keypoints=_moved_keypoints(label.keypoints, move))


def clip(outline: Points) -> Points:
    """The part of a polygon [N, 2] within the picture, as one polygon; empty where there is none.

    Source: Sutherland and Hodgman 1974. Parts that hang together only outside stay joined along the border.
    """
    for axis in (0, 1):
        for bound, sign in ((0.0, 1.0), (1.0, -1.0)):
            outline = _cut(outline, axis, bound, sign)
            if not len(outline):
                return outline
    return outline.clip(0, 1)


def area(outline: Points) -> float:
    """Of a polygon [N, 2], without sign."""
    if len(outline) < 3:
        return 0.0
    x, y = (outline - outline[0]).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def overlap(one: Label, other: Label) -> float:
    """Intersection over union of two labels' boxes."""
    (a, b, c, d), (e, f, g, h) = one.bounds, other.bounds
    shared = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    return shared / max(TINY, (c - a) * (d - b) + (g - e) * (h - f) - shared)


def _cut(outline: Points, axis: int, bound: float, sign: float) -> Points:
    """The part of a polygon on one side of a line across an axis."""
    depth = sign * (outline[:, axis] - bound)
    kept: list[Points] = []
    for here, there, at, beyond in zip(outline, np.roll(outline, -1, 0), depth, np.roll(depth, -1), strict=True):
        if at >= 0:
            kept.append(here)
        if (at >= 0) != (beyond >= 0):
            crossing = here + (there - here) * (at / (at - beyond))
            crossing[axis] = bound
            kept.append(crossing)
    return np.array(kept).reshape(-1, 2)


def _bounding(outline: Points) -> Points:
    (left, top), (right, bottom) = outline.min(axis=0), outline.max(axis=0)
    return box_outline((left, top, right, bottom))


def _share_of_bounds(outline: Points) -> float:
    """For outlines that cross themselves so that their areas cancel."""
    bounds = _bounding(outline)
    return area(clip(bounds)) / max(TINY, area(bounds))


def _moved_keypoints(keypoints: Points | None, move: Move) -> Points | None:
    if keypoints is None:
        return None
    points = move(keypoints[:, :2])
    seen = (keypoints[:, 2] > 0) & ((points >= 0) & (points <= 1)).all(axis=1)
    return np.where(seen[:, None], np.column_stack([points, keypoints[:, 2]]), 0.0)
