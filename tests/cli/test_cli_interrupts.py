"""Ctrl-C and full or read-only disks: nothing half-written looks finished, and what was done is not lost."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentrt.bundle import MANIFEST, Bundle
from latentrt.export import package
from latentrt.export.convert import bake

Mount = Callable[..., Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a file system of so many bytes."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def interrupted(*arguments: object, at: str) -> tuple[int, list[str]]:
    """Runs a command, sends Ctrl-C when a line on stderr contains `at`; the exit code and all lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "latentrt.cli", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background jobs
    )
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if at in line:
                process.send_signal(signal.SIGINT)
                at = "\0"
        return process.wait(timeout=60), lines
    finally:
        process.kill()


def test_an_interrupted_export_continues(cli, tiny_checkpoint, tmp_path, monkeypatch):
    """The second run is stopped as well, once it has shown that it begins with the second component."""
    output = tmp_path / "bundle"
    command = ("export", tiny_checkpoint, "-o", output, "--no-check")
    code, lines = interrupted(*command, at="text_encoder")
    assert (code, lines[-1]) == (130, "latentrt: interrupted")
    assert not output.exists()
    part = tmp_path / "bundle.part"
    assert not (part / MANIFEST).exists()
    assert (part / "text_encoder.weights").is_file()
    begun = []

    def stop(spec, *arguments, **options):
        begun.append(spec.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "_export_component", stop)
    outcome = cli(*command)
    assert outcome.code == 130
    kept, last = outcome.err.splitlines()
    assert kept.startswith("text_encoder")
    assert kept.endswith("kept from an earlier run")
    assert last == "latentrt: interrupted"
    assert begun == ["step"]
    assert not output.exists()


@pytest.mark.families
def test_an_interrupted_conversion_continues_with_the_float32_bundle(cli, tiny_checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "bundle"
    command = ("export", tiny_checkpoint, "-o", output, "--no-check", "--precision", "fp16", "--range-check", "none")

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bake, "convert_bundle", stop)
        assert cli(*command).code == 130
    assert not output.exists()
    monkeypatch.setattr(package, "_export_component", stop)
    outcome = cli(*command)
    assert outcome.code == 0, outcome.err
    assert {part.precision for part in Bundle.open(output).components.values()} == {"fp16"}
    assert not output.with_name("bundle.part").exists()


def test_an_interrupted_generation_leaves_nothing(tiny_bundle, tmp_path):
    code, lines = interrupted(
        *("generate", tiny_bundle, "a", "-o", tmp_path / "{seed}.png", "--size", "512x512", "--steps", 500),
        *("--images", 2, "--sampler", "euler", "--backend", "onnxruntime", "--threads", 1, "--verbose"),
        at="loading step (onnxruntime): done",
    )
    assert (code, lines[-1]) == (130, "latentrt: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_export_on_a_full_disk(cli, tiny_checkpoint, small_disk):
    folder = small_disk(64 << 10)
    outcome = cli("export", tiny_checkpoint, "-o", folder / "bundle", "--no-check", "--json")
    assert outcome.code == 3
    (line,) = outcome.err.splitlines()
    for part in ("is full", "expected room for the bundle", "run the same command again: it continues"):
        assert part in line
    assert outcome.document["exit_code"] == 3
    assert not (folder / "bundle").exists()


@pytest.mark.parametrize(("filled", "when"), [(True, "before"), (False, "after")])
def test_generation_on_a_full_disk(filled, when, cli, tiny_bundle, small_disk):
    """Found before the work where not even a page fits, else when the image is written."""
    folder = small_disk(4096)
    if filled:
        (folder / "other").write_bytes(bytes(4096))
    before = sorted(folder.iterdir())
    outcome = cli("generate", tiny_bundle, "a", "-o", folder / "a.png", "--steps", 1, "--size", "128x128", "--json")
    assert outcome.code == 3
    assert ("cannot write to" if when == "before" else "a.png") in outcome.err
    assert "No space left on device" in outcome.err
    assert "Traceback" not in outcome.err
    assert sorted(folder.iterdir()) == before


def test_a_read_only_disk(cli, tiny_checkpoint, tiny_bundle, small_disk):
    folder = small_disk(1 << 20)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    generation = cli("generate", tiny_bundle, "a", "-o", folder / "a.png")
    export = cli("export", tiny_checkpoint, "-o", folder / "bundle")
    for outcome, part in ((generation, "choose another folder"), (export, "may write to")):
        assert outcome.code == 3
        (line,) = outcome.err.splitlines()
        assert "Read-only file system" in line
        assert part in line
