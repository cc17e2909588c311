"""A short form of `make fuzz`, and that what it looks for would be found."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.kinds import KINDS, input_of
from fuzz.runner import Work, keep, run


def test_inputs_of_every_kind_are_taken_or_refused():
    counts = run([Work(name, 6 * kind.share) for name, kind in KINDS.items()], seed=1)
    assert [fault for count in counts.values() for fault in count.faults] == []
    for name, count in counts.items():
        assert count.inputs == 6 * KINDS[name].share
        assert count.refused, name


@pytest.fixture(scope="module")
def found():
    """Of a target that raises, aborts and hangs."""
    return run([Work("faulty", 8)], seed=21, patience_s=2)["faulty"]


def test_exceptions_crashes_and_hangs_are_faults_and_the_run_goes_on(found):
    kinds = {fault.what.split()[0] for fault in found.faults}
    assert kinds == {"KeyError", "the", "no"} and found.inputs == 8
    assert [fault.what for fault in found.faults if "SIGABRT" in fault.what]
    assert found.accepted == 8 - len(found.faults)


def test_a_fault_is_kept_and_can_be_tried_again(found, tmp_path: Path):
    fault = next(fault for fault in found.faults if fault.what.startswith("KeyError"))
    path = keep(fault, tmp_path)
    assert path.read_bytes() == b"raise" and "KeyError" in path.with_name(f"{path.name}.txt").read_text()
    command = [sys.executable, "-m", "fuzz", "--kinds", "faulty", "--input", str(path)]
    again = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert again.returncode == 1 and "KeyError" in again.stdout


def test_the_same_seed_gives_the_same_inputs(tmp_path: Path):
    for name, kind in KINDS.items():
        made = []
        for turn in ("first", "second"):
            (tmp_path / name / turn).mkdir(parents=True)
            make, _ = kind.prepare(tmp_path / name / turn)
            made.append([input_of(name, make, seed=5, index=index) for index in range(3)])
        assert made[0] == made[1], name
