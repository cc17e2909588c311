"""Parsing: errors as those of the library, and the types of arguments that several commands take."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from latentrt.errors import RequestError
from latentrt.lora import Lora


class Parser(argparse.ArgumentParser):
    """A parser that raises RequestError instead of printing and exiting, and takes options at any place.

    Attributes:
        essential: the options that `--help` shows; the others are shown by `--help-all`, which is there then. None is
            all of them.
    """

    essential: Sequence[str] | None = None

    def error(self, message: str) -> NoReturn:
        raise RequestError(message, hint=f"see: {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """What the arguments say; options may stand before, between and behind the others.

        argparse by itself gives all positional arguments what stands before the first option, and an optional one
        nothing.
        """
        nested = any(a.nargs in (argparse.PARSER, argparse.REMAINDER) for a in self._get_positional_actions())
        return self.parse_args(arguments) if nested else self.parse_intermixed_args(arguments)

    def show_essential(self, options: Sequence[str]) -> None:
        """Leaves the other options to `--help-all`. All options are there by now."""
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show every option and exit")
        self.essential = ("-h", "--help-all", *options)
        with self._only_essential():
            self.usage = self.format_usage().removeprefix("usage: ").rstrip()  # also of errors

    def format_help(self) -> str:
        """The essential options."""
        with self._only_essential() as hidden:
            text = super().format_help()
        return f"{text}\n{hidden} more options: {self.prog} --help-all\n" if hidden else text

    def format_all(self) -> str:
        """Every option."""
        short, self.usage = self.usage, None
        try:
            return super().format_help()
        finally:
            self.usage = short

    @contextmanager
    def _only_essential(self) -> Iterator[int]:
        """Gives how many options argparse passes over meanwhile."""
        shown = {option for action in self._actions for option in action.option_strings}
        shown = shown if self.essential is None else {*self.essential}
        hidden = [a for a in self._actions if a.option_strings and not shown & {*a.option_strings}]
        texts = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            yield len(hidden)
        finally:
            for action, text in zip(hidden, texts, strict=True):
                action.help = text


class _HelpAll(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        text = parser.format_all() if isinstance(parser, Parser) else parser.format_help()
        sys.stdout.write(text)
        parser.exit()


def size(text: str) -> tuple[int, int]:
    """`768x512` to (width, height) in pixels."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise RequestError(f"size '{text}'", expected="WIDTHxHEIGHT in pixels, such as 768x512")
    return int(width), int(height)


def floats(text: str) -> tuple[float, ...]:
    """`14.6,5,0` to numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"'{text}'", expected="numbers separated by commas, such as 14.6,5.1,0") from None


def integers(text: str) -> tuple[int, ...]:
    """`999,500,1` to whole numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"'{text}'", expected="whole numbers separated by commas, such as 999,500,1") from None


def step_cache(text: str) -> int | tuple[int, ...]:
    """`3`, an interval, or `0,1,2,5,8`, the deep calls."""
    numbers = integers(text)
    return numbers[0] if len(numbers) == 1 else numbers


def names(text: str) -> tuple[str, ...]:
    """`openvino,onnxruntime` to names."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise RequestError(f"'{text}'", expected="a whole number, at least 1")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """`1,2,4` to whole numbers from 1 on, each once."""
    return tuple(dict.fromkeys(count(part.strip()) for part in text.split(",")))


def seconds(text: str) -> float:
    """A duration, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise RequestError(f"'{text}'", expected="a number of seconds, such as 30")
    return value


def positive(text: str) -> float:
    """A number above 0, which need not be whole."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise RequestError(f"'{text}'", expected="a number above 0")
    return number


def gigabytes(text: str) -> float:
    """`8` or `7.5`, in 10^9 bytes."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value < 1e6:
        raise RequestError(f"'{text}'", expected="gigabytes, such as 8")
    return value


def memory_bytes(text: str) -> int:
    """`gigabytes`, as bytes."""
    return int(gigabytes(text) * 1e9)


def add_memory(parser: argparse._ActionsContainer, help_text: str) -> None:
    """`--memory`; `options.memory` is in bytes."""
    parser.add_argument("--memory", type=memory_bytes, metavar="GB", help=f"10^9 bytes {help_text}")


def lora(text: str) -> Lora:
    """`style.safetensors:0.8` to a file and its scale; 1 without."""
    path, _, scale = text.rpartition(":")
    try:
        return Lora(path, float(scale)) if path else Lora(text)
    except ValueError:  # a colon of the path's own
        return Lora(text)


def add_lora(parser: argparse._ActionsContainer, help_text: str) -> None:
    """`--lora`, which may be repeated; `options.lora` is a list."""
    parser.add_argument("--lora", action="append", type=lora, default=[], metavar="FILE[:SCALE]", help=help_text)


def named_file(text: str) -> tuple[str, str]:
    """`cat=cat.safetensors` to name and path."""
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise RequestError(f"'{text}'", expected="NAME=FILE, such as cat=cat.safetensors")
    return name, path


def add_execution(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options about where and how graphs run, named as the arguments of `latentrt.load`; their group."""
    group = parser.add_argument_group("execution")
    group.add_argument("--backend", default="auto", metavar="NAME", help="openvino, onnxruntime or auto (default)")
    group.add_argument("--device", metavar="NAME", help="cpu or cuda; default: the backend's choice")
    group.add_argument("--compute", metavar="TYPE", help="arithmetic, fp32 (default) or bf16")
    group.add_argument("--threads", type=int, metavar="N", help="threads within one engine call")
    group.add_argument("--cache-dir", metavar="DIR", help="where compiled graphs are kept; default: ~/.cache/latentrt")
    return group
