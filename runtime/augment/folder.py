"""The new dataset on disk: what was made stays in `generated`, what is kept of it joins the real pictures.

data.yaml                        as Ultralytics reads it (not of a classification)
images/train  labels/train       real pictures, and what was made and kept, each with a .json that says how
images/val    labels/val         real pictures alone, and the same for test
train/CLASS   val/CLASS          instead, where folders are classes
generated                        everything that was made, `bulk.json` and a .json beside each picture
scores.csv  report.html  augment.json
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt.augment.labels import Form, Label
from latentrt.augment.source import SPLITS, Picture, Source
from latentrt.errors import RequestError
from latentrt.files.atomic import remove_parts, storage_errors, write_whole, written_beside

STATE, SCORES, REPORT, DATA = "augment.json", "scores.csv", "report.html", "data.yaml"
GENERATED, PARTS = "generated", "parts"


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One picture that was made, as its .json says.

    Args:
        name: of its file.
        labels: of its objects.
        row: all of the .json.
    """

    name: str
    labels: tuple[Label, ...]
    row: Mapping[str, Any]


class Folder:
    """The folder of a new dataset.

    Args:
        root: where it is.
        form: of its labels.
    """

    def __init__(self, root: Path, form: Form) -> None:
        self.root = root
        self.form = form
        self.generated = root / GENERATED

    def image_folder(self, split: str, inner: str | None = None) -> Path:
        """Where pictures of a split lie."""
        if self.form.task == "classify":
            return self.root / split / (inner or "")
        return self.root / "images" / split

    def write_real(self, source: Source) -> None:
        """Copies the real pictures with their labels, as far as they are not there."""
        with storage_errors(self.root):
            for picture in source.pictures:
                target = self.real_path(picture)
                _settle(picture.path, target, link=False)
                self._write_labels(target, picture.labels)

    def real_path(self, picture: Picture) -> Path:
        """Where a real picture lies in the new dataset."""
        return self.image_folder(picture.split, picture.folder) / f"{picture.name}{picture.path.suffix.lower()}"

    def write_provenance(self, name: str, row: Mapping[str, Any]) -> None:
        """How a picture was made, beside it."""
        _write_if_new(self.generated / Path(name).with_suffix(".json"), json.dumps(row, indent=1, ensure_ascii=False))

    def entry(self, name: str) -> Entry:
        """A picture that was made.

        Raises:
            RequestError: no word of it in the folder.
        """
        path = self.generated / Path(name).with_suffix(".json")
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            return Entry(name, tuple(map(self.form.read, row["labels"])), row)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} cannot be read ({error})", expected="what an earlier run wrote") from error

    def settle(self, entries: Iterable[Entry], *, known: Iterable[str]) -> None:
        """Puts these pictures among the real ones of train.

        Args:
            known: names of all that were ever made; those that are not among the entries are taken out.
        """
        kept = {entry.name: entry for entry in entries}
        with storage_errors(self.root):
            for name in set(known) - set(kept):
                for place in (self.root / "images" / "train", *(self.root / "train").glob("*/")):
                    (place / name).unlink(missing_ok=True)
                    (place / name).with_suffix(".json").unlink(missing_ok=True)
                (self.root / "labels" / "train" / name).with_suffix(".txt").unlink(missing_ok=True)
            for entry in kept.values():
                target = self.image_folder("train", entry.row["folder"]) / entry.name
                self._write_labels(target, entry.labels)
                _settle(self.generated / entry.name, target, link=True)
                about = target.with_suffix(".json")
                _settle(self.generated / about.name, about, link=True)

    def write_data(self, source_extra: Mapping[str, Any], splits: Iterable[str]) -> None:
        """data.yaml, whose paths are relative to it. A loader's cache of earlier labels goes."""
        import yaml

        for cache in (self.root / "labels").glob("*.cache"):
            cache.unlink(missing_ok=True)
        data: dict[str, Any] = {split: f"images/{split}" for split in splits}
        data["names"] = dict(enumerate(self.form.names))
        text = yaml.safe_dump({**data, **source_extra}, sort_keys=False, allow_unicode=True)
        write_whole(self.root / DATA, text.encode())

    def begin(self, state: Mapping[str, Any]) -> None:
        """Says what the folder is, and clears away what a killed run left."""
        with storage_errors(self.root):
            self.generated.mkdir(parents=True, exist_ok=True)
            for part in (self.root, self.generated, *(self.image_folder(split) for split in SPLITS)):
                remove_parts(part)
        write_whole(self.root / STATE, json.dumps(state, indent=1, ensure_ascii=False).encode())

    def _write_labels(self, image: Path, labels: Sequence[Label]) -> None:
        if self.form.task == "classify":
            return
        path = self.root / "labels" / image.parent.name / f"{image.stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_if_new(path, "".join(f"{row}\n" for row in self.form.rows(labels)))


def read_state(root: Path) -> dict[str, Any]:
    """What `augment.json` says.

    Raises:
        RequestError: no such folder.
    """
    path = root / STATE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{path} cannot be read ({error})", expected="a folder that augment made", hint="give BUNDLE and --yolo"
        ) from error


def form_of(state: Mapping[str, Any]) -> Form:
    """The form of the labels that `augment.json` says."""
    points = state["keypoints"]
    return Form(state["task"], tuple(state["names"]), None if points is None else (points[0], points[1]))


def _settle(source: Path, target: Path, *, link: bool) -> None:
    """The file at another place, as a link to the same bytes where that is allowed and possible."""
    if target.exists():
        if link and target.samefile(source):
            return
        if not link and target.stat().st_size == source.stat().st_size:
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(target) as beside:
        if link:
            with suppress(OSError):
                os.link(source, beside)
        if not beside.exists():
            shutil.copyfile(source, beside)


def _write_if_new(path: Path, text: str) -> None:
    with suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return
    write_whole(path, text.encode())
