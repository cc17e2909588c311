"""Prompts in a file, one a line."""

from pathlib import Path

from latentrt.errors import RequestError

LONGEST = 2000  # characters of a prompt; more is a file of something else


def read_prompts(path: Path) -> list[str]:
    """The prompts of a UTF-8 file, one a line; empty lines and lines that begin with # are left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"prompts {path} cannot be read ({error})", expected="a UTF-8 text file") from error
    for number, line in enumerate(data.splitlines(), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _bad_line(path, number, f"is not UTF-8 ({error.reason})") from error
    return prompt_lines(data.decode("utf-8-sig"), str(path))


def prompt_lines(text: str, source: str) -> list[str]:
    """The prompts of a text; `source` is its name in messages. Otherwise as `read_prompts`."""
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        if any(ord(character) < 32 and character != "\t" for character in prompt):
            raise _bad_line(source, number, "holds control characters")
        if len(prompt) > LONGEST:
            raise _bad_line(source, number, f"has {len(prompt)} characters")
        prompts.append(prompt)
    if not prompts:
        raise RequestError(f"prompts {source} is empty", expected="one prompt a line")
    return prompts


def _bad_line(source: object, number: int, what: str) -> RequestError:
    return RequestError(f"line {number} of prompts {source} {what}", expected=f"a text of at most {LONGEST} characters")
