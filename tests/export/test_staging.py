"""A bundle's way into its place: what is there, what a kill leaves at each step, who else is at it, and full disks."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from latentrt import Bundle, BundleError, EnvironmentLacks, InUseError, RequestError
from latentrt.bundle import MANIFEST
from latentrt.concurrency.locks import lock_folder, lock_target
from latentrt.export import staging
from latentrt.export.bundles.derived import derive_bundle
from latentrt.export.staging import making, move_into_place, reserved, staging_folder
from latentrt.files.atomic import storage_errors

HOLD = """
import sys, time
from pathlib import Path
from latentrt.concurrency import locks

with getattr(locks, sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


class KillError(BaseException):
    """Stands for a kill: nothing of ours handles it."""


def content(root: Path) -> dict[str, bytes]:
    """What there is, but the time at which it was made."""
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    manifest = json.loads(files[MANIFEST])
    manifest["provenance"].get("derived_from", {}).pop("created", None)
    return files | {MANIFEST: json.dumps(manifest).encode()}


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Bundle]]:
    """Makes a bundle with the decoder's graph written anew, by default at `tmp_path/out`."""
    source = Bundle.open(tiny_bundle)

    def write(folder: Path) -> dict:
        row = source.manifest["components"]["decoder"]
        for name in (row["graph"], *row["weights"], row["keys"]):
            shutil.copyfile(source.root / name, folder / name)
        return row

    def make(output: Path = tmp_path / "out", *, overwrite: bool = False, **options: object) -> Bundle:
        return derive_bundle(source, output, writers={"decoder": write}, options=options, overwrite=overwrite)

    yield make


@pytest.fixture
def undisturbed(copied: Callable[..., Bundle], tmp_path: Path) -> dict[str, bytes]:
    return content(copied(tmp_path / "undisturbed").root)


@pytest.fixture
def holder() -> Iterator[Callable[[str, Path], subprocess.Popen]]:
    """Starts a process that has a lock until its standard input ends."""
    started: list[subprocess.Popen] = []

    def start(kind: str, path: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, kind, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            stream.close()


# Every step of it


class Killer:
    """Kills before a change of a name, after `spared` others."""

    def __init__(self, spared: int) -> None:
        self._spared = spared

    def wrapped(self, name: str) -> Callable:
        real = getattr(Path, name)

        def change(path: Path, *arguments, **keywords):
            if path.suffix != ".lock":
                self._spared -= 1
                if self._spared == -1:
                    raise KillError(f"{name} {path.name}")
            return real(path, *arguments, **keywords)

        return change


def kill_points(make: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs `make` again and again, killed before its first, second, ... change of a name; says which, after each."""
    for spared in range(1000):
        killer = Killer(spared)
        with monkeypatch.context() as patched:
            for name in ("rename", "replace", "unlink", "rmdir"):
                patched.setattr(Path, name, killer.wrapped(name))
            try:
                make()
                return
            except KillError as kill:
                where = str(kill)
        yield where


def test_a_kill_at_any_change_of_a_name_is_made_up_for(copied, undisturbed, tmp_path, monkeypatch):
    output, seen = tmp_path / "out", []
    for where in kill_points(copied, monkeypatch):
        seen.append(where)
        if (output / MANIFEST).exists():
            assert content(output) == undisturbed, where
            copied(overwrite=True)
        else:
            copied()
        assert content(output) == undisturbed, where
        assert not staging_folder(output).exists()
        shutil.rmtree(output)
    assert len(seen) > 8
    assert any("rename" in where for where in seen)


def test_a_kill_at_any_change_of_a_name_keeps_the_old_bundle_or_has_the_new_one(
    copied, undisturbed, tmp_path, monkeypatch
):
    """What `--overwrite` replaces is never lost; after each kill the same command, and a plain one, are right."""
    output = tmp_path / "out"
    copied()

    def overwritten() -> None:
        copied(overwrite=True, again=len(seen))

    seen: list[str] = []
    for where in kill_points(overwritten, monkeypatch):
        seen.append(where)
        with pytest.raises(BundleError, match="already"):
            copied()  # which finds a whole one, if need be put back
        assert content(output) == undisturbed, where
        copied(overwrite=True, again=len(seen) - 1)
        assert content(output) == undisturbed, where
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]
    assert len(seen) > 8


def test_a_component_half_written_anew_is_not_taken_for_the_earlier_one(copied, tiny_bundle, tmp_path):
    """Same size, other bytes: the record of before must not stand for them."""
    output, source = tmp_path / "out", Bundle.open(tiny_bundle)
    graph = source.manifest["components"]["decoder"]["graph"]

    def stopped(folder: Path) -> dict:
        (folder / graph).write_bytes(bytes((tiny_bundle / graph).stat().st_size))
        raise KillError

    def stop_after_decoder(event: staging.ExportProgress) -> None:
        if event.component == "encoder":
            raise KillError

    options = {"writers": {"decoder": stopped}}
    with pytest.raises(KillError):
        derive_bundle(source, output, writers={}, options={"one": 1}, progress=stop_after_decoder)
    with pytest.raises(KillError):
        derive_bundle(source, output, **options, options={"another": 2})
    derive_bundle(source, output, writers={}, options={"one": 1}).verify()


def test_what_an_earlier_run_with_other_components_left_is_not_in_the_bundle(copied, undisturbed, tmp_path):
    part = staging_folder(tmp_path / "out")
    (part / "tokenizer_2").mkdir(parents=True)
    for name in ("controlnet-x.onnx", "controlnet-x.done.json", "tokenizer_2/tokenizer.json", ".rest", MANIFEST):
        (part / name).write_text("{}")
    assert content(copied().root) == undisturbed


def test_a_bundle_of_ones_own_beside_the_target_is_left_alone(copied, tiny_bundle, tmp_path):
    """Whatever its name: `.old` is a name that people give."""
    copied()
    for name in ("out.old", "out.fp32", "out.lora"):
        shutil.copytree(tiny_bundle, tmp_path / name)
    copied(overwrite=True)
    for name in ("out.old", "out.fp32", "out.lora"):
        Bundle.open(tmp_path / name).verify()


def test_another_thing_in_the_place_of_a_rejected_bundle_is_left_alone(copied, tmp_path):
    made = copied().root
    (tmp_path / "out.rejected").mkdir()
    (tmp_path / "out.rejected" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="no bundle"):
        move_into_place(made, tmp_path / "out.rejected")
    assert (tmp_path / "out.rejected" / "notes.txt").read_text() == "mine"
    Bundle.open(made)


def test_a_link_is_followed_and_stays(copied, undisturbed, tmp_path):
    real = tmp_path / "elsewhere" / "real"
    output = tmp_path / "out"
    output.symlink_to(real)
    assert content(copied().root) == undisturbed
    copied(overwrite=True)
    assert output.is_symlink() and content(real) == undisturbed
    assert [path.name for path in real.parent.iterdir()] == ["real"]


@pytest.mark.parametrize(
    "kind", ["a file", "an empty folder", "a link to a file", "within a file", "links in a circle"]
)
def test_a_target_that_cannot_be_is_refused_and_left_alone(kind: str, copied, tmp_path):
    output = tmp_path / "out"
    if kind == "an empty folder":
        output.mkdir()
    elif kind == "links in a circle":
        output.symlink_to(tmp_path / "other")
        (tmp_path / "other").symlink_to(output)
    else:
        (tmp_path / "file").write_text("mine")
        if kind == "a file":
            output = tmp_path / "file"
        elif kind == "a link to a file":
            output.symlink_to(tmp_path / "file")
        else:
            output = tmp_path / "file" / "out"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((BundleError, EnvironmentLacks)):
        copied(output, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_that_one_is_in_is_not_replaced(copied, undisturbed, tmp_path, monkeypatch):
    copied()
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(BundleError, match="runs in"):
        copied(Path(), overwrite=True)
    assert content(tmp_path / "out") == undisturbed


# Who else is at it


@pytest.mark.parametrize("kind", ["lock_target", "lock_folder"])
def test_who_has_a_lock_is_told_and_a_kill_frees_it(kind: str, holder, tmp_path):
    lock = {"lock_target": lock_target, "lock_folder": lock_folder}[kind]
    process = holder(kind, tmp_path / "out")
    with pytest.raises(InUseError) as caught, lock(tmp_path / "out"):
        pass
    assert f"process {process.pid} on {os.uname().nodename} since 20" in str(caught.value)
    assert caught.value.exit_code == 3
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock(tmp_path / "out"), lock(tmp_path / "out"):  # within itself it is no obstacle
        pass
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_another_thread_is_refused_as_well(tmp_path):
    found: list[BaseException] = []

    def other() -> None:
        try:
            with lock_target(tmp_path / "out"):
                pass
        except InUseError as error:
            found.append(error)

    with lock_target(tmp_path / "out"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1
    other()
    assert len(found) == 1


def test_one_place_by_two_names_is_one_place(holder, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    holder("lock_target", tmp_path / "link" / "out")
    with pytest.raises(InUseError), lock_target(tmp_path / "real" / "out"):
        pass


def test_no_second_process_makes_the_same_bundle(copied, undisturbed, holder, tmp_path):
    process = holder("lock_target", tmp_path / "out")
    with pytest.raises(InUseError, match=str(process.pid)):
        copied()
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()
    process.communicate("")
    assert content(copied().root) == undisturbed


def test_whoever_waited_finds_what_has_been_made(copied, tmp_path, monkeypatch):
    """The target is looked at again when the lock is there."""
    real = staging.lock_target

    def late(path: Path):
        monkeypatch.setattr(staging, "lock_target", real)
        copied()
        return real(path)

    monkeypatch.setattr(staging, "lock_target", late)
    with pytest.raises(BundleError, match="already"), reserved(tmp_path / "out", overwrite=False):
        pass


# Full disks


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EFBIG, "too large"),
        (errno.EACCES, "Permission denied"),
        (errno.EIO, "check the disk"),
        (errno.ENAMETOOLONG, "shorter name"),
    ],
)
def test_what_the_file_system_refuses_is_an_error_of_ours(number: int, words: str, tmp_path):
    with pytest.raises(EnvironmentLacks, match=words) as caught, storage_errors(tmp_path / "not" / "there"):
        raise OSError(number, os.strerror(number), "some/file")
    assert caught.value.exit_code == 3
    assert "Errno" not in str(caught.value)


def test_a_library_that_says_the_number_in_words_is_understood(tmp_path):
    with pytest.raises(EnvironmentLacks, match="is full"), storage_errors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(ZeroDivisionError), storage_errors(tmp_path):
        _ = 1 / 0


@pytest.mark.parametrize(
    "array", [np.zeros(1 << 16), np.zeros((256, 256)).T], ids=["in one piece", "element by element"]
)
def test_an_array_that_does_not_fit_means_a_full_disk(array, tmp_path):
    with (
        pytest.raises(EnvironmentLacks, match="is full"),
        storage_errors(tmp_path),
        Path("/dev/full").open("wb") as file,
    ):
        array.tofile(file)


@pytest.mark.parametrize("at", range(0, 12, 2))
def test_a_disk_that_fills_at_any_file_leaves_nothing_finished(at: int, copied, undisturbed, tmp_path, monkeypatch):
    real, left = shutil.copyfile, [at]

    def copyfile(source, target, **keywords):
        if left[0] == 0:
            Path(target).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        left[0] -= 1
        return real(source, target, **keywords)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(EnvironmentLacks, match="run the same command again"):
        copied()
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert not (staging_folder(tmp_path / "out") / MANIFEST).exists()
    assert content(copied().root) == undisturbed


def test_making_ends_its_lock_whatever_happens(tmp_path):
    with pytest.raises(RequestError), making(tmp_path / "out", overwrite=False):
        raise RequestError("on purpose")
    with making(tmp_path / "out", overwrite=False):
        pass
