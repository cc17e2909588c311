"""A large graph that ONNX Runtime made ready is not made ready again."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from widened_graph import FEED, widened_graph

from latentrt.arrays import Array
from latentrt.backends import host_memory
from latentrt.backends.onnxruntime import kept as onnxruntime_kept
from latentrt.backends.onnxruntime import load as onnxruntime_load
from latentrt.backends.onnxruntime.engine import OnnxRuntimeEngine
from latentrt.backends.onnxruntime.load import load_session
from latentrt.backends.onnxruntime.session import make_session
from latentrt.engine import EngineOptions
from latentrt.errors import BackendError
from latentrt.graph import GraphFile


@pytest.fixture
def graph(tmp_path: Path) -> GraphFile:
    return widened_graph(tmp_path / "bundle")


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The graphs that were made ready; every graph counts as a large one."""
    seen: list[Path] = []

    def counted(graph: GraphFile, options: object) -> object:
        seen.append(graph.path)
        return load_session(graph, options)

    monkeypatch.setattr(onnxruntime_kept, "load_session", counted)
    monkeypatch.setattr(onnxruntime_kept, "FROM_BYTES", 0)
    return seen


def ran(graph: GraphFile, cache: Path | None) -> Array:
    with OnnxRuntimeEngine(graph, options=EngineOptions(cache_dir=cache)) as engine:
        return np.array(engine.run(FEED)["y"])


def ready(cache: Path) -> list[Path]:
    return [*cache.rglob("ready")]


def test_a_second_start_makes_nothing_ready_and_gives_the_same_bits(graph, loads, tmp_path):
    wanted = ran(graph, None)
    first, second = ran(graph, tmp_path / "cache"), ran(graph, tmp_path / "cache")
    assert len(loads) == 1
    np.testing.assert_array_equal(first, wanted)
    np.testing.assert_array_equal(second, wanted)
    (kept,) = ready(tmp_path / "cache")
    assert {file.name for file in kept.iterdir()} == {"graph.onnx", "graph.weights"}
    assert [*kept.parent.iterdir()] == [kept]


def test_a_first_start_packs_once_what_it_runs(graph, tmp_path, monkeypatch):
    """What makes the graph to be kept packs nothing; what runs is read from what was kept."""
    made = []

    def watched(model, options, **given):
        made.append((model, options.optimized_model_filepath != ""))
        if made[-1][1]:
            assert options.get_session_config_entry("session.disable_prepacking") == "1"
        return make_session(model, options, **given)

    monkeypatch.setattr(onnxruntime_load, "make_session", watched)
    monkeypatch.setattr(onnxruntime_kept, "make_session", watched)
    ran(graph, tmp_path / "cache")
    (kept,) = ready(tmp_path / "cache")
    assert made == [(graph.path, True), (kept / "graph.onnx", False)]


@pytest.mark.parametrize("own", [None, "MALLOC_TRIM_THRESHOLD_"])
def test_memory_is_returned_at_once_for_a_while(own, monkeypatch):
    set_to = []
    libc = type("Libc", (), {"mallopt": lambda self, name, value: set_to.append((name, value))})()
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(host_memory.sys, "platform", "linux")
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    if own is not None:
        monkeypatch.setenv(own, "1")
    with pytest.raises(ValueError, match="in it"), host_memory.returning_at_once():
        raise ValueError("in it")
    assert set_to == ([] if own else [(-3, 2**20), (-3, 2**25), (-1, 2**26)])


def test_other_weights_and_small_graphs_are_not_served(graph, loads, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    ran(replace(graph, digest="a"), cache)
    ran(replace(graph, digest="b"), cache)
    assert len(loads) == 2
    kept = ready(cache)
    monkeypatch.setattr(onnxruntime_kept, "FROM_BYTES", 10**9)
    ran(graph, cache)
    assert len(loads) == 3
    assert ready(cache) == kept


@pytest.mark.parametrize("file", ["graph.onnx", "graph.weights"])
def test_what_is_damaged_is_made_anew(graph, loads, tmp_path, caplog, file):
    wanted = ran(graph, tmp_path)
    (kept,) = ready(tmp_path)
    (kept / file).write_bytes((kept / file).read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(ran(graph, tmp_path), wanted)
    assert "is removed" in caplog.text
    ran(graph, tmp_path)
    assert len(loads) == 2


def test_what_a_killed_process_left_is_not_read(graph, loads, tmp_path):
    ran(graph, tmp_path)
    (kept,) = ready(tmp_path)
    shutil.move(kept, kept.parent / "part-1")
    ran(graph, tmp_path)
    assert len(loads) == 2
    assert ready(tmp_path) == [kept]


def test_a_full_disk_is_a_warning(graph, loads, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(onnxruntime_kept.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1, 1, 0))
    with caplog.at_level(logging.WARNING):
        ran(graph, tmp_path)
    assert "not kept" in caplog.text
    assert ready(tmp_path) == []


def test_what_cannot_be_written_is_a_warning(graph, loads, tmp_path, caplog, monkeypatch):
    whole = onnxruntime_kept.load_session

    def failing(graph: GraphFile, options: object) -> object:
        if options.optimized_model_filepath:
            raise BackendError("no space left on the device")
        return whole(graph, options)

    monkeypatch.setattr(onnxruntime_kept, "load_session", failing)
    with caplog.at_level(logging.WARNING):
        ran(graph, tmp_path)
    assert "no space left" in caplog.text
    assert ready(tmp_path) == []
