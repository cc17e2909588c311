"""The example bundle in int8, calibrated briefly: a few prompts, few steps."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from latentrt.bundle import Bundle
from latentrt.calibration.collect import CalibrationSettings
from latentrt.calibration.manifest import Policy
from latentrt.calibration.package import Calibrated, calibrate_bundle
from latentrt.export.bundles.derived import component_files, derive_bundle
from latentrt.export.parity.gates import Evaluation

ROOT = Path(__file__).parents[2]
PROMPTS = tuple((ROOT / "examples" / "shapes" / "prompts.txt").read_text().splitlines())


@dataclass(frozen=True, slots=True)
class Brief:
    """Settings of a short calibration; `seen` prompts are calibrated on, the next ones judged."""

    seen: int = 4
    steps: int = 5
    size: tuple[int, int] = (128, 128)

    @property
    def policy(self) -> Policy:
        return Policy(components={"step": "int8"}, ranges="mse", alpha=0.8)

    @property
    def settings(self) -> CalibrationSettings:
        return CalibrationSettings(
            prompts=PROMPTS[: self.seen],
            negative="",
            sizes=(self.size,),
            steps=self.steps,
            guidance=7.5,
            sampler="dpmpp-2m",
            seed=0,
            batch=4,
        )

    @property
    def evaluation(self) -> Evaluation:
        return Evaluation(
            prompts=PROMPTS[-4:],
            negative="",
            size=self.size,
            steps=self.steps,
            guidance=7.5,
            sampler="dpmpp-2m",
            seed=100_000,
            batch=4,
            backends=("onnxruntime", "openvino"),
        )


@pytest.fixture(scope="session")
def brief() -> Brief:
    return Brief()


@pytest.fixture(scope="session")
def calibrated(shapes_bundle: Path, brief: Brief, once: Callable[..., Calibrated]) -> Calibrated:
    """`shapes_bundle` in int8 under the default policy, judged on both CPU backends."""

    def make(folder: Path) -> Calibrated:
        source = Bundle.open(shapes_bundle)
        asked = {"policy": brief.policy, "settings": brief.settings, "evaluation": brief.evaluation}
        return calibrate_bundle(source, folder / "shapes-int8", **asked)

    return once("int8", make)


@pytest.fixture(scope="session")
def calibrated_fp8(shapes_bundle: Path, brief: Brief, once: Callable[..., Calibrated]) -> Calibrated:
    """`shapes_bundle` in fp8, calibrated very briefly and judged on both CPU backends."""
    small = {"prompts": PROMPTS[:1], "steps": 2}

    def make(folder: Path) -> Calibrated:
        return calibrate_bundle(
            Bundle.open(shapes_bundle),
            folder / "shapes-fp8",
            policy=replace(brief.policy, components={"step": "fp8"}),
            settings=replace(brief.settings, **small, sizes=((64, 64),)),
            evaluation=replace(brief.evaluation, **small, size=(64, 64)),
        )

    return once("fp8", make)


@pytest.fixture(scope="session")
def controlled_int8(calibrated: Calibrated, controlled_bundle: Path, shared: Callable[..., Path]) -> Path:
    """`calibrated` with the ControlNet of `controlled_bundle`, under its name and under `other`, which is a second one
    to all but the disk."""
    donor = Bundle.open(controlled_bundle)

    def copied(staging: Path) -> dict[str, Any]:
        row = donor.manifest["components"]["controlnet-random"]
        for name in component_files(row):
            shutil.copyfile(donor.root / name, staging / name)
        return row

    def make(folder: Path) -> Path:
        writers = {"controlnet-random": copied, "controlnet-other": copied}
        return derive_bundle(calibrated.bundle, folder / "int8", writers=writers, options={}).root

    return shared("controlled-int8", make)


@pytest.fixture
def short() -> Callable[..., CalibrationSettings]:
    """A settings of two calls on small pictures, for tests of the machinery."""

    def make(*prompts: str, steps: int = 2, size: tuple[int, int] = (64, 64)) -> CalibrationSettings:
        return CalibrationSettings(
            prompts=prompts,
            negative="",
            sizes=(size,),
            steps=steps,
            guidance=4.0,
            sampler="euler",
            seed=3,
        )

    return make
