"""Files that appear whole, and checks that are made once."""

from pathlib import Path

import pytest

from latentrt.files.atomic import check_once, write_whole, written_beside


def test_a_check_is_made_again_when_its_stamp_changes(tmp_path: Path):
    made: list[int] = []
    note = tmp_path / "checked.json"
    for stamp in ([1], [1], [2], [2]):
        check_once(lambda stamp=stamp: made.append(stamp[0]), stamp=stamp, note=note)
    assert made == [1, 2]
    note.write_text("{")
    check_once(lambda: made.append(3), stamp=[2], note=note)
    assert made == [1, 2, 3]


def test_a_check_that_fails_leaves_no_note(tmp_path: Path):
    def fail() -> None:
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            check_once(fail, stamp=[1], note=tmp_path / "checked.json")
    assert not list(tmp_path.iterdir())


def test_without_a_note_every_time_is_checked():
    made: list[int] = []
    for _ in range(2):
        check_once(lambda: made.append(1), stamp=[1], note=None)
    assert made == [1, 1]


def test_what_fails_while_it_is_written_leaves_the_file_as_it_was(tmp_path: Path):
    write_whole(tmp_path / "file", b"before")
    with pytest.raises(ZeroDivisionError), written_beside(tmp_path / "file") as beside:
        beside.write_bytes(b"half")
        raise ZeroDivisionError
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
