"""What README and docs show is true: their programs run, their commands parse, their targets and links exist."""

import json
import re
import shlex
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from families.rows import ROWS
from PIL import Image
from safetensors.numpy import save_file

import latentrt
from latentrt.bundle import FORMAT_VERSION, Bundle
from latentrt.cli import command_parser
from latentrt.cli.command import discover

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BUNDLE = Path("build", "bundles", "shapes")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def programs() -> list[tuple[str, int]]:
    return [(name, place) for name, text in PAGES.items() for place, _ in enumerate(blocks(text, "python"))]


def commands() -> list[str]:
    """Every line of a shell block that calls `latentrt`, without its prompt."""
    lines = "\n".join(block for text in PAGES.values() for kind in ("sh", "console") for block in blocks(text, kind))
    return sorted({line.removeprefix("$ ") for line in lines.splitlines() if re.match(r"(\$ )?latentrt ", line)})


def targets() -> list[str]:
    return sorted(
        {name for text in PAGES.values() for name in re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", text, re.M)}
    )


def links() -> list[tuple[str, str]]:
    found = [(name, link) for name, text in PAGES.items() for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    return sorted(set(found))


@pytest.fixture(scope="module")
def hasty_bundle(controlled_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a ControlNet that takes four steps where nothing else is asked."""
    bundle = shutil.copytree(controlled_bundle, tmp_path_factory.mktemp("docs") / "shapes")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["family"]["defaults"]["steps"] = 4
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    return bundle


@pytest.fixture
def place(hasty_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the programs name."""
    monkeypatch.chdir(tmp_path)
    BUNDLE.parent.mkdir(parents=True)
    BUNDLE.symlink_to(hasty_bundle)
    Path("examples").symlink_to(ROOT / "examples")
    shade = np.add.outer(np.arange(128), np.arange(128)).astype(np.uint8)
    Image.fromarray(np.stack([shade] * 3, axis=-1)).save("photo.jpg")
    Image.fromarray((shade > 120).astype(np.uint8) * 255).save("mask.png")
    Path("prompts.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue star", "seed": 3}\n')
    for name in ("a", "b"):
        shutil.copyfile(ROOT / "examples" / "shapes" / "lora" / "outlined.safetensors", f"{name}.safetensors")
    (width,) = {text_encoder.width for text_encoder in Bundle.open(BUNDLE).family.text_encoders}
    save_file({"emb_params": np.ones((1, width), np.float32)}, "cat-toy.safetensors")
    return tmp_path


@pytest.mark.parametrize(("page", "number"), programs())
def test_a_program_runs(page: str, number: int, place: Path, monkeypatch: pytest.MonkeyPatch):
    """On the backend that compiles nothing for a size; that of the README also on the one that is chosen."""
    program = blocks(PAGES[page], "python")[number]
    if "bundles/sdxl" in program:
        pytest.skip("a base and its refiner, which tests/families/test_handover.py runs")
    program = program.replace('Control("canny"', 'Control("random"')
    names: dict[str, object] = {"latentrt": latentrt, "latent": np.zeros((1, 4, 8, 8), np.float32)}
    monkeypatch.setattr(latentrt, "load", partial(latentrt.load, backend="onnxruntime"))
    with nullcontext() if "latentrt.load(" in program else latentrt.load(BUNDLE) as pipe:
        exec(compile(program, page, "exec"), names | {"pipe": pipe})


def test_the_program_of_the_readme_makes_a_picture(place: Path):
    program = blocks(PAGES["README.md"], "python")[0]
    exec(compile(program, "README.md", "exec"), {})
    assert Image.open("circle.png").size == (128, 128)


def families() -> list[list[str]]:
    """The cells of the table of families."""
    rows = re.findall(r"^\| .*`tiny-.*", PAGES["families.md"], re.M)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def test_each_cell_of_the_table_of_families_is_a_test():
    tested = {row.architecture: row for row in reversed(ROWS)}  # the first of each, which names its inputs
    assert {cells[4].strip("`") for cells in families()} == tested.keys()
    sources = next((ROOT / "tests/export").rglob("test_single_file.py")).read_text()
    single_files = re.findall(r'Case\(\s*"([^"]+)"', sources)
    for _, inputs, begins, single_file, architecture in families():
        row = tested[architecture.strip("`")]
        assert tuple(filter(None, inputs.split(", "))) == tuple(sorted(row.inputs))
        assert begins == row.start
        assert single_file in {"", *single_files}


def test_there_is_something_to_check():
    assert {shlex.split(line)[1] for line in commands()} == set(discover())
    assert {"demo", "test"} <= set(targets())


def test_the_readme_is_short():
    words = re.sub(r"```.*?```", "", PAGES["README.md"], flags=re.DOTALL).split()
    assert len(words) <= 800


@pytest.mark.parametrize("line", commands())
def test_a_command_parses(line: str):
    words = shlex.split(line, comments=True)[1:]
    assert command_parser(words[0], discover()[words[0]]).parse(words[1:])


@pytest.mark.parametrize("target", targets())
def test_a_target_exists_and_is_listed(target: str):
    assert re.search(rf"^{target}:.* ## \S", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize(("page", "link"), links())
def test_a_link_leads_somewhere(page: str, link: str):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    assert (folder / link).exists()


def test_the_format_that_the_docs_describe_is_the_one_that_is_written():
    (title,) = re.findall(r"^# .*format version (\d+)$", PAGES["bundle.md"], re.M)
    (row,) = re.findall(r"^\| `format`, `format_version` \| `latentrt-bundle`, (\d+) \|", PAGES["bundle.md"], re.M)
    assert int(title) == int(row) == FORMAT_VERSION
