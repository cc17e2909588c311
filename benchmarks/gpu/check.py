"""The sections of a check, and what each needs."""

import argparse
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.gpu import candidates
from benchmarks.gpu.latency import compare, compete, stage_flops
from benchmarks.gpu.prepare import (
    PREBUILT,
    Place,
    Ranges,
    Task,
    architecture,
    bundle_tasks,
    checkpoint_tasks,
    engine_task,
    graph_tasks,
    prepare,
    rewritten,
)
from benchmarks.gpu.probe import VARIANTS
from benchmarks.gpu.record import Deadline, Record, git_state, result_path
from benchmarks.gpu.report import report
from benchmarks.gpu.toys import TOYS
from benchmarks.gpu.worker import ask_apart
from latentrt.bench.machine import machine_facts
from latentrt.bench.runner import Workload
from latentrt.bundle import Bundle, sha256_file
from latentrt.cli.bench import PROMPT
from latentrt.errors import EnvironmentLacks

PACKAGES = (
    *("numpy", "tokenizers", "torch", "diffusers", "transformers", "onnx", "onnxscript", "triton", "cuda-python"),
    *("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13"),
)
MEASURED = ("text_encoder", "step", "decoder")
DTYPES = {"fp32": "float32", "fp16": "float16"}
JUDGED = ("toys", "parity", "full-size")
SURVEY_LIMIT_S = 300.0
TOY_LIMIT_S = 120.0
PARITY_LIMIT_S = 1800.0
PROBE_LIMIT_S = 600.0
NEEDED = """\
Needed: an NVIDIA GPU, its driver, and torch for CUDA, which everything is compared with; then whichever of
onnxruntime-gpu, tensorrt and tensorrt-rtx-cu13 shall be measured. `--only prepare` makes ahead, without a GPU, what a
check needs."""


class Check:
    """One check, section by section.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.place = Place(options.work.resolve(), options.architecture)
        self.deadline = Deadline.after(options.budget_minutes)
        self.survey = ask_apart(
            "benchmarks.gpu.card:open_survey", {}, log=self.place.logs / "survey.log", timeout_s=SURVEY_LIMIT_S
        )
        self.backends = _usable(self.survey, options.device, options.backend)
        facts = machine_facts(PACKAGES) | {"git": git_state()}
        head = {
            "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
            "provenance": facts,
            "survey": self.survey,
            "backends": self.backends,
        }
        card = "none" if self.survey["card"] is None else self.survey["card"]["name"]
        whole = options.only == USUAL
        path = result_path(options.results, date=facts["date"], card=card, sections=options.only, whole=whole)
        self.record = Record(path, head, say=lambda line: print(line, file=sys.stderr, flush=True))

    def run(self) -> int:
        """Does the sections that were asked for, then the report on stdout. Returns the exit code."""
        if self.options.device == "cuda" and self.survey["card"] is None and self.options.only != ("prepare",):
            print(f"gpu-check: no GPU\n{report(self.record.document)}\n{NEEDED}", file=sys.stderr)
            return 3
        for name in self.options.only:
            with self.record.section(name) as row:
                SECTIONS[name](self, row)
        self.record.finish()
        print(f"{report(self.record.document)}\n\n{self.record.path}")
        return self._verdict()

    def make_everything(self, row: dict[str, Any]) -> None:
        """Checkpoints and bundles, and the engines that can be built here: for a machine without a GPU."""
        self._prepare(row, self._shapes_tasks() + self._full_tasks())

    def toys(self, row: dict[str, Any]) -> None:
        """Operators one by one on ONNX Runtime: which kernels are there, before a model is tried."""
        row["runs"] = []
        if "onnxruntime" not in self.backends:
            raise EnvironmentLacks("onnxruntime is not among the backends", hint="its kernels are what is tried here")
        for name, toy in TOYS.items():
            if self.options.device == "cuda" or toy.cpu:
                job = {"toy": name, "device": self.options.device}
                self._judge(row, f"kernel {name}", "benchmarks.gpu.toys:open_toy", job, limit_s=TOY_LIMIT_S)

    def parity(self, row: dict[str, Any]) -> None:
        """The example checkpoint, which was trained and so hides nothing, on every backend and precision."""
        self._prepare(row, self._shapes_tasks())
        row["runs"] = []
        common = {
            "checkpoint": str(self.options.checkpoint),
            "device": self.options.device,
            "samplers": self.options.samplers,
        }
        for precision, backend in product(self.options.precision, self.backends):
            for name, bundle in self._graphs(backend, self._judged, precision):
                job = {**common, "backend": backend, "bundle": str(bundle)}
                self._judge(row, name, "benchmarks.gpu.parity:open_check", job)
        if importlib.util.find_spec("polygraphy") is not None:
            for backend, precision in product(self.backends, self.options.precision):
                job = {
                    "bundle": str(self.place.bundle(self._judged, precision)),
                    "reference": str(self.place.bundle(self._judged, "fp32")),
                    "backend": backend,
                    "device": self.options.device,
                    "components": None,
                }
                self._judge(row, f"polygraphy {backend} {precision}", "benchmarks.gpu.opinion:open_opinion", job)
        if "fp16" in self.options.precision:
            self._judge(row, "torch fp16", "benchmarks.gpu.parity:open_reference", common)

    def full_size(self, row: dict[str, Any]) -> None:
        """The components that are measured, at the size that is measured: other kernels serve them."""
        self._prepare(row, self._full_tasks())
        row["runs"] = []
        precision = self.options.precision[-1]
        for backend in self.backends:
            for name, bundle in self._graphs(backend, self.options.architecture, precision):
                job = {
                    "checkpoint": str(self.place.checkpoint),
                    "bundle": str(bundle),
                    "backend": backend,
                    "device": self.options.device,
                    "size": self.options.size,
                }
                self._judge(row, name, "benchmarks.gpu.parity:open_full_size", job)

    def latency(self, row: dict[str, Any]) -> None:
        """Every backend and torch by turns, for each batch."""
        self._prepare(row, self._full_tasks())
        row["workloads"] = []
        options, precision = self.options, self.options.precision[-1]
        bundle = self.place.bundle(options.architecture, precision)
        entrants = candidates.torch_peers(
            str(self.place.checkpoint), options.peers, dtype=DTYPES[precision], device=options.device
        )
        for backend in self.backends:
            graphs = self._graphs(backend, options.architecture, precision)
            entrants += candidates.own(graphs, backend=backend, device=options.device)
        for batch in options.batch:
            part: dict[str, Any] = {"name": f"latency, batch {batch}"}
            row["workloads"].append(part)
            with self.record.guarded(part, part["name"]):
                workload = self._workload(batch)
                work: dict[str, Any] = {"name": "counting the work"}
                part["work"] = work
                with self.record.guarded(work, work["name"]):
                    work["flops"] = stage_flops(Bundle.open(bundle), workload)
                compete(
                    entrants,
                    workload,
                    rounds=options.rounds,
                    into=part,
                    record=self.record,
                    deadline=self.deadline,
                    logs=self.place.logs,
                )
                compare(part, flops=work.get("flops", {}), peak_tflops=self._peak_tflops())

    def rtx_probe(self, row: dict[str, Any]) -> None:
        """TensorRT for RTX on this GPU, on its list or not."""
        if (lacks := self.survey["variants"]["tensorrt-rtx"]["lacks"]) is not None:
            raise EnvironmentLacks(f"there is no TensorRT for RTX: {lacks}", hint="install tensorrt-rtx-cu13")
        self._prepare(row, bundle_tasks(self.place, self._judged, self.options.checkpoint, ()))
        row["variants"] = []
        for variant in VARIANTS:
            part: dict[str, Any] = {"name": f"TensorRT for RTX, {variant} engine"}
            row["variants"].append(part)
            job = {"bundle": str(self.place.bundle(self._judged, "fp32")), "module": "tensorrt_rtx", "variant": variant}
            with self.record.guarded(part, part["name"]):
                log, limit_s = self.place.logs / f"probe-{variant}.log", self.deadline.left_s(PROBE_LIMIT_S)
                part["result"] = ask_apart("benchmarks.gpu.probe:open_probe", job, log=log, timeout_s=limit_s)

    def _judge(
        self,
        row: dict[str, Any],
        name: str,
        opener: str,
        job: Mapping[str, Any],
        *,
        limit_s: float = PARITY_LIMIT_S,
    ) -> None:
        part: dict[str, Any] = {"name": name, "rows": []}
        row["runs"].append(part)
        with self.record.guarded(part, f"parity: {name}"):
            log = self.place.logs / f"parity-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.log"
            part["rows"] = ask_apart(opener, job, log=log, timeout_s=self.deadline.left_s(limit_s))

    def _prepare(self, row: dict[str, Any], tasks: list[Task]) -> None:
        """Does what is missing, and notes which bundles there are: the sha256 of their manifests, and which of their
        graphs ONNX Runtime will run on CUDA as rewritten for it."""
        prepare(tasks, into=row, record=self.record, deadline=self.deadline, logs=self.place.logs)
        manifests = sorted(self.place.work.glob("bundles/*/bundle.json"))
        row["bundles"] = {path.parent.name: sha256_file(path) for path in manifests}
        if self._on_cuda("onnxruntime"):
            version = self.survey["variants"]["onnxruntime"]["version"]
            row["graphs_for_cuda"] = {path.parent.name: rewritten(path.parent, version) for path in manifests}

    def _shapes_tasks(self) -> list[Task]:
        """What `latentrt check` judges: 64 to 160 px, up to 3 images in float32, 16 in float16."""
        tasks = bundle_tasks(self.place, self._judged, self.options.checkpoint, self.options.precision)
        tasks += self._graph_tasks(self._judged, self.options.precision)
        return tasks + [
            engine_task(
                self.place.bundle(self._judged, precision),
                variant,
                Ranges(sizes="64x64..160x160", batch="1..3" if precision == "fp32" else "1..16", context="77..154"),
                gpus=gpus,
            )
            for (variant, gpus), precision in product(self._variants(), self.options.precision)
        ]

    def _full_tasks(self) -> list[Task]:
        """An engine for each batch: one for all batches is tuned to none."""
        options = self.options
        tasks = checkpoint_tasks(self.place)
        tasks += bundle_tasks(self.place, options.architecture, self.place.checkpoint, options.precision[-1:])
        tasks += self._graph_tasks(options.architecture, options.precision[-1:])
        bundle = self.place.bundle(options.architecture, options.precision[-1])
        width, height = options.size
        return tasks + [
            engine_task(
                bundle,
                variant,
                Ranges(sizes=f"{width}x{height}", batch=str(batch), context="77"),
                gpus=gpus,
                components=MEASURED,
            )
            for (variant, gpus), batch in product(self._variants(), options.batch)
        ]

    def _graph_tasks(self, name: str, precisions: Sequence[str]) -> list[Task]:
        """Where ONNX Runtime runs on CUDA: the graphs for it, and the bundle without them."""
        return [
            task
            for precision in precisions
            if self._on_cuda("onnxruntime")
            for task in graph_tasks(self.place.bundle(name, precision), self.place.bundle(name, f"{precision}-plain"))
        ]

    def _graphs(self, backend: str, name: str, precision: str) -> list[tuple[str, Path]]:
        """What is compared of a backend, by name: a bundle; with graphs for CUDA also those that they were made of."""
        found = [(f"{backend} {precision}", self.place.bundle(name, precision))]
        if self._on_cuda(backend):
            found.append((f"{backend} {precision} (plain graph)", self.place.bundle(name, f"{precision}-plain")))
        return found

    def _on_cuda(self, backend: str) -> bool:
        return backend in self.backends and backend not in PREBUILT and self.options.device == "cuda"

    def _variants(self) -> list[tuple[str, str | None]]:
        """Those that need engines, and what to build these for."""
        card = self.survey["card"]
        capability = None if card is None else card["compute_capability"]
        return [(name, architecture(name, capability)) for name in self.backends if name in PREBUILT]

    @property
    def _judged(self) -> str:
        """`shapes-checkpoint` of `examples/shapes/checkpoint`."""
        path = self.options.checkpoint.resolve()
        return f"{path.parent.name}-{path.name}"

    def _workload(self, batch: int) -> Workload:
        options = self.options
        return Workload(
            prompt=PROMPT,
            size=options.size,
            batch=batch,
            steps=options.steps,
            guidance=options.guidance,
            threads=None,
            repeat=options.repeat,
            warmup=options.warmup,
        )

    def _verdict(self) -> int:
        sections = self.record.document["sections"]
        asked = [sections[name] for name in JUDGED if name in sections]
        runs = [run for section in asked for run in section.get("runs", [])]
        judged = [row["passed"] for run in runs for row in run["rows"] if row["limit"] is not None]
        whole = all(part["status"] == "done" for part in (*asked, *runs))
        return 0 if not asked or (whole and judged and all(judged)) else 1

    def _peak_tflops(self) -> float | None:
        card = self.survey["card"]
        return None if card is None else card["peak_tflops"]


def _usable(survey: Mapping[str, Any], device: str, wanted: tuple[str, ...] | None) -> list[str]:
    """The backends that run on the device, of those wanted."""
    on_cpu = ("onnxruntime",)
    found = [
        name
        for name, variant in survey["variants"].items()
        if name != "torch" and (name in on_cpu if device == "cpu" else variant["lacks"] is None)
    ]
    return found if wanted is None else [name for name in found if name in wanted]


# By the name that a user gives; `prepare` only where it is asked for, as the others prepare what they need.
SECTIONS: Mapping[str, Callable[[Check, dict[str, Any]], None]] = {
    "prepare": Check.make_everything,
    "toys": Check.toys,
    "parity": Check.parity,
    "latency": Check.latency,
    "full-size": Check.full_size,
    "rtx-probe": Check.rtx_probe,
}
USUAL = tuple(name for name in SECTIONS if name != "prepare")
