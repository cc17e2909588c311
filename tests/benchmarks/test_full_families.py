"""The benchmark of full-size families: what it measures of a process, and what it does not do twice."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.full_families import STAGES, Stage, markdown, measured, run_stages, stages
from benchmarks.result_file import FOLDER, read_result

MB = 1_000_000


def test_memory_that_a_process_allocates_is_told_from_files_that_it_maps(tmp_path: Path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(300 * MB))
    program = (
        "import mmap, time\n"
        f"held = b'x' * {150 * MB}\n"
        f"with open({str(file)!r}) as f: mapped = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
        "print(sum(mapped[i] for i in range(0, len(mapped), 4096)))\n"
        "time.sleep(1)\n"
    )
    use, said = measured([sys.executable, "-c", program], threads=1)
    assert said == "0\n"
    assert 150 * MB <= use.allocated_bytes < 250 * MB
    assert 300 * MB <= use.mapped_bytes < 400 * MB
    assert use.peak_bytes >= 450 * MB
    assert use.seconds >= 1


def test_a_process_that_fails_ends_the_benchmark():
    with pytest.raises(SystemExit, match="ended with 3"):
        measured([sys.executable, "-c", "raise SystemExit(3)"], threads=1)


def test_stages_whose_product_exists_are_not_run_again(tmp_path: Path):
    """`python -m json.tool` stands for a stage: it writes its product from another file."""
    source, product = tmp_path / "in.json", tmp_path / "made" / "out.json"
    source.write_text("{}")
    product.parent.mkdir()
    stage = Stage("export", ("json.tool", str(source), str(product)), product)
    for expected in ("{}", "{}", '{"a": 1}'):
        if expected != "{}":
            product.unlink()
        run_stages([stage], tmp_path / "records", threads=1, thrifty=False)
        assert json.loads(product.read_text()) == json.loads(expected)
        source.write_text('{"a": 1}')
    assert json.loads((tmp_path / "records" / "export.json").read_text())["use"]["seconds"] > 0


def test_every_stage_is_named_and_measured_figures_make_a_table():
    assert tuple(stage.name for stage in stages("sdxl", Path("build"))) == STAGES
    documents = [read_result(path) for path in sorted(FOLDER.glob("*-full-families-*.json"))]
    assert documents
    text = markdown(documents)
    for document in documents:
        assert f"| {document['architecture']} | export | {document['stages']['export']['use']['seconds']:.0f} |" in text
        assert all(row["passed"] for row in document["parity"])
