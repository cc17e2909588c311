"""Prompts from templates: alternatives in braces, and what stands for names of classes.

classes:
  circle: a {red|blue|2::green} $name on a {white|black} background
  "*": a photo of a $name
picture: a photo of $names, {at dusk|in the rain}
background: an empty {street|meadow}
captions: {000001.jpg: a dog in front of a house}
words: {000001.jpg: {weather: sunny}, "*": {weather: cloudy}}
negative: blurry

`{a|b}` is one of the texts, `2::` counts one twice, braces may hold braces, and `\\{` is a brace.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from latentrt.errors import RequestError

EVERY = "*"
USUAL = "a photo of a $name"
_MARKS = re.compile(r"\\[{}|]|[{}|]|[^\\{}|]+|\\")
_NAMED = re.compile(r"\$(?:\$|([_a-z][_a-z0-9]*))", re.ASCII | re.IGNORECASE)
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d+)?)::")


@dataclass(frozen=True, slots=True)
class Templates:
    """What is said of objects and pictures.

    Args:
        classes: a template by the name of a class; `*` is for all others.
        picture: of a whole picture; None takes those of its classes, joined by commas.
        background: of pictures without objects, and of what is around objects.
        captions: of single pictures, by file name, instead of all that.
        words: of single pictures, by file name: what `$weather` and the like stand for; `*` is for all others.
        negative: what to steer away from.
    """

    classes: Mapping[str, str] = field(default_factory=lambda: {EVERY: USUAL})
    picture: str | None = None
    background: str | None = None
    captions: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    negative: str = ""

    def check(self, names: Iterable[str], *, train: Sequence[str] = (), others: Iterable[str] = ()) -> None:
        """What can be wrong between templates and a dataset.

        Args:
            names: of the classes.
            train: names of the files that pictures are made of; an empty one stands for no file.
            others: names of the dataset's other files.

        Raises:
            RequestError: a class without a template, a template without a class, captions or words of a file that
                there is not, or a `$word` that nothing stands for.
        """
        listed = list(names)
        missing = [name for name in listed if name not in self.classes and EVERY not in self.classes]
        if missing:
            raise RequestError(f"no template for {', '.join(missing[:9])}", expected="one for each class, or *")
        unknown = [name for name in self.classes if name not in (*listed, EVERY)]
        if unknown:
            raise RequestError(f"a template for {unknown[0]}", expected=f"one of the classes: {', '.join(listed)}")
        files = {*train, *others, EVERY}
        lost = next((name for name in (*self.captions, *self.words) if name not in files), None)
        if lost is not None and len(files) > 1:
            raise RequestError(f"captions or words of {lost}", expected="the name of a picture of the dataset")
        self._check_words(train)

    def _check_words(self, train: Sequence[str]) -> None:
        """Raises RequestError for a `$word` that nothing stands for in a prompt of these files."""
        of_objects = {f"class {name}": template for name, template in self.classes.items()}
        if self.picture is not None:
            of_objects["picture"] = self.picture
        background = {} if self.background is None else {"background": self.background}
        for file in train:
            known = set(self._words(file))
            own = {"caption": self.captions[file]} if file in self.captions else {}
            rows = [(background, known), (own | (of_objects if file else {}), known | {"name", "names"})]
            for templates, there in rows:
                for what, template in templates.items():
                    lost = sorted(set(_NAMED.findall(template)) - {""} - there)
                    if lost:
                        of = f"the picture {file}" if file else "a picture without a source"
                        raise RequestError(
                            f"the template of {what} says ${lost[0]}, which stands for nothing in {of}",
                            expected=f"words with {lost[0]} for its file, or for all others, *",
                        )

    def of_class(self, name: str, rng: np.random.Generator, *, file: str = "") -> str:
        """A prompt for one object, of the picture of that file."""
        template = self.classes[name] if name in self.classes else self.classes[EVERY]
        return self._drawn(template, file, rng, name=name, names=name)

    def of_picture(self, names: Iterable[str], rng: np.random.Generator, *, file: str = "") -> str:
        """A prompt for a picture that shows objects of these classes."""
        distinct = list(dict.fromkeys(names))
        words = {"names": _joined(distinct), "name": distinct[0] if distinct else ""}
        if file in self.captions:
            return self._drawn(self.captions[file], file, rng, **words)
        if not distinct:
            return self.of_background(rng, file=file) or ""
        if self.picture is not None:
            return self._drawn(self.picture, file, rng, **words)
        return ", ".join(self.of_class(name, rng, file=file) for name in distinct)

    def of_background(self, rng: np.random.Generator, *, file: str = "") -> str | None:
        """A prompt for a picture without objects; None where there is no template."""
        return None if self.background is None else self._drawn(self.background, file, rng)

    def _drawn(self, template: str, file: str, rng: np.random.Generator, **words: str) -> str:
        return drawn(template, rng, **{**self._words(file), **words})

    def _words(self, file: str) -> Mapping[str, str]:
        return self.words.get(file, self.words.get(EVERY, {}))


def read_templates(path: Path) -> Templates:
    """Templates from a file of YAML.

    Raises:
        RequestError: no such file, a key that is not known, or a template that cannot be read.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"{path} cannot be read ({' '.join(str(error).split())})", expected="YAML") from error
    known = ("classes", "picture", "background", "captions", "words", "negative")
    if not isinstance(data, dict) or (unknown := sorted(set(map(str, data)) - {*known})):
        what = f"the key '{unknown[0]}'" if isinstance(data, dict) else "no keys"
        raise RequestError(f"{path} holds {what}", expected=f"some of {', '.join(known)}")
    given = {key: value for key, value in data.items() if value is not None}
    words = given.get("words", {})
    if not isinstance(words, dict) or not all(isinstance(row, dict) for row in words.values()):
        raise RequestError(f"words of {path} are {words!r:.80}", expected="words by the name of a file")
    given["words"] = {name: {str(key): str(value) for key, value in row.items()} for name, row in words.items()}
    for key, value in given.items():
        for template in _texts(key, value, path):
            _check_template(template, key, path)
    if "classes" in given:
        given["classes"] = {str(name): _one(text) for name, text in given["classes"].items()}
    return Templates(**given)


def drawn(template: str, rng: np.random.Generator, /, **words: str) -> str:
    """A prompt of a template: the alternatives drawn, the words filled in.

    Raises:
        RequestError: braces that do not match.
    """
    tokens = _MARKS.findall(template)
    text, rest = _sequence(tokens, 0, rng)
    if rest != len(tokens):
        raise RequestError(f"a | or }} outside braces in '{template}'", expected="{one|another}")
    return " ".join(Template(text).safe_substitute(words).split())


def _sequence(tokens: list[str], at: int, rng: np.random.Generator) -> tuple[str, int]:
    """The text up to a mark that ends it, and where that stands."""
    parts: list[str] = []
    while at < len(tokens) and tokens[at] not in ("|", "}"):
        if tokens[at] == "{":
            part, at = _choice(tokens, at + 1, rng)
        else:
            part = tokens[at][1:] if len(tokens[at]) == 2 and tokens[at][0] == "\\" else tokens[at]
            at += 1
        parts.append(part)
    return "".join(parts), at


def _choice(tokens: list[str], at: int, rng: np.random.Generator) -> tuple[str, int]:
    options: list[str] = []
    while True:
        option, at = _sequence(tokens, at, rng)
        options.append(option)
        if at == len(tokens):
            raise RequestError(f"a brace that is not closed after '{options[0]}'", expected="{one|another}")
        at += 1
        if tokens[at - 1] == "}":
            break
    weights = [float(match[1]) if (match := _WEIGHT.match(option)) else 1.0 for option in options]
    if not sum(weights):
        raise RequestError("alternatives that all count 0", expected="one above 0")
    index = int(rng.choice(len(options), p=np.array(weights) / sum(weights)))
    return _WEIGHT.sub("", options[index], count=1), at


def _texts(key: str, value: Any, path: Path) -> list[str]:
    """Every template of a key."""
    if key == "words":
        return []
    if key in ("classes", "captions"):
        if not isinstance(value, dict):
            raise RequestError(f"{key} of {path} are {value!r:.80}", expected="texts by name")
        values = [text for entry in value.values() for text in (entry if isinstance(entry, list) else [entry])]
    else:
        values = [value]
    wrong = next((text for text in values if not isinstance(text, str)), None)
    if wrong is not None or not values:
        raise RequestError(f"{key} of {path} holds {wrong!r:.80}", expected="texts")
    return values


def _one(value: str | list[str]) -> str:
    """Several templates as one of alternatives."""
    return value if isinstance(value, str) else "{" + "|".join(value) + "}"


def _check_template(template: str, key: str, path: Path) -> None:
    try:
        drawn(template, np.random.default_rng(0))
    except RequestError as error:
        raise RequestError(f"{key} of {path}: {error.found}", expected=error.expected) from error


def _joined(names: list[str]) -> str:
    return " and ".join(([", ".join(names[:-1])] if names[1:] else []) + names[-1:])
