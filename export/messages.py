"""What libraries say, as it stands in messages of this program."""

import re

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def first_line(error: Exception) -> str:
    """What a library says, cut to one line, without the escape codes of terminals."""
    text = _ESCAPES.sub("", str(error)).strip()
    return next(iter(text.splitlines()), type(error).__name__)
