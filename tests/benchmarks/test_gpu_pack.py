"""What is packed for a machine without a network, and put together there: pieces, sums, wheels, GPU code, the plan."""

import json
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.card import provider_note
from benchmarks.gpu.pack import __main__ as command
from benchmarks.gpu.pack import install
from benchmarks.gpu.pack.fatbin import CUBIN, PTX, containers, marker, section, slim, slimmed
from benchmarks.gpu.pack.parts import Part, Piece, make_part
from benchmarks.gpu.pack.plan import Call, Places, calls, describe, distribute, script
from benchmarks.gpu.pack.wheels import Fetcher, Target, read_there, requirements
from latentrt.errors import BundleError, EnvironmentLacks, RequestError

THERE = Target("3.12", "2.28")
ENVIRONMENT = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}  # whose python3 is the one of these tests

# ---- GPU code


def entry(kind: int, architecture: int, code: bytes) -> bytes:
    """As nvcc writes it: a header of 64 bytes, and the code in whole words."""
    head = struct.pack("<HHIQ", kind, 257, 64, len(code)).ljust(28, b"\0") + struct.pack("<I", architecture)
    return head.ljust(64, b"\0") + code


def container(*entries: bytes) -> bytes:
    data = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(data)) + data


def library(path: Path, *parts: bytes) -> Path:
    """An ELF file with the sections `.nv_fatbin` and `.shstrtab`."""
    code, names = b"".join(parts), b"\0.nv_fatbin\0.shstrtab\0"
    at = 64 + len(code)
    table = at + len(names)
    rows = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, 64, len(code), 0, 0, 8, 0),
        struct.pack("<IIQQQQIIQQ", 12, 3, 0, 0, at, len(names), 0, 0, 1, 0),
    ]
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table, 0, 64, 56, 0, 64, 3, 2
    )
    path.write_bytes(head + code + names + b"".join(rows))
    return path


COMMON = container(entry(CUBIN, 80, b"eighty__" * 4), entry(CUBIN, 90, b"ninety__" * 2), entry(CUBIN, 120, b"120_____"))
TEXT = container(entry(CUBIN, 120, b"newest__"), entry(PTX, 75, b"ptx_____"), entry(PTX, 80, b"later___"))
ALONE = container(entry(CUBIN, 90, b"special_" * 20))
NEWER = container(entry(CUBIN, 120, b"newest__"))


def code(path: Path) -> list[list[tuple[int, bytes]]]:
    data = path.read_bytes()
    return [
        [(each.architecture, data[each.begin + 64 : each.begin + each.size]) for each in found.entries]
        for found in containers(data, *section(data, path))
    ]


def test_a_library_keeps_what_a_driver_takes_for_one_architecture(tmp_path: Path):
    path = library(tmp_path / "libx.so", COMMON, bytes(8), TEXT, ALONE, NEWER)
    before = path.read_bytes()
    done = slim(path, 90)
    assert code(path) == [
        [(90, b"ninety__" * 2)],
        [(80, b"later___")],
        [(120, b"120_____")],  # it was for this architecture alone: what no GPU of it takes is in its place
        [(120, b"newest__")],
    ]
    assert (done.containers, done.without, done.refused) == (4, 1, 1)
    assert done.kept_bytes + done.removed_bytes == sum(len(each) - 16 for each in (COMMON, TEXT, ALONE, NEWER))
    after = path.read_bytes()
    assert len(after) == len(before), "whatever registers a container finds it where it was"
    assert [after.index(struct.pack("<IHH", 0xBA55ED50, 1, 16))] == [64]
    assert b"eighty__" not in after and b"special_" not in after
    assert slimmed(path) == json.loads(marker(path).read_text())
    assert slimmed(path)["architecture"] == 90


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [(80, b"eighty__" * 4), (86, b"eighty__" * 4), (90, b"ninety__" * 2), (120, b"120_____"), (121, b"120_____")],
)
def test_an_earlier_architecture_of_the_same_major_version_serves(architecture: int, expected: bytes, tmp_path: Path):
    path = library(tmp_path / "libx.so", COMMON)
    slim(path, architecture)
    assert [found for ((_, found),) in code(path)] == [expected]


def test_all_kernels_are_kept_where_they_are_asked_for(tmp_path: Path):
    path = library(tmp_path / "libx.so", COMMON, ALONE)
    assert slim(path, 90, everything=True).refused == 0
    assert code(path)[1] == [(90, b"special_" * 20)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b"MZ, of another system"), "no library of this system"),
        (lambda path: library(path, COMMON), "no GPU code for sm_75; expected one of sm_80, sm_90, sm_120"),
        (lambda path: path.write_bytes(library(path, COMMON).read_bytes().replace(b".nv_fatbin", b".rodata_xx")),
         "no section"),
    ],
    ids=["not ELF", "other architectures", "no GPU code"],
)  # fmt: skip
def test_a_library_that_cannot_be_slimmed_is_refused_and_stays(make, words: str, tmp_path: Path):
    path = tmp_path / "libx.so"
    make(path)
    before = path.read_bytes()
    with pytest.raises(EnvironmentLacks, match=words):
        slim(path, 75)
    assert path.read_bytes() == before and slimmed(path) is None


def test_a_result_says_of_a_slimmed_provider_that_it_was(tmp_path: Path):
    package = tmp_path / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    assert provider_note(package) is None
    library(package / "capi" / "libonnxruntime_providers_cuda.so", COMMON)
    assert provider_note(package) is None
    slim(package / "capi" / "libonnxruntime_providers_cuda.so", 90)
    assert provider_note(package)["architecture"] == 90


# ---- wheels


def wheel(folder: Path, name: str, *requires: str, tag: str = "py3-none-any", version: str = "1.0") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("tag", "runs"),
    [
        ("py3-none-any", True),
        ("cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64", True),
        ("cp312-cp312-manylinux_2_28_x86_64", True),
        ("cp312-cp312-manylinux_2_31_x86_64", False),
        ("cp39-abi3-manylinux_2_17_x86_64", True),
        ("cp312-none-manylinux_2_28_x86_64", True),
        ("py3-none-manylinux_2_28_x86_64", True),
        ("cp311-cp311-manylinux_2_17_x86_64", False),
        ("cp313-abi3-manylinux_2_17_x86_64", False),
        ("cp312-cp312-manylinux_2_17_aarch64", False),
        ("cp312-cp312-win_amd64", False),
    ],
)
def test_which_wheels_run_there(tag: str, runs: bool):
    assert THERE.runs(Path(f"x-1.0-{tag}.whl")) is runs


def test_what_is_there_in_a_version_that_will_do_is_not_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The walk itself; pip's part is what a package index answers."""
    index = {
        "diffusers": wheel(tmp_path / "i", "diffusers", "huggingface-hub>=1.0", "torch>=2", "pillow", "regex!=2"),
        "regex": wheel(tmp_path / "i", "regex"),
        "later": wheel(tmp_path / "i", "later", "numpy>=2", "diffusers"),
        "onnx": wheel(tmp_path / "i", "onnx", "numpy>=2", "diffusers"),  # round in a circle
        "extra-one": wheel(tmp_path / "i", "extra_one", 'old; python_version < "3.12"', 'win; sys_platform == "win32"'),
    }
    asked: list[str] = []

    def fetch(self: Fetcher, requirement: Requirement) -> Path:
        asked.append(str(requirement))
        return index[requirement.name]

    monkeypatch.setattr(Fetcher, "_fetch", fetch)
    own = wheel(tmp_path, "latentrt", "numpy>=2", 'onnx>=1.20; extra == "export"', 'extra-one; extra == "other"',
                'latentrt[other]; extra == "export"', 'later; extra == "gpu"')  # fmt: skip
    there = {"numpy": "2.5.2", "onnx": "1.19", "huggingface-hub": "1.33.0", "pillow": None}
    fetcher = Fetcher(THERE, tmp_path, there=there, pins={}, never=("torch",))
    found = fetcher.closure(["latentrt[export]"], own=own, packed={})
    assert set(found) == {"latentrt", "onnx", "diffusers", "regex", "extra-one"}
    assert sorted(each.partition(";")[0] for each in asked) == ["diffusers", "extra-one", "onnx>=1.20", "regex!=2"]
    again = fetcher.closure(["latentrt[gpu]"], own=own, packed=found)
    assert set(again) == {"later"}, "a part does not carry what another one has"


def test_requirements_are_those_of_the_other_machine(tmp_path: Path):
    path = wheel(tmp_path, "x", 'new; python_version >= "3.12"', 'win; sys_platform == "win32"', 'e; extra == "more"')
    assert [each.name for each in requirements(path, "", THERE)] == ["new"]
    assert [each.name for each in requirements(path, "more", THERE)] == ["new", "e"]


def test_the_list_of_what_is_there(tmp_path: Path):
    path = tmp_path / "there.txt"
    path.write_text("numpy==2.5.2\n# a comment\nPyYAML==6.0\nflash_attn  # of a version that is not known\n\n")
    assert read_there(path) == {"numpy": "2.5.2", "pyyaml": "6.0", "flash-attn": None}
    path.write_text("numpy==2.5.2\nx @ file:///somewhere\n")
    with pytest.raises(RequestError, match=r"there.txt:2: .*expected NAME==VERSION"):
        read_there(path)


# ---- pieces, and what puts them together


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Two parts in two folders, as the command writes them."""
    for name in ("one", "two"):
        place = tmp_path / "trees" / name / f"package_{name}"
        place.mkdir(parents=True)
        (place / "__init__.py").write_text(f"NAME = {name!r}\n")
        (place / "noise.bin").write_bytes(random.Random(name).randbytes(3000))
    library_folder = tmp_path / "trees" / "two" / "nvidia" / "cu13" / "lib"
    library_folder.mkdir(parents=True)
    (library_folder / "libx.so").write_bytes(b"x")
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    parts = {
        name: make_part(name, tmp_path / "trees" / name, pieces, piece_bytes=1000, preset=0) for name in ("one", "two")
    }
    places = Places(pack="pack", site="/x/site", work="/x/work", results='"r"')
    work = [Call(name="a", minutes=8, needs=("one",)), Call(name="b", minutes=9, needs=("one", "two"))]
    transfers = distribute(parts, work, room=parts["one"].bytes + 500)
    options = command._parser().parse_args(["--python", ".".join(map(str, sys.version_info[:2]))])
    index = command._index(options, parts, transfers)
    (tmp_path / "pack").mkdir()
    for number, transfer in enumerate(transfers, start=1):
        command._write(tmp_path / "pack" / str(number), transfer, index, script(number, transfer, places), pieces)
    return tmp_path / "pack"


def setup(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(folder / "setup.sh"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def test_pieces_become_packages_that_python_finds(packed: Path, tmp_path: Path):
    target = tmp_path / "site"
    assert setup(packed / "1", target).returncode == 0
    assert setup(packed / "1", target, "one").returncode == 0
    assert setup(packed / "2", target, "one", "two").returncode == 0
    names = "package_one.NAME, package_two.NAME, os.environ['LD_LIBRARY_PATH']"
    shell = f'. {target}/env.sh && python3 -c "import package_one, package_two, os; print({names})"'
    found = subprocess.run(["sh", "-euc", shell], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    one, two, *folders = found.stdout.replace(":", " ").split()
    assert (one, two) == ("one", "two")
    assert str(target / "two" / "nvidia" / "cu13" / "lib") in folders
    assert not list(target.glob(".*.part"))


def test_a_part_that_is_whole_is_not_unpacked_again(packed: Path, tmp_path: Path):
    assert setup(packed / "1", tmp_path / "site", "one").returncode == 0
    for piece in packed.rglob("one.tar.xz.*"):
        piece.unlink()
    assert setup(packed / "1", tmp_path / "site", "one").returncode == 0


def test_a_piece_that_is_missing_or_damaged_is_named(packed: Path, tmp_path: Path):
    target, piece = tmp_path / "site", packed / "1" / "one.tar.xz.002"
    data = piece.read_bytes()
    piece.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for words in ((target, "one"), (target,)):
        done = setup(packed / "1", *words)
        assert done.returncode == 3 and "one.tar.xz.002 is damaged" in done.stderr and "pack/1" in done.stderr
    piece.unlink()
    done = setup(packed / "1", target, "one")
    assert done.returncode == 3 and "one.tar.xz.002 is missing" in done.stderr
    assert not (target / "one").exists() and not (target / "env.sh").exists()
    piece.write_bytes(data)
    assert setup(packed / "1", target, "one").returncode == 0


def test_what_was_interrupted_counts_as_nothing(packed: Path, tmp_path: Path):
    (tmp_path / "site" / "one").mkdir(parents=True)  # as a killed process of another way of installing leaves it
    (tmp_path / "site" / ".one.part").mkdir()
    assert setup(packed / "1", tmp_path / "site", "one").returncode == 0
    assert (tmp_path / "site" / "one" / "package_one" / "__init__.py").is_file()


def test_another_python_and_an_unknown_part_are_refused(packed: Path, tmp_path: Path, capsys):
    assert setup(packed / "1").returncode == 3
    done = setup(packed / "1", tmp_path / "site", "three")
    assert done.returncode == 3 and "expected one of one, two" in done.stderr
    index = packed / "1" / install.INDEX
    index.write_text(index.read_text().replace(f'"python": "{sys.version_info[0]}.', '"python": "9.'))
    done = setup(packed / "1", tmp_path / "site", "one")
    assert done.returncode == 3 and "it was packed for 9." in done.stderr


def test_the_same_files_make_the_same_bytes(tmp_path: Path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_text("a")
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / "tree" / "a").touch()
        made.append(make_part("x", tmp_path / "tree", tmp_path / name, piece_bytes=100, preset=0))
    assert made[0] == made[1]


# ---- the plan


def part(name: str, *sizes: int) -> Part:
    return Part(name, "0", tuple(Piece(f"{name}.{i}", size, "0") for i, size in enumerate(sizes)))


def test_each_call_finds_what_it_needs_and_room_is_used():
    parts = {each.name: each for each in (part("a", 8, 8, 8, 4), part("b", 2), part("c", 8, 8, 8, 3))}
    needs = {"x": ("a", "b"), "y": (), "z": ("c",)}
    work = [Call(name=name, minutes=8, needs=wanted) for name, wanted in needs.items()]
    found = distribute(parts, work, room=20)
    assert [each.call and each.call.name for each in found] == [None, "x", "y", "z"]
    assert [each.bytes for each in found] == [16, 14, 16, 11]
    assert [name for each in found[:2] for name, _ in each.pieces] == ["a", "a", "a", "a", "b"]
    assert sorted(piece.name for each in found for _, piece in each.pieces) == sorted(
        piece.name for each in parts.values() for piece in each.pieces
    )


def test_a_piece_that_fits_no_transfer_is_refused():
    with pytest.raises(RequestError, match=r"room for 0.0.*--piece-mb"):
        distribute({"a": part("a", 30)}, [Call(name="x", minutes=1, needs=("a",))], room=20)


def test_the_plan_is_three_calls_of_at_most_nine_minutes():
    places = Places(pack="build/gpu-pack", site="/tmp/s", work="/tmp/w", results='"$OUT"')
    work = calls(places, architecture="sd15", size="512x512", rtx=True)
    assert len(work) == 3 and all(8 <= call.minutes <= 9 for call in work)
    parts = {name: part(name, 8) for call in work for name in call.needs}
    found = distribute(parts, work, room=40)
    text = describe(found, places, tree=30_000_000, limit=64 * 2**20)
    assert "limit:  480 s" in text and "limit:  540 s" in text and "sh build/gpu-pack/3/run.sh" in text
    for number, transfer in enumerate(found, start=1):
        lines = script(number, transfer, places)
        subprocess.run(["sh", "-n"], input=lines, text=True, check=True)
        for line in lines.splitlines():
            if "-m benchmarks.gpu " in line:
                check_options(line)


def check_options(line: str) -> None:
    """A line of the plan is one that the check takes, and ends before its call does."""
    from benchmarks.gpu.__main__ import _parser

    options = _parser().parse_args(line.replace('"', "").split(" -m benchmarks.gpu ")[1].split())
    assert options.budget_minutes < 8 and options.work == Path("/tmp/w")


def test_a_pack_that_is_there_is_not_overwritten_without_a_word(tmp_path: Path):
    (tmp_path / "pack").mkdir()
    for overwrite in (False, True):
        with pytest.raises(BundleError, match="exists"), command._making(tmp_path / "pack", overwrite=overwrite):
            pass
    (tmp_path / "pack" / command.PLAN).touch()
    with command._making(tmp_path / "pack", overwrite=True) as staging:
        (staging / "new").touch()
        assert (tmp_path / "pack" / command.PLAN).is_file(), "the old one stays until the new one is whole"
    assert [path.name for path in (tmp_path / "pack").iterdir()] == ["new"]
