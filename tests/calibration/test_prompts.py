"""Files of prompts, good and bad."""

import pytest

from latentrt.calibration.prompts import own_prompts, split
from latentrt.errors import RequestError
from latentrt.export.prompts import read_prompts


def test_the_own_list_is_long_and_without_repeats():
    prompts = own_prompts()
    assert len(prompts) == len(set(prompts)) == 96
    assert max(len(prompt) for prompt in prompts) > 60
    assert not any(prompt.startswith("#") for prompt in prompts)


def test_comments_and_empty_lines_are_left_out(tmp_path):
    (file := tmp_path / "p.txt").write_bytes("\ufeffa fox\r\n\n# of mine\n  een kat, été \n".encode())
    assert read_prompts(file) == ["a fox", "een kat, été"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"\n  \n# nothing\n", "is empty"),
        (b"a fox\na \xff cat\n", "line 2 .* is not UTF-8"),
        (b"a fox\n\nb\x00d\n", "line 3 .* control characters"),
        (b"a fox\n" + b"x" * 3000, "line 2 .* 3000 characters"),
    ],
)
def test_a_bad_file_names_the_line(tmp_path, content, found):
    (file := tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(RequestError, match=found):
        read_prompts(file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.parametrize(("count", "asked", "kept"), [(96, 16, 16), (30, 16, 10), (3, 16, 1), (6, 0, 0)])
def test_what_is_judged_on_was_not_calibrated_on(count, asked, kept):
    prompts = [str(i) for i in range(count)]
    seen, unseen = split(prompts, asked)
    assert seen + unseen == prompts
    assert len(unseen) == kept


def test_two_prompts_serve_both():
    assert split(["a", "b"], 4) == (["a", "b"], ["a", "b"])
