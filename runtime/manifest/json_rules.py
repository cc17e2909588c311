"""JSON that somebody else wrote, against the rules of `bundle.schema.json`: each value is checked before it is used.

It reads the part of JSON Schema that this file uses, and its own `format`s for names (`latentrt.files.names`). The
first value that breaks a rule is named with its path, what it is and what was expected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, reduce
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from latentrt.errors import BundleError
from latentrt.files.names import name_problem, path_problem

Rule: TypeAlias = Mapping[str, Any]
_Keys: TypeAlias = tuple[str | int, ...]
_Problem: TypeAlias = tuple[_Keys, str, str]

LARGEST_BYTES = 256 << 20
"""A manifest of a quantised model with thousands of layers has some megabytes."""
_SHOWN = 60
_WORD = re.compile(r"\w[\w-]*", re.ASCII)
_TYPES: Mapping[str, Callable[[object], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
_WORDS = {"object": "an object", "array": "a list", "string": "text", "boolean": "true or false", "null": "null"}
_FORMATS = {"bundle-path": path_problem, "bundle-name": name_problem}


@cache
def schema() -> Rule:
    """The rules that ship with the package."""
    loaded: Rule = json.loads((files("latentrt.manifest") / "bundle.schema.json").read_text(encoding="utf-8"))
    return loaded


def read_json(path: Path) -> Any:
    """The value in a file."""
    try:
        if (size := path.stat().st_size) > LARGEST_BYTES:
            raise ValueError(f"{size} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be written again
    except (ValueError, OSError, RecursionError) as error:
        raise BundleError(
            f"{path} cannot be read ({_reason(error)})", expected="JSON", hint="copy or export the bundle again"
        ) from error
    return value


def check(
    value: object, rule: Rule | str, *, file: Path, where: str = "", informs: bool = False, finite: bool = True
) -> None:
    """Checks a value and all that is in it.

    Args:
        value: as `json` reads it.
        rule: a rule, or the name of one among the schema's definitions.
        file: for messages.
        where: path of the value within the file.
        informs: nothing that runs acts on it: what is missing, and numbers that are not finite, pass.
        finite: numbers that are not finite are refused; measured ones may be infinite, such as the dB of no difference.

    Raises:
        BundleError: the first value that breaks a rule.
    """
    top: Rule = {"$ref": f"#/$defs/{rule}"} if isinstance(rule, str) else rule
    for place, found, expected in _problems(value, top, (), informs, finite):
        raise broken(file, reduce(below, place, where), found, expected)


def broken(file: Path, where: str, found: str, expected: str) -> BundleError:
    """The error of a value: its path, what it is or that it is missing, and what was expected."""
    return BundleError(
        f"{file}: {f'{where} ' if where else ''}{found}", expected=expected, hint="copy or export the bundle again"
    )


def shown(value: object) -> str:
    """A value for messages: short, and in plain letters."""
    text = json.dumps(value, default=str)
    return f"is {text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'}"


def below(where: str, key: str | int) -> str:
    """Path of a member: `a.b[0]`, and `a["b c"]` where it is no plain word."""
    if isinstance(key, int):
        return f"{where}[{key}]"
    if _WORD.fullmatch(key):
        return f"{where}.{key}" if where else key
    return f"{where}[{json.dumps(key[:_SHOWN])}]"


def _resolved(rule: Rule) -> Rule:
    """The definition that a rule refers to, with what the rule adds."""
    return {**schema()["$defs"][rule["$ref"].removeprefix("#/$defs/")], **rule}


def _problems(value: Any, rule: Rule, where: _Keys, informs: bool, finite: bool) -> Iterator[_Problem]:
    """(keys that lead to it, found, expected) of what breaks the rule."""
    if "$ref" in rule:
        rule = _resolved(rule)
    informs = informs or rule.get("$comment") == "informs"
    if "anyOf" in rule:
        chosen = next((one for one in rule["anyOf"] if _fits(value, one)), None)
        if chosen is None:
            yield where, shown(value), " or ".join(_expected(one) for one in rule["anyOf"])
            return
        yield from _problems(value, chosen, where, informs, finite)
        return
    if not _fits(value, rule) or (isinstance(value, float) and finite and not informs and not math.isfinite(value)):
        yield where, shown(value), _expected(rule)
    elif isinstance(value, str) and (problem := _FORMATS[rule["format"]](value) if _named(rule) else None):
        yield where, shown(value), problem
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(item, rule.get("items", {}), (*where, index), informs, finite)
    elif isinstance(value, dict):
        yield from _members(value, rule, where, informs, finite)


def _members(value: Mapping[str, Any], rule: Rule, where: _Keys, informs: bool, finite: bool) -> Iterator[_Problem]:
    known, others = rule.get("properties", {}), rule.get("additionalProperties", True)
    if not informs and rule.get("$comment") != "late":  # late: missed where it is needed
        further = (name for key, names in rule.get("dependentRequired", {}).items() if key in value for name in names)
        for name in (*rule.get("required", ()), *further):
            if name not in value:
                yield (*where, name), "is missing", _expected(known.get(name, others))
    for name, member in value.items():
        place = (*where, name)
        if "propertyNames" in rule:
            yield from (
                (place, "is a name", e) for _, _, e in _problems(name, rule["propertyNames"], place, informs, finite)
            )
        if name in known:
            yield from _problems(member, known[name], place, informs, finite)
        elif others is False:
            yield place, "is not known", f"one of {', '.join(known)}"
        elif others is not True:
            yield from _problems(member, others, place, informs, finite)


def _named(rule: Rule) -> bool:
    return rule.get("format") in _FORMATS


def _fits(value: Any, rule: Rule) -> bool:
    """Whether the value itself is of the rule's type and range, whatever is in it."""
    if "$ref" in rule:
        rule = _resolved(rule)
    if "const" in rule and value != rule["const"]:
        return False
    if "enum" in rule and not any(value == one and type(value) is type(one) for one in rule["enum"]):
        return False
    if (types := _types(rule)) and not any(_TYPES[name](value) for name in types):
        return False
    if _TYPES["number"](value):
        return bool(
            (value >= rule.get("minimum", value))
            & (value <= rule.get("maximum", value))
            & ("exclusiveMinimum" not in rule or value > rule["exclusiveMinimum"])
        ) or math.isnan(value)
    if isinstance(value, str):
        return "pattern" not in rule or _named(rule) or re.search(rule["pattern"], value) is not None
    if isinstance(value, list):
        return bool(rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)))
    if isinstance(value, dict):
        return bool(rule.get("minProperties", 0) <= len(value) <= rule.get("maxProperties", len(value)))
    return True


def _types(rule: Rule) -> list[str]:
    types = rule.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def _expected(rule: Rule) -> str:
    if "$ref" in rule:
        rule = _resolved(rule)
    if "anyOf" in rule:
        return " or ".join(_expected(one) for one in rule["anyOf"])
    if "const" in rule:
        return json.dumps(rule["const"])
    if "enum" in rule:
        return "one of " + ", ".join(json.dumps(one) for one in rule["enum"])
    if _named(rule):
        return str(rule["description"])
    return " or ".join(_typed(name, rule) for name in _types(rule)) or "a value"


def _typed(name: str, rule: Rule) -> str:
    if name in ("integer", "number"):
        return f"a {'whole ' if name == 'integer' else ''}number{_range(rule)}"
    if name == "string" and "pattern" in rule:
        return f"text of the form {rule['pattern']}"
    if name == "array" and ("minItems" in rule or "maxItems" in rule):
        least, most = rule.get("minItems", 0), rule.get("maxItems")
        return f"a list of {least if least == most else f'{least} to {most}' if most else f'at least {least}'}"
    return f"{_WORDS[name]}{' that is not empty' if name == 'object' and 'minProperties' in rule else ''}"


def _range(rule: Rule) -> str:
    low, high, above = rule.get("minimum"), rule.get("maximum"), rule.get("exclusiveMinimum")
    start = f" above {above}" if above is not None else f" from {low}" if low is not None else ""
    return f"{start} to {high}" if start and high is not None else start


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
