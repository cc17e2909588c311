"""Prompts to calibrate and to judge on: the package's own, and how a list is divided."""

from importlib.resources import files

from latentrt.export.prompts import prompt_lines


def own_prompts() -> list[str]:
    """The list that comes with the package: subjects, styles and lengths of all kinds."""
    return prompt_lines((files(__package__) / "prompts.txt").read_text(encoding="utf-8"), "prompts.txt")


def split(prompts: list[str], wanted: int) -> tuple[list[str], list[str]]:
    """Prompts to calibrate on, and at most `wanted` others, a third of the file or less, to judge on.

    A single prompt serves both.
    """
    unseen = min(wanted, len(prompts) // 3)
    if unseen == 0:
        return prompts, prompts[:wanted]
    return prompts[:-unseen], prompts[-unseen:]
