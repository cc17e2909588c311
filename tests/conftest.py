"""Checkpoints and bundles that tests share. They are made once a session and read-only: copy what you damage.

What a fixture needs of the export is imported where it is made: the process that hands out the files reads this one,
and would keep all workers waiting for seconds of imports.
"""

import gc
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from compatibility import pytest_addoption, pytest_collection_modifyitems
from filelock import FileLock
from hypothesis import settings
from order import LONGEST

ROOT = Path(__file__).parents[1]
settings.register_profile("untimed", deadline=None)  # a machine may be busy
settings.load_profile("untimed")
__all__ = ["pytest_addoption", "pytest_collection_modifyitems"]  # pytest finds its hooks here


@pytest.hookimpl(specname="pytest_collection_modifyitems")
def pytest_longest_first(items: list[pytest.Item]) -> None:
    """Files that take long come first: no worker ends with one of them when the others have nothing left."""
    place = {ROOT / "tests" / name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish() -> None:
    """What is imported by now stays. To search it for garbage would take almost half a second whenever an export frees
    its memory."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shapes_checkpoint() -> Path:
    """The trained checkpoint that ships: its outputs depend on every input, as random weights' hardly do."""
    return ROOT / "examples" / "shapes" / "checkpoint"


@pytest.fixture(scope="session", autouse=True)
def own_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for the user by default is kept for these tests instead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


Once = Callable[[str, Callable[[Path], Any]], Any]
Shared = Callable[[str, Callable[[Path], Any]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """What `make(folder)` returns, under a name: made by the first worker that asks, the others wait and read it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    folder = folder / "once"
    folder.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], Any]) -> Any:
        result = folder / f"{name}.pickle"
        with FileLock(folder / f"{name}.lock"):
            if not result.exists():
                shutil.rmtree(folder / name, ignore_errors=True)  # of a worker that failed
                (folder / name).mkdir()
                result.write_bytes(pickle.dumps(make(folder / name)))
            return pickle.loads(result.read_bytes())

    return get


@pytest.fixture(scope="session")
def shared(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """The folder that `make(folder)` returns. Each worker gets a copy, so that none sees what another caches there."""

    def get(name: str, make: Callable[[Path], Any]) -> Path:
        made: Path = once(name, make)
        if "PYTEST_XDIST_WORKER" not in os.environ:
            return made
        return shutil.copytree(made, tmp_path_factory.mktemp(name) / made.name)

    return get


@pytest.fixture(scope="session")
def export_once(once: Once) -> Any:
    """As `export_graph`: what is traced once in a run is copied from then on (`traces.Export`)."""
    from traces import shared_export

    return shared_export(once)


@pytest.fixture(scope="session")
def shapes_bundle(shapes_checkpoint: Path, shared: Shared, export_once: Any) -> Path:
    """The bundle of `shapes_checkpoint`, its components compared with torch."""

    def make(folder: Path) -> Path:
        from latentrt.export import package
        from latentrt.export.checkpoint.folder import Checkpoint

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(package, "export_graph", export_once)
            return package.export_bundle(Checkpoint.open(shapes_checkpoint), folder / "shapes").root

    return shared("shapes", make)


@pytest.fixture(scope="session")
def shapes_fp16(shapes_bundle: Path, shared: Shared) -> Path:
    """`shapes_bundle` in fp16, with the quick range check."""
    return shared("fp16", lambda folder: _converted(shapes_bundle, folder / "shapes-fp16", "fp16"))


@pytest.fixture(scope="session")
def shapes_bf16(shapes_bundle: Path, shared: Shared) -> Path:
    """`shapes_bundle` in bf16."""
    return shared("bf16", lambda folder: _converted(shapes_bundle, folder / "shapes-bf16", "bf16"))


def _converted(bundle: Path, output: Path, precision: str) -> Path:
    from latentrt.bundle import Bundle
    from latentrt.export.convert.precision import convert_bundle

    source = Bundle.open(bundle)
    return convert_bundle(source, output, precision=dict.fromkeys(source.components, precision)).root


@pytest.fixture(scope="session")
def tiny_checkpoint(shared: Shared) -> Path:
    """Random weights in the architecture of Stable Diffusion 1.5, at a thousandth of its size."""
    return shared("checkpoint", lambda folder: _random("tiny-sd15", folder / "tiny"))


@pytest.fixture(scope="session")
def inpainting_checkpoint(shared: Shared) -> Path:
    """As `tiny_checkpoint`, for a network that sees a mask and the masked picture."""
    return shared("inpainting-checkpoint", lambda folder: _random("tiny-sd15-inpaint", folder / "tiny"))


def _random(architecture: str, folder: Path) -> Path:
    from latentrt.export.synthetic.checkpoints import make_checkpoint

    return make_checkpoint(architecture, folder)


@pytest.fixture(scope="session")
def inpainting_bundle(inpainting_checkpoint: Path, shared: Shared, export_once: Any) -> Path:
    """The bundle of `inpainting_checkpoint`, not compared with torch."""

    def make(folder: Path) -> Path:
        from latentrt.export import package
        from latentrt.export.checkpoint.folder import Checkpoint

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(package, "export_graph", export_once)
            return package.export_bundle(Checkpoint.open(inpainting_checkpoint), folder / "tiny", check=False).root

    return shared("inpainting", make)


@pytest.fixture(scope="session")
def tiny_bundle(shapes_bundle: Path) -> Path:
    """A bundle for tests to which the weights do not matter."""
    return shapes_bundle


@pytest.fixture(scope="session")
def pooled_bundle(shapes_checkpoint: Path, shared: Shared, export_once: Any) -> Path:
    """That of `shapes_checkpoint` with pooled attention, judged by one image of two steps and not compared with torch;
    the step is pooled after it was traced, so that the trace is that of `shapes_bundle`."""

    def make(folder: Path) -> Path:
        from latentrt.export import package
        from latentrt.export.checkpoint.family import read_family, with_defaults
        from latentrt.export.checkpoint.folder import Checkpoint
        from latentrt.export.parity.torch import pooling
        from latentrt.export.passes.storage import load_graph, save_graph

        def export(module: Any, *, path: Path, finish: Any, **asked: Any) -> Any:
            traced = export_once(module, path=folder / path.name, finish=package.UNCHANGED.apply, **asked)
            model = load_graph(folder / path.name)
            finish(model)
            save_graph(model, path)
            return traced

        checkpoint = Checkpoint.open(shapes_checkpoint)
        family = with_defaults(read_family(checkpoint), steps=2, guidance=None, sampler=None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(package, "export_graph", export)
            patch.setattr(pooling, "IMAGES", 1)
            bundle = package.export_bundle(
                checkpoint, folder / "pooled", family=family, pool_attention=True, check=False
            )
            assert pooling.record_pooling(checkpoint, bundle, (), min_sqnr=15.0, status=lambda _: None) == []
        return bundle.root

    return shared("pooled", make)


@pytest.fixture(scope="session")
def random_controlnet(shapes_checkpoint: Path, shared: Shared) -> Path:
    """A ControlNet with the encoder of the U-Net of `shapes_checkpoint`; what it adds is random, and large."""

    def make(folder: Path) -> Path:
        import torch
        from diffusers import ControlNetModel

        from latentrt.export.checkpoint.folder import Checkpoint

        torch.manual_seed(0)
        unet = Checkpoint.open(shapes_checkpoint).unet()
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 16))
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            torch.nn.init.normal_(layer.weight, std=0.1)
        net.save_pretrained(folder / "controlnet")
        return folder / "controlnet"

    return shared("random-controlnet", make)


@pytest.fixture(scope="session")
def controlled_bundle(shapes_bundle: Path, random_controlnet: Path, shared: Shared) -> Path:
    """`shapes_bundle` with `random_controlnet` added, compared with torch; its name is `random`."""

    def make(folder: Path) -> Path:
        from latentrt.bundle import Bundle
        from latentrt.export.controlnets.controlnet import ControlNet, add_controlnets

        nets = [ControlNet.open("random", random_controlnet)]
        return add_controlnets(Bundle.open(shapes_bundle), folder / "controlled", nets).root

    return shared("controlled", make)


@pytest.fixture(scope="session")
def cached_bundle(controlled_bundle: Path, shared: Shared) -> Path:
    """`controlled_bundle` with step caching; shallow calls compute one layer."""

    def make(folder: Path) -> Path:
        from latentrt.bundle import Bundle
        from latentrt.export.bundles.step_cache import add_step_cache

        return add_step_cache(Bundle.open(controlled_bundle), folder / "cached", layers=1).root

    return shared("cached", make)


@pytest.fixture(scope="session")
def controlled_fp16(controlled_bundle: Path, shared: Shared) -> Path:
    """`controlled_bundle` with the step and the ControlNet in fp16."""

    def make(folder: Path) -> Path:
        from latentrt.bundle import Bundle
        from latentrt.export.convert.precision import convert_bundle

        chosen = {"step": "fp16", "controlnet-random": "fp16"}
        return convert_bundle(Bundle.open(controlled_bundle), folder / "half", precision=chosen).root

    return shared("controlled-fp16", make)
