"""A family from its checkpoint to the final latent, beside what diffusers makes of the same checkpoint."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from families.rows import Row
from traces import Export

import latentrt
from latentrt import Pipeline, Request
from latentrt.backends import open_engines
from latentrt.bundle import FORMAT, FORMAT_VERSION, Bundle, Component
from latentrt.environment.version import VERSION
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.convert.half_policy import place
from latentrt.export.graphs.components import ComponentSpec, component_specs
from latentrt.export.graphs.onnx_from_torch import export_graph
from latentrt.export.parity.components import ComponentRun, compare, reference_runs
from latentrt.export.parity.measurement import Measurement
from latentrt.export.passes.half import FORMATS, to_half
from latentrt.export.passes.storage import load_graph, save_graph
from latentrt.export.quiet import quiet
from latentrt.export.references.schedulers import as_unets_ask
from latentrt.export.staging import describe_files, write_manifest
from latentrt.export.synthetic.checkpoints import make_checkpoint
from latentrt.graph import GraphFile, TensorSpec

Latents = npt.NDArray[np.float32]

PROMPTS = ("a red fox on a hill", "two owls, at night")
SIZE = (96, 128)  # width, height: not square, so that one taken for the other shows
STEPS = 4
SEED = 7
BEGIN = 0.5


@dataclass(frozen=True, slots=True)
class Chain:
    """What was exported of a row, and torch's answers.

    Args:
        checkpoint: its folder.
        graphs: the text encoders and the step, and the encoder where a run begins with a photo.
        runs: of each graph, inputs and torch's outputs.
    """

    row: Row
    checkpoint: Path
    tokenizers: Path
    graphs: Mapping[str, Component]
    runs: Mapping[str, list[ComponentRun]]

    def opened(self) -> Checkpoint:
        """The checkpoint as the export sees it."""
        found = Checkpoint.open(self.checkpoint)
        return found if self.row.without is None else found.without(self.row.without)

    def bundle(self, graphs: Mapping[str, Component]) -> Bundle:
        """Some graphs as a bundle without a manifest."""
        return Bundle(
            root=self.tokenizers, manifest={}, family=read_family(self.opened()), components=graphs, preview=None
        )

    def parity(self, backend: str) -> list[Measurement]:
        """Every graph against torch; by OpenVINO, which compiles each size, at the sizes that are none of a power of
        two and at the smallest."""
        return [
            result
            for name, runs in self.runs.items()
            for result in compare(
                name,
                self.graphs[name].graph,
                [run for run in runs if backend != "openvino" or "128x128" not in run.case],
                backend=backend,
            )
        ]

    @contextlib.contextmanager
    def pipeline(self, *, backend: str = "onnxruntime") -> Iterator[Pipeline]:
        """A pipeline of the graphs."""
        engines = open_engines([part.graph for part in self.graphs.values()], backend=backend)
        with Pipeline(self.bundle(self.graphs), engines) as pipe:
            yield pipe


def chain_name(row: Row) -> str:
    """Under which a row's chain is made once."""
    return f"family-{str(row).replace(' ', '-')}-{row.negative}"


def make_chain(row: Row, folder: Path, export: Export) -> Chain:
    """Makes the checkpoint, runs torch and exports the graphs that a run up to the last latent needs."""
    root = make_checkpoint(row.architecture, folder / "checkpoint")
    chain = Chain(row, root, folder, {}, {})
    checkpoint = chain.opened()
    family = read_family(checkpoint)
    for text_encoder in family.text_encoders:
        if text_encoder.component in checkpoint.parts:
            path = folder / text_encoder.tokenizer
            path.parent.mkdir(exist_ok=True)
            path.write_text(checkpoint.tokenizer(path.parent.name).backend_tokenizer.to_str(), encoding="utf-8")
    graphs, runs = {}, {}
    for spec in component_specs(checkpoint, family):
        if spec.name == "decoder" or (spec.name == "encoder" and row.start != "photo"):
            continue
        module = spec.build()
        graphs[spec.name] = _component(spec, module, folder / f"{spec.name}.onnx", export)
        runs[spec.name] = reference_runs(spec.reference(), spec.inputs)
    return Chain(row, root, folder, graphs, runs)


def _component(spec: ComponentSpec, module: torch.nn.Module, path: Path, export: Export = export_graph) -> Component:
    graph = export(module, inputs=spec.inputs, outputs=spec.outputs, path=path, prefix=spec.prefix)
    weights = path.with_suffix(".weights")
    inputs, outputs = (
        {name: TensorSpec(dtype, tuple(d if isinstance(d, int) else None for d in dims)) for name, (dtype, dims) in io}
        for io in (graph.inputs.items(), graph.outputs.items())
    )
    return Component(
        name=spec.name,
        precision="fp32",
        parameters=graph.parameters,
        graph=GraphFile(
            spec.name,
            path=path,
            inputs=inputs,
            outputs=outputs,
            weights=(weights,) if weights.exists() else (),
            digest=spec.name,
        ),
        dims={name: dims for name, (_, dims) in (*graph.inputs.items(), *graph.outputs.items())},
    )


def bundle_of(chain: Chain, folder: Path) -> Bundle:
    """A chain as a bundle on disk, without decoder and with the encoder."""
    folder.mkdir()
    checkpoint = chain.opened()
    family = read_family(checkpoint)
    (encoder,) = (spec for spec in component_specs(checkpoint, family) if spec.name == "encoder")
    graphs = {**chain.graphs, "encoder": _component(encoder, encoder.build(), folder / "encoder.onnx")}
    rows = {}
    for name, part in graphs.items():
        for file in (part.graph.path, *part.graph.weights):
            if file.parent != folder:
                shutil.copyfile(file, folder / file.name)
        rows[name] = {
            "graph": part.graph.path.name,
            "weights": [file.name for file in part.graph.weights],
            "checkpoint_part": checkpoint.network if name == "step" else name,
            "precision": part.precision,
            "parameters": part.parameters,
            **{
                key: {n: {"dtype": spec.dtype, "dims": list(part.dims[n])} for n, spec in specs.items()}
                for key, specs in (("inputs", part.graph.inputs), ("outputs", part.graph.outputs))
            },
        }
    for name in (each.tokenizer for each in family.text_encoders if each.component in graphs):
        (folder / name).parent.mkdir()
        shutil.copyfile(chain.tokenizers / name, folder / name)
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    write_manifest(
        folder,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "family": family.to_dict(),
            "components": rows,
            "provenance": {
                "checkpoint": {"source": str(checkpoint.root), "sha256": {}},
                "created": "2026-01-01T00:00:00+00:00",
                "tools": {"latentrt": VERSION},
                "opset": 23,
            },
            "files": describe_files(folder, files),
        },
    )
    return Bundle.open(folder)


def in_fp16(part: Component, folder: Path) -> Component:
    """A graph in fp16, as the table of `latentrt.export.convert.half_policy` has it."""
    model, half = load_graph(part.graph.path), FORMATS["fp16"]
    to_half(model, half, [node for node in model.graph if node.name in place(model, half).half])
    path = folder / f"{part.name}.onnx"
    weights = path.with_suffix(".weights")
    save_graph(model, path)
    graph = replace(part.graph, path=path, weights=(weights,), digest=f"{part.name} in fp16")
    return replace(part, precision="fp16", graph=graph)


def found(pipe: Pipeline, row: Row, guidance: float) -> Latents:
    """The final latents of LatentRT."""
    request = Request(
        PROMPTS,
        negative=row.negative or "",
        seed=SEED,
        size=SIZE,
        steps=STEPS,
        guidance=guidance,
        sampler=pipe.bundle.family.noise.default_sampler,
        eta=row.eta,
        start=start(row),
        **(row.ours if guidance != 1 else {}),
    )
    *_, last = pipe.steps(request)
    return last.latent()


def expected(
    chain: Chain,
    guidance: float,
    *,
    within: Callable[[Any], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> Latents:
    """The final latents of the pipeline that model_index.json names, on its own scheduler; it runs within what `within`
    makes of it."""
    row, checkpoint = chain.row, chain.opened()
    parts = {} if row.without is None else {row.without: None, row.without.replace("text_encoder", "tokenizer"): None}
    with quiet(), torch.no_grad():
        pipeline = getattr(diffusers, checkpoint.index["_class_name"]).from_pretrained(checkpoint.root, **parts)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = as_unets_ask(pipeline.scheduler)
        arguments: dict[str, Any] = {
            "prompt": list(PROMPTS),
            "num_inference_steps": STEPS,
            "guidance_scale": guidance,
            "generator": [torch.Generator().manual_seed(SEED + i) for i in range(len(PROMPTS))],
            "output_type": "latent",
            **(row.theirs if guidance != 1 else {}),
        }
        if row.eta is not None:
            arguments["eta"] = row.eta
        if row.negative:  # an empty one of ours is none of theirs
            arguments["negative_prompt"] = [row.negative] * len(PROMPTS)
        if row.start == "latent":
            arguments |= {"image": torch.from_numpy(_latent()), "denoising_start": BEGIN}
        else:
            arguments |= {"width": SIZE[0], "height": SIZE[1]}
        if row.start == "photo":
            n = len(PROMPTS)  # one for each image, or all share the draw of the first
            arguments |= {"image": [_photo()] * n, "mask_image": [_mask()] * n, "strength": 1.0}
        with within(pipeline):
            latents: Latents = pipeline(**arguments).images.float().numpy()
    return latents


def start(row: Row) -> Any:
    """What a row's run begins with."""
    match row.start:
        case "photo":
            return latentrt.Inpaint(np.asarray(_photo()), np.asarray(_mask()))
        case "latent":
            return latentrt.Latent(_latent(), denoising_start=BEGIN)
        case _:
            return latentrt.Text()


def _latent() -> Latents:
    shape = (len(PROMPTS), 4, SIZE[1] // 8, SIZE[0] // 8)
    return np.random.default_rng(5).standard_normal(shape, np.float32)


def _photo() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(6).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8))


def _mask() -> PIL.Image.Image:
    """White where to paint, in whole cells of the latent."""
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[32:96, 16:80] = 255
    return PIL.Image.fromarray(mask)
