"""A dataset as people have it for Ultralytics: `data.yaml` with pictures and labels, or a folder a class."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentrt.augment.labels import TASKS, BadFile, Form, Label, label_lines, read_label_file
from latentrt.bundle import sha256_file
from latentrt.errors import RequestError
from latentrt.images.framing import Size

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset(["bmp", "dng", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp", "heic", "avif"])
"""Of pictures, as the loader knows them."""

LEAST_PX = 10  # the loader rejects smaller sides
_OTHER_NAMES = {"val": ("validation", "valid")}
_ORIENTATION, _TURNED = 274, (5, 6, 7, 8)  # the field of EXIF, and its values that swap the sides
STEM_BYTES = 120


@dataclass(frozen=True, slots=True)
class Picture:
    """One real picture.

    Args:
        path: of its file.
        name: in the new dataset, without suffix; no other picture has it.
        split: one of `SPLITS`.
        size: (width, height) in pixels, upright.
        labels: its objects.
        folder: its class, where folders are classes.
    """

    path: Path
    name: str
    split: str
    size: Size
    labels: tuple[Label, ...] = ()
    folder: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A whole dataset.

    Args:
        form: of its labels.
        pictures: of every split, in order.
        bad: rows and pictures that cannot be used. They are in none of `pictures`.
        extra: other keys of its data.yaml, such as `flip_idx`.
    """

    form: Form
    pictures: tuple[Picture, ...]
    bad: tuple[BadFile, ...]
    extra: Mapping[str, Any]

    def of(self, split: str) -> list[Picture]:
        return [picture for picture in self.pictures if picture.split == split]


def read_source(path: Path, *, task: str | None = None) -> Source:
    """Reads and checks every label and every picture.

    Args:
        path: a data.yaml, or for classification the folder that holds `train`.
        task: None is told from data.yaml and the labels.

    Raises:
        RequestError: no such dataset, one without pictures, or one whose task cannot be told.
    """
    if task is not None and task not in TASKS:
        raise RequestError(f"task '{task}'", expected=f"one of {', '.join(TASKS)}")
    if path.is_dir():
        yamls = sorted(path.glob("*.yaml")) if task != "classify" else []
        if not yamls:
            return _read_folders(path)
        path = yamls[0]
    if task == "classify":
        raise RequestError(f"{path} for classification", expected="the folder that holds train, with a folder a class")
    return _read_yaml(path, task)


def split_off(source: Source, share: float, *, order: Iterable[float]) -> Source:
    """Moves a share of the training pictures to validation, whole pictures with all that is made of them.

    Args:
        share: of the training pictures, at least one of them.
        order: a number for each training picture; those of the smallest are moved.
    """
    train = source.of("train")
    count = max(1, round(share * len(train)))
    if count >= len(train):
        raise RequestError(f"{len(train)} training pictures, {count} of them for validation", expected="more pictures")
    ranked = sorted(zip(order, train, strict=True), key=lambda pair: pair[0])
    names = {picture.name for _, picture in ranked[:count]}
    pictures = (replace(each, split="val") if each.name in names else each for each in source.pictures)
    return replace(source, pictures=tuple(pictures))


def held_out(source: Source) -> set[str]:
    """Names of training pictures whose very bytes are in val or test as well; nothing is made of those."""
    sizes: dict[int, set[Path]] = {}
    for picture in source.pictures:
        if picture.split != "train":
            sizes.setdefault(picture.path.stat().st_size, set()).add(picture.path)
    digests: dict[int, set[str]] = {}
    found = set()
    for picture in source.of("train"):
        size = picture.path.stat().st_size
        if size in sizes:
            if size not in digests:
                digests[size] = {sha256_file(path) for path in sizes[size]}
            if sha256_file(picture.path) in digests[size]:
                found.add(picture.name)
    return found


def _read_yaml(path: Path, task: str | None) -> Source:
    data = _mapping(path)
    keypoints = _keypoints(data, path)
    files = {split: _split_files(data, split, path) for split in SPLITS}
    if not files["train"]:
        raise RequestError(f"no pictures for train in {path}", expected="a folder of pictures, a list of them")
    everything = [file for split in SPLITS for file in files[split]]
    form = Form(_task(task, keypoints, everything, path), _names(data, path), keypoints)
    names, bad, pictures = _Names(), list[BadFile](), list[Picture]()
    for split in SPLITS:
        for file in files[split]:
            labels, wrong = read_label_file(label_path(file), form)
            picture = _picture(file, names, split, bad)
            bad += wrong
            if picture is not None:
                pictures.append(replace(picture, labels=tuple(labels)))
    known = {"path", "names", "nc", "download", "yaml_file", *SPLITS, *_OTHER_NAMES["val"]}
    extra = {str(key): value for key, value in data.items() if key not in known}
    return Source(form, tuple(pictures), tuple(bad), extra)


def _read_folders(root: Path) -> Source:
    train = root / "train"
    if not train.is_dir():
        raise RequestError(f"no data.yaml and no folder train in {root}", expected="a dataset for Ultralytics")
    classes = tuple(sorted(folder.name for folder in train.iterdir() if folder.is_dir()))
    if not classes:
        raise RequestError(f"no folders in {train}", expected="a folder a class")
    names, bad, pictures = _Names(), list[BadFile](), list[Picture]()
    for split in SPLITS:
        folder = next((root / name for name in (split, *_OTHER_NAMES.get(split, ())) if (root / name).is_dir()), None)
        for file in _in_folder(folder) if folder is not None else []:
            inner = file.relative_to(folder or root).parts[0]
            picture = _picture(file, names, split, bad)
            if inner not in classes:
                bad.append(BadFile(file, None, RequestError(f"class {inner}", expected=f"one of {', '.join(classes)}")))
            elif picture is not None:
                pictures.append(replace(picture, folder=inner))
    return Source(Form("classify", classes), tuple(pictures), tuple(bad), {})


def label_path(picture: Path) -> Path:
    """Where the loader looks for a picture's labels: the last folder `images` of its path is `labels` there."""
    parts = list(picture.parts)
    inner = [index for index, part in enumerate(parts[:-1]) if part == "images" and index]
    if inner:
        parts[inner[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


class _Names:
    """Names that are given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def new(self, stem: str) -> str:
        stem = stem.encode()[:STEM_BYTES].decode(errors="ignore")
        name, count = stem, 1
        while name.casefold() in self._given:
            count += 1
            name = f"{stem}-{count}"
        self._given.add(name.casefold())
        return name


def _picture(path: Path, names: _Names, split: str, bad: list[BadFile]) -> Picture | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.verify()  # after it, Pillow wants the file opened anew
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except FileNotFoundError:
        bad.append(BadFile(path, None, RequestError("no such picture", expected="what the list names")))
        return None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        bad.append(BadFile(path, None, RequestError(f"cannot be read ({error})", expected="a whole picture")))
        return None
    if min(width, height) < LEAST_PX:
        wrong = RequestError(f"{width}x{height} px", expected=f"sides of at least {LEAST_PX} px")
        bad.append(BadFile(path, None, wrong))
        return None
    return Picture(path, names.new(path.stem), split, (height, width) if turned else (width, height))


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RequestError(f"no dataset at {path}", expected="a data.yaml, or a folder with train in it") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"{path} cannot be read ({' '.join(str(error).split())})", expected="YAML") from error
    if not isinstance(data, dict):
        raise RequestError(f"{path} holds no keys", expected="train, val and names")
    return data


def _split_files(data: Mapping[str, Any], split: str, path: Path) -> list[Path]:
    """The pictures of a split, in order."""
    value = next((data[key] for key in (split, *_OTHER_NAMES.get(split, ())) if data.get(key)), None)
    if value is None:
        return []
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise RequestError(f"{split} of {path} is {value!r:.80}", expected="a path, or a list of them")
    found = [file for entry in entries for file in _files(_resolved(data, entry, path), split, path)]
    return sorted(dict.fromkeys(found))


def _resolved(data: Mapping[str, Any], entry: str, path: Path) -> Path:
    """Where an entry of data.yaml lies: by its `path` or its own folder, and without `../` as the loader tries too."""
    given = data.get("path")
    roots = [path.parent / str(given), Path(str(given))] if given else [path.parent]
    tries = [root / name for root in roots for name in (entry, entry.removeprefix("../"))]
    there = next((place for place in tries if place.exists()), None)
    if there is None:
        raise RequestError(f"{path} names {entry}, and {tries[0]} is not there", expected="a path that is")
    return there


def _files(place: Path, split: str, path: Path) -> list[Path]:
    if place.is_dir():
        found = _in_folder(place)
        if not found:
            raise RequestError(f"no pictures in {place}, {split} of {path}", expected=", ".join(sorted(SUFFIXES)))
        return found
    try:
        lines = [line.strip() for _, line in label_lines(place)]
    except RequestError as error:
        raise RequestError(f"{place}, {split} of {path}: {error}") from error
    listed = (place.parent / line[2:] if line.startswith("./") else Path(line) for line in lines)
    return [file for file in listed if file.suffix[1:].lower() in SUFFIXES]


def _in_folder(place: Path) -> list[Path]:
    return sorted(file for file in place.rglob("*.*") if file.suffix[1:].lower() in SUFFIXES and file.is_file())


def _names(data: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names, count = data.get("names"), data.get("nc")
    if names is None and isinstance(count, int) and count > 0:
        return tuple(f"class_{index}" for index in range(count))
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise RequestError(f"names of {path} have the keys {list(names)[:9]}", expected="0, 1, 2, ... without gaps")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise RequestError(f"no names in {path}", expected="names: [cat, dog] or names: {0: cat, 1: dog}")
    if count is not None and count != len(names):
        raise RequestError(f"nc is {count} in {path}, and there are {len(names)} names", expected="as many")
    return tuple(map(str, names))


def _keypoints(data: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    match data.get("kpt_shape"):
        case None:
            return None
        case [int(count), int(numbers)] if count > 0 and numbers in (2, 3):
            return count, numbers
        case other:
            raise RequestError(f"kpt_shape of {path} is {other!r:.80}", expected="such as [17, 3] or [4, 2]")


def _task(given: str | None, keypoints: tuple[int, int] | None, files: Sequence[Path], path: Path) -> str:
    """What the labels are of, from the number of their columns; nine may be corners or a polygon."""
    if given is not None:
        if (given == "pose") != (keypoints is not None):
            raise RequestError(f"task {given}, kpt_shape {keypoints} in {path}", expected="kpt_shape for pose, only")
        return given
    if keypoints is not None:
        return "pose"
    columns = Counter(len(line.split()) for file in files for _, line in _quiet_lines(label_path(file)))
    if set(columns) == {9}:
        raise RequestError(
            f"every label of {path} has 9 columns: oriented boxes or polygons of four points",
            expected="one of them",
            hint="say which with task obb or task segment",
        )
    polygons = sum(times for count, times in columns.items() if count > 6)
    return "segment" if polygons > columns.total() / 2 else "detect"


def _quiet_lines(path: Path) -> list[tuple[int, str]]:
    try:
        return label_lines(path)
    except RequestError:  # said when the file is read for good
        return []
