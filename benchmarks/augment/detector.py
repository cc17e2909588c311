"""A small detector: a box and a class for each cell of a grid, trained with the usual flips, shifts, scales and shades.

Per cell of 16 px: a score a class (focal loss, Lin et al. 2017, equation 5) and the distances from the cell's centre to
the sides of a box (1 - intersection over union). A cell is an object's if its centre lies in the middle half of its
box. Average precision is that of COCO: the area under precision made monotone, over intersections of 0.5 to 0.95.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 16  # pixels a cell
WIDTHS = (16, 32, 64, 96)
MIDDLE = 0.5  # share of a box, about its centre, in which cells are its own
BATCH, RATE, DECAY = 16, 2e-3, 1e-2
LEAST_SCORE, SAME = 0.05, 0.6  # of a detection; intersection over union from which the weaker of two goes
RARE = -4.0  # logit of an object's chance at the beginning
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
MOST_SCALE, MOST_SHIFT, MOST_SHADE = 0.2, 0.1, 0.2


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures and their objects.

    Args:
        pixels: uint8 [N, 3, H, W], all of one size.
        classes: of each picture's objects, int64 [n].
        boxes: of them, float32 [n, 4]: left, top, right, bottom in pixels.
    """

    pixels: Tensor
    classes: Sequence[Tensor]
    boxes: Sequence[Tensor]


class Detector(nn.Module):
    """uint8 pixels as float [N, 3, H, W] / 255 to scores [N, classes, h, w] and sides [N, 4, h, w] in cells."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outer), nn.SiLU()]
        for _ in range(2):
            last = WIDTHS[-1]
            layers += [nn.Conv2d(last, last, 3, padding=1, bias=False), nn.BatchNorm2d(last), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.scores = nn.Conv2d(WIDTHS[-1], classes, 1)
        self.sides = nn.Conv2d(WIDTHS[-1], 4, 1)
        self.rare = nn.Parameter(torch.full((classes, 1, 1), RARE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.scores(features) + self.rare, functional.softplus(self.sides(features))


def measured(given: Pictures, held_out: Pictures, classes: int, steps: int, seed: int) -> tuple[float, float]:
    """What one training comes to, with one thread: mAP at 0.5, and the mean of 0.5 to 0.95."""
    torch.set_num_threads(1)
    at_half, over_all = average_precision(trained(given, classes, steps=steps, seed=seed), held_out, classes)
    return round(at_half, 4), round(over_all, 4)


def trained(pictures: Pictures, classes: int, *, steps: int, seed: int) -> Detector:
    """A detector after so many steps, whatever the number of pictures."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Detector(classes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < BATCH:
            order += rng.permutation(len(pictures.pixels)).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        x, targets = changed(pictures, chosen, rng)
        scores, sides = model(x)
        loss = _loss(scores, sides, targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return model.eval()


def changed(
    pictures: Pictures, chosen: Sequence[int], rng: np.random.Generator
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """A batch flipped, scaled, shifted and shaded at random, with the objects whose centres are left in the picture."""
    x = pictures.pixels[list(chosen)].float() / 255
    count, _, height, width = x.shape
    flips = rng.random(count) < 0.5
    scales = 1 + rng.uniform(-MOST_SCALE, MOST_SCALE, count)
    shifts = rng.uniform(-MOST_SHIFT, MOST_SHIFT, (count, 2))
    signs = np.where(flips, -1.0, 1.0)
    moves = np.zeros((count, 2, 3))  # from the new picture's coordinates, -1 to 1, to the old one's
    moves[:, 0, 0], moves[:, 1, 1] = signs / scales, 1 / scales
    moves[:, 0, 2], moves[:, 1, 2] = -signs * 2 * shifts[:, 0] / scales, -2 * shifts[:, 1] / scales
    grid = functional.affine_grid(torch.tensor(moves, dtype=torch.float32), list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    shades = torch.tensor(1 + rng.uniform(-MOST_SHADE, MOST_SHADE, (count, 3, 1, 1)), dtype=torch.float32)
    size = torch.tensor([width, height] * 2, dtype=torch.float32)
    targets = []
    for index, picture in enumerate(chosen):
        boxes = pictures.boxes[picture] / size * 2 - 1
        if flips[index]:
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1])
        boxes = boxes * float(scales[index]) + torch.tensor([*shifts[index]] * 2, dtype=torch.float32) * 2
        inside = ((boxes[:, :2] + boxes[:, 2:]).abs() < 2).all(dim=1)
        targets.append((pictures.classes[picture][inside], ((boxes[inside].clamp(-1, 1) + 1) / 2 * size)))
    return (x * shades).clamp(0, 1), targets


def _loss(scores: Tensor, sides: Tensor, targets: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    wanted, given = torch.zeros_like(scores), torch.zeros_like(sides)
    x, y = _centres(scores)
    for index, (classes, corners) in enumerate(targets):
        for category, corner in zip(classes.tolist(), corners, strict=True):
            left, top, right, bottom = corner.tolist()
            across, down = (max(STRIDE, MIDDLE * side) / 2 for side in (right - left, bottom - top))
            near = ((x - (left + right) / 2).abs() <= across) & ((y - (top + bottom) / 2).abs() <= down)
            wanted[index, :, near] = functional.one_hot(torch.tensor(category), scores.shape[1]).float()[:, None]
            given[index, :, near] = corner[:, None]
    chance = scores.sigmoid()
    missed = wanted * (1 - chance) + (1 - wanted) * chance
    entropy = functional.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    focal = ((0.25 * wanted + 0.75 * (1 - wanted)) * missed**2 * entropy).sum()
    own = wanted.amax(dim=1) > 0
    overlaps = _overlaps(_boxes(sides).movedim(1, -1)[own], given.movedim(1, -1)[own])
    return (focal + (1 - overlaps).sum()) / own.sum().clamp(min=1)


def _centres(like: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of the cells' centres in pixels, [h, w]."""
    rows, columns = torch.arange(like.shape[-2]), torch.arange(like.shape[-1])
    y, x = torch.meshgrid((rows + 0.5) * STRIDE, (columns + 0.5) * STRIDE, indexing="ij")
    return x, y


def _boxes(sides: Tensor) -> Tensor:
    """Distances [N, 4, h, w] as left, top, right, bottom in pixels."""
    x, y = _centres(sides)
    left, top, right, bottom = (sides * STRIDE).unbind(dim=1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=1)


def _overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersections over unions of boxes [..., 4], which broadcast."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = (one[..., 2:] - one[..., :2]).prod(dim=-1) + (other[..., 2:] - other[..., :2]).prod(dim=-1)
    return shared / (areas - shared).clamp(min=1e-9)


@torch.inference_mode()
def detections(model: nn.Module, pixels: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Classes, scores and boxes of each picture, the surest first."""
    scores, sides = model(pixels.float() / 255)
    found = []
    for chance, boxes in zip(scores.sigmoid().flatten(2), _boxes(sides).flatten(2), strict=True):
        best, classes = chance.max(dim=0)
        order = best.argsort(descending=True)
        order = order[best[order] > LEAST_SCORE]
        kept: list[int] = []
        for index in order.tolist():
            same = [k for k in kept if classes[k] == classes[index]]
            if not same or _overlaps(boxes[:, same].T, boxes[:, index]).max() < SAME:
                kept.append(index)
        found.append((classes[kept], best[kept], boxes[:, kept].T))
    return found


def average_precision(model: nn.Module, pictures: Pictures, classes: int) -> tuple[float, float]:
    """mAP at an intersection over union of 0.5, and the mean of 0.5 to 0.95."""
    found = detections(model, pictures.pixels)
    table = np.array([[_precision(found, pictures, each, bound) for bound in THRESHOLDS] for each in range(classes)])
    return float(table[:, 0].mean()), float(table.mean())


def _precision(
    found: Sequence[tuple[Tensor, Tensor, Tensor]], pictures: Pictures, category: int, bound: float
) -> float:
    """The average precision of a class."""
    rows: list[tuple[float, bool]] = []
    count = 0
    for (classes, scores, boxes), given, corners in zip(found, pictures.classes, pictures.boxes, strict=True):
        left = corners[given == category]
        count += len(left)
        for score, box in zip(scores[classes == category].tolist(), boxes[classes == category], strict=True):
            overlaps = _overlaps(left, box)
            hit = bool(len(left)) and bool(overlaps.max() >= bound)
            if hit:
                left = torch.cat([left[: int(overlaps.argmax())], left[int(overlaps.argmax()) + 1 :]])
            rows.append((score, hit))
    hits = np.array([hit for _, hit in sorted(rows, key=lambda row: -row[0])], dtype=np.float64)
    return area_under(hits, count)


def area_under(hits: np.ndarray, count: int) -> float:
    """The area under precision over recall, precision being the best at that recall or above.

    Args:
        hits: 1 or 0 for each detection, the surest first.
        count: how many objects there are.
    """
    if not count or not len(hits):
        return 0.0
    true = hits.cumsum()
    precision = np.maximum.accumulate((true / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((precision * hits).sum() / count)
