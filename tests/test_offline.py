"""Nothing here opens an internet socket, nor a process that would, nor a file in the home but the cache's.

Commands run in a process that `offline/sitecustomize.py` guards; on Linux its kernel filter also sees what libraries do
in C++ and in children. `make test-offline` runs the long forms as well: all commands, each process kept for over a
minute after its work, once under the guard and once under strace.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from PIL import Image

from latentrt.cli.command import GROUP

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "examples" / "shapes"
LINGER_S = 75
CHILDREN = ("latentrt.bench.worker", "'uname'")  # a measurement in a process of its own; Python's platform module
PROMPT = "a red circle on a white background"
RUN = "import json, sys\nfrom latentrt.cli import main\nfor row in json.loads(sys.argv[1]): assert main(row) == 0, row"
PACKAGES = {"runtime": "latentrt", "export": "latentrt.export", "calibration": "latentrt.calibration"}


def light(bundle: Path, folder: Path) -> list[list[str]]:
    """Commands that need no torch, on both backends of the CPU."""
    picture, out = str(folder / "picture.png"), str(bundle)
    brief = ["--size", "64x64", "--steps", "2"]
    more = ["--yolo", dataset(folder / "yolo"), "--mode", "background", "--steps", "2", "--backend", "onnxruntime"]
    return [
        ["inspect", out],
        ["completion", "bash"],
        ["generate", out, PROMPT, "-o", picture, "--backend", "openvino", *brief],
        ["generate", out, PROMPT, "-o", str(folder / "other.png"), "--backend", "onnxruntime", *brief],
        ["outline", picture, "-o", str(folder / "edges.png")],
        ["augment", out, "-o", str(folder / "more"), *more],
        ["bench", out, "--backend", "openvino,onnxruntime", *brief, "--repeat", "1", "--warmup", "0"],
    ]


def dataset(folder: Path) -> str:
    """A photo with a box to learn from, and one to be judged by."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        side = 64 if split == "train" else 72
        Image.linear_gradient("L").resize((side, side)).convert("RGB").save(folder / "images" / split / "a.png")
        (folder / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [circle]\n")
    return str(folder / "data.yaml")


def heavy(bundle: Path, folder: Path) -> list[list[str]]:
    """Commands that make or compare bundles."""
    names = ("exported", "half", "int8", "controlled")
    made = {name: str(folder / name) for name in names}
    checkpoint, control = str(SHAPES / "checkpoint"), f"edges={SHAPES / 'controlnet'}"
    prompts = ["--prompts", str(SHAPES / "prompts.txt")]
    brief = ["--count", "2", "--images", "2", "--size", "128x128", "--steps", "3", "--min-sqnr", "0"]
    return [
        ["export", checkpoint, "-o", made["exported"]],
        ["check", made["exported"], "--against", checkpoint, "--quick"],
        ["convert", str(bundle), "-o", made["half"], "--precision", "fp16"],
        ["calibrate", str(bundle), "-o", made["int8"], *prompts, *brief],
        ["control", str(bundle), control, "-o", made["controlled"]],
        ["build", made["half"], "--backend", "tensorrt-rtx", "--gpus", "sm89", "--components", "decoder"],
    ]


def environment(home: Path, **variables: str) -> dict[str, str]:
    """As a user's: no variable that by itself keeps a library from reporting."""
    home.mkdir()
    silencing = ("CI", "TF_BUILD", "JENKINS_URL", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    dropped = {*silencing, "ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped and "COV" not in name}
    return {**kept, "HOME": str(home), **variables}


def guarded(code: str, *arguments: str, folder: Path, linger_s: float = 0) -> list[str]:
    """Runs Python under the guard; returns the lines of its log that tell of children, after asserting that no
    other was written."""
    log, home = folder / "offline.log", folder / "home"
    variables = {"OFFLINE_LOG": str(log), "OFFLINE_LINGER_S": str(linger_s)}
    path = str(Path(__file__).with_name("offline"))
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(home, PYTHONPATH=path, **variables),
        capture_output=True,
        text=True,
    )
    lines = log.read_text().splitlines()
    assert run.returncode == 0, f"{run.stderr}\n{log.read_text()}"
    assert lines[0].startswith("guard: ")
    expected = ("guard: ", "child: ", "probe: ")
    assert [line for line in lines if not line.startswith(expected)] == []
    assert_only_cached(home)
    return [line for line in lines if line.startswith("child: ")]


def assert_only_cached(home: Path) -> None:
    files = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    assert [path for path in files if path.parts[:2] != (".cache", "latentrt")] == []


def internet(lines: Iterable[str]) -> list[str]:
    """What strace saw of sockets to other machines: all but a socket bound to ::1, which asks whether there is IPv6."""
    lines = list(lines)
    probes = [line for line in lines if "bind(" in line and "sa_family=AF_INET6" in line and '"::1"' in line]
    opened = [line for line in lines if "socket(AF_INET" in line]
    probing = [line for line in opened if "socket(AF_INET6, SOCK_STREAM" in line][: len(probes)]
    named = [line for line in lines if "sa_family=AF_INET" in line]
    return [line for line in [*opened, *named] if line not in probes and line not in probing]


def copied(bundle: Path, folder: Path) -> Path:
    return shutil.copytree(bundle, folder / "bundle", ignore=shutil.ignore_patterns("engines"))


def test_every_command_is_tried(tmp_path: Path):
    tried = {row[0] for row in [*light(tmp_path, tmp_path), *heavy(tmp_path, tmp_path)]}
    tried.add("serve")  # which listens: what it does beside that is what `generate` does
    assert tried == {entry.name for entry in entry_points(group=GROUP)}


def test_making_images_opens_no_socket_and_writes_nothing_in_the_home(shapes_bundle: Path, tmp_path: Path):
    rows = light(copied(shapes_bundle, tmp_path), tmp_path)
    children = guarded(RUN, json.dumps(rows), folder=tmp_path)
    assert any("latentrt.bench.worker" in line for line in children)
    assert [line for line in children if not any(known in line for known in CHILDREN)] == []


def test_importing_any_module_opens_no_socket(tmp_path: Path):
    files = {name: [path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*.py")] for name in PACKAGES}
    parts = {(name, file.with_suffix("").parts) for name in files for file in files[name] if file.stem[0] != "_"}
    modules = sorted(".".join([PACKAGES[name], *place]) for name, place in parts)
    assert len(modules) > 100
    guarded(f"import {', '.join(modules)}", folder=tmp_path)


def test_what_this_package_imports_leaves_openvinos_reporter_out_and_the_rest_in(tmp_path: Path):
    code = (
        "import os, sys, latentrt.backends.openvino, latentrt.backends.onnxruntime.engine\n"
        "assert not any(name.startswith('openvino_telemetry') for name in sys.modules)\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1' and 'HF_HUB_DISABLE_TELEMETRY' not in os.environ\n"
        "import openvino; openvino.convert_model; import openvino_telemetry"
    )
    guarded(code, folder=tmp_path)


def test_a_variable_that_is_set_stands(monkeypatch: pytest.MonkeyPatch):
    from latentrt.environment.privacy import RUNTIME, decline_reports

    for name in RUNTIME:
        monkeypatch.setenv(name, "0")
    decline_reports(RUNTIME)
    assert {os.environ[name] for name in RUNTIME} == {"0"}


@pytest.mark.parametrize("before", ["", "json.decoder"], ids=["not loaded", "loaded"])
def test_what_is_not_installed_for_a_while_is_as_before_afterwards(before: str, monkeypatch: pytest.MonkeyPatch):
    from latentrt.environment.privacy import not_installed

    name = before or "mailcap_of_nobody"
    loaded: Mapping[str, object] = {name: sys.modules[name]} if before else {}
    with pytest.raises(ImportError), not_installed(name):
        __import__(name)
    assert sys.modules.get(name) is loaded.get(name) and (name in sys.modules) == bool(before)


@pytest.mark.parametrize(
    ("attempt", "seen"),
    [
        ("import socket; socket.socket()", "network: socket.__new__"),
        ("import socket; socket.getaddrinfo('localhost', 80)", "network: socket.getaddrinfo"),
        ("import ctypes; ctypes.CDLL(None).socket(2, 1, 0)", "most recent call first"),
        ("import os\nif os.fork(): os.wait()\nelse: import ctypes; ctypes.CDLL(None).socket(10, 2, 0)", "most recent"),
    ],
    ids=["Python", "names", "C", "C in a child"],
)
def test_the_guard_sees_attempts(attempt: str, seen: str, tmp_path: Path):
    if "most recent" in seen and sys.platform != "linux":
        pytest.skip("the kernel's filter is Linux's")
    with pytest.raises(AssertionError, match=seen):
        guarded(attempt, folder=tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("commands", [light, heavy])
def test_over_a_minute_no_command_opens_a_socket(commands, shapes_bundle: Path, tmp_path: Path):
    rows = commands(copied(shapes_bundle, tmp_path), tmp_path)
    guarded(RUN, json.dumps(rows), folder=tmp_path, linger_s=LINGER_S)


@pytest.mark.full
@pytest.mark.parametrize("commands", [light, heavy])
def test_strace_sees_no_internet_socket(commands, shapes_bundle: Path, tmp_path: Path):
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-o", os.devnull, "true"]).returncode:
        pytest.skip("no strace, or no right to trace")
    rows, trace = commands(copied(shapes_bundle, tmp_path), tmp_path), tmp_path / "trace"
    code = f"{RUN}\nimport time; time.sleep({LINGER_S})"
    command = [strace, "-f", "-e", "trace=network", "-o", str(trace), sys.executable, "-c", code, json.dumps(rows)]
    run = subprocess.run(command, env=environment(tmp_path / "home"), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert internet(trace.read_text().splitlines()) == []
    assert_only_cached(tmp_path / "home")
