"""ControlNets of transformers, from their folders to the final latent, beside what diffusers makes of the same.

`tests/parity/test_control_latents.py` has those of U-Nets. The bundle is that of a family's chain; its ControlNets are
added to it afterwards.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from controls import asked_of_diffusers, distance, last_latent, picture
from diffusers import SD3ControlNetModel, SD3Transformer2DModel, StableDiffusion3ControlNetPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from families.chain import PROMPTS, SEED, SIZE, STEPS, Chain, bundle_of, chain_name, make_chain
from families.rows import ROWS
from PIL import Image
from prepared import assert_ready_for
from step_caching import cached, repeated

from latentrt import Control, Pipeline, Request, StepCache
from latentrt.backends import open_engines
from latentrt.bundle import STEP_CONTROL, Bundle
from latentrt.errors import CheckpointError, RequestError
from latentrt.export.bundles.step_cache import add_step_cache
from latentrt.export.cli.build import sizes
from latentrt.export.controlnets.controlnet import ControlNet, add_controlnets
from latentrt.export.convert.precision import convert_bundle
from latentrt.export.engines.build import build_engines
from latentrt.export.engines.ranges import Ranges
from latentrt.export.engines.variants import variant
from latentrt.export.graphs.modules.control_mmdit import TransformerControl
from latentrt.export.parity.components import compare
from latentrt.export.parity.reference import BundleReference
from latentrt.export.parity.torch.reference import TorchReference
from latentrt.export.passes.residuals import add_step_residuals
from latentrt.export.quiet import quiet

pytestmark = pytest.mark.families
TOLERANCE = 1e-3  # of the largest value of the final latent
NEGATIVE = "blurry, dark"
GUIDANCE = 5.0

POOLED = {"force_zeros_for_pooled_projection": False}
BARE = {**POOLED, "joint_attention_dim": None, "use_pos_embed": False}
DUAL = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}


@dataclass(frozen=True, slots=True)
class Added:
    """A family's bundle with ControlNets of so many layers, by name, and their settings."""

    architecture: str
    layers: int
    nets: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        return self.architecture


ADDED = (
    Added("tiny-sd3", 3, {"zeros": {}}),
    Added("tiny-sd35", 2, {"zeros": DUAL, "pooled": {**POOLED, **DUAL}, "bare": BARE}),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One run. Several controls share the ControlNet and differ in picture, scale and part of the run."""

    net: str = "zeros"
    scales: tuple[float, ...] = (1.0,)
    spans: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    guidance: float = GUIDANCE

    @property
    def controls(self) -> list[Control]:
        return [
            Control(self.net, picture(index, SIZE), scale, *span)
            for index, (scale, span) in enumerate(zip(self.scales, self.spans, strict=True))
        ]

    def request(self, **changes: Any) -> Request:
        return replace(
            Request(
                PROMPTS,
                negative=NEGATIVE,
                seed=SEED,
                size=SIZE,
                steps=STEPS,
                guidance=self.guidance,
                sampler="flow-euler",
                control=self.controls,
            ),
            **changes,
        )


CASES = {
    "one": Case(),
    "one, without a negative branch": Case(guidance=1.0),
    "two, in parts of the run": Case(scales=(0.7, 1.3), spans=((0.0, 1.0), (0.25, 0.75))),
    "pooled texts and the VAE's shift": Case("pooled"),
    "without text and positions": Case("bare"),
}


@dataclass(frozen=True, slots=True)
class Controlled:
    """A chain, its bundle with ControlNets, and where these come from."""

    chain: Chain
    bundle: Path
    nets: Mapping[str, Path]

    @contextmanager
    def pipeline(self, backend: str = "onnxruntime", bundle: Bundle | None = None) -> Iterator[Pipeline]:
        bundle = Bundle.open(self.bundle) if bundle is None else bundle
        engines = open_engines([part.graph for part in bundle.components.values()], backend=backend)
        with Pipeline(bundle, engines) as pipe:
            yield pipe


def make_net(folder: Path, config: Mapping[str, Any], layers: int, settings: Mapping[str, Any]) -> Path:
    """A random ControlNet for a transformer of this configuration; what it adds is large."""
    torch.manual_seed(3)
    own = ("sample_size", "patch_size", "in_channels", "attention_head_dim", "num_attention_heads", "out_channels")
    own += ("joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size")
    net = SD3ControlNetModel(**{name: config[name] for name in own} | {"num_layers": layers} | settings)
    for weight in net.parameters():
        if weight.ndim > 1:
            weight.data *= 2  # as the transformer's: at torch's own scale a tiny one hardly hears its conditions
    for layer in (*net.controlnet_blocks, net.pos_embed_input.proj):
        torch.nn.init.normal_(layer.weight, std=0.3)
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=ADDED, ids=str)
def controlled(request: pytest.FixtureRequest, once, export_once) -> Controlled:
    chosen: Added = request.param
    row = next(row for row in ROWS if row.architecture == chosen.architecture and row.without is None and not row.ours)
    chain = once(chain_name(row), lambda folder: make_chain(row, folder, export_once))

    def make(folder: Path) -> Controlled:
        config = chain.opened().config("transformer")
        nets = {name: make_net(folder / name, config, chosen.layers, each) for name, each in chosen.nets.items()}
        plain = bundle_of(chain, folder / "plain")
        added = [ControlNet.open(name, path) for name, path in nets.items()]
        return Controlled(chain, add_controlnets(plain, folder / "controlled", added).root, nets)

    return once(f"controlled-{chosen}", make)


@pytest.fixture(scope="module")
def pipe(controlled: Controlled) -> Iterator[Pipeline]:
    with controlled.pipeline() as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(controlled: Controlled) -> Callable[..., np.ndarray]:
    """What diffusers makes of a case, latents [B, C, h, w], all calls deep or those of these numbers; the mean stands
    for its draws from the VAE's posterior, which take no generator."""

    def made(case: Case, deep: Collection[int] | None = None) -> np.ndarray:
        net = SD3ControlNetModel.from_pretrained(controlled.nets[case.net])
        several = len(case.scales) > 1
        images = [Image.fromarray(picture(index, SIZE)) for index in range(len(case.scales))]
        with quiet(), pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
            patch.setattr(DiagonalGaussianDistribution, "sample", DiagonalGaussianDistribution.mode)
            pipeline = StableDiffusion3ControlNetPipeline.from_pretrained(
                controlled.chain.checkpoint, controlnet=[net] * len(images) if several else net
            )
            pipeline.set_progress_bar_config(disable=True)
            if deep is not None:
                stack.enter_context(cached(pipeline.transformer, layers=1, deep=deep))
                stack.enter_context(repeated(net, deep=deep))
            return pipeline(
                list(PROMPTS),
                negative_prompt=[NEGATIVE] * len(PROMPTS),
                control_image=images if several else images[0],
                **asked_of_diffusers(case.scales, case.spans),
                width=SIZE[0],
                height=SIZE[1],
                num_inference_steps=STEPS,
                guidance_scale=case.guidance,
                generator=[torch.Generator().manual_seed(SEED + i) for i in range(len(PROMPTS))],
                output_type="latent",
            ).images.numpy()

    return made


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_controlled_run_equals_that_of_diffusers(controlled: Controlled, reference, case: Case, backend: str):
    if case.net not in controlled.nets:
        pytest.skip("it has no ControlNet of this kind")
    expected = reference(case)
    with controlled.pipeline(backend) as pipe:
        assert distance(last_latent(pipe, case.request()), expected) <= TOLERANCE
        assert distance(last_latent(pipe, case.request(control=[])), expected) >= 10 * TOLERANCE


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_cached_controlled_run_equals_that_of_diffusers(
    controlled: Controlled, reference, backend: str, tmp_path: Path
):
    case, cache = CASES["one"], StepCache(2)
    bundle = add_step_cache(Bundle.open(controlled.bundle), tmp_path / "cached", layers=1)
    with controlled.pipeline(backend, bundle) as pipe:
        found = last_latent(pipe, case.request(cache=cache))
        effect = distance(found, last_latent(pipe, case.request()))
        unheard = distance(found, last_latent(pipe, case.request(cache=cache, control=[])))
    assert min(effect, unheard) >= 10 * TOLERANCE
    assert distance(found, reference(case, deep=range(0, STEPS, 2))) <= TOLERANCE


def test_picture_and_scale_move_the_latent(pipe: Pipeline):
    before = last_latent(pipe, CASES["one"].request())
    for other in (Control("zeros", picture(5, SIZE)), Control("zeros", picture(0, SIZE), 0.9)):
        assert distance(last_latent(pipe, CASES["one"].request(control=[other])), before) >= 10 * TOLERANCE


def test_a_scale_of_zero_is_the_plain_run(pipe: Pipeline):
    case = Case(scales=(0.0,))
    assert distance(last_latent(pipe, case.request()), last_latent(pipe, case.request(control=[]))) <= 1e-6


def test_images_of_a_batch_keep_their_controls_and_share_the_encoding_of_a_picture(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    pictures, encode = [], pipe.vae.encode

    def counted(image: np.ndarray, keep: np.ndarray, noise: np.ndarray) -> np.ndarray:
        pictures.append(image)
        return encode(image, keep, noise)

    one, two = CASES["one"], CASES["two, in parts of the run"]
    requests = [one.request(), two.request(), one.request(control=[])]
    with monkeypatch.context() as patch:
        patch.setattr(pipe.vae, "encode", counted)
        together = last_latent(pipe, *requests)
    assert len(pictures) == 2  # of six images, four have the first one, and two of these the second one as well
    alone = np.concatenate([last_latent(pipe, each) for each in requests])
    assert distance(together, alone) <= 1e-5


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_engines_are_made_ready_for_the_shapes_of_a_controlled_run(controlled: Controlled, guidance: float):
    bundle = Bundle.open(controlled.bundle)
    request = Request("an owl", size=SIZE, steps=1, guidance=guidance, control=Case().controls)
    prepared = assert_ready_for(request, bundle, guided=guidance > 1, controls=["zeros"])
    assert {"encoder", "controlnet-zeros", "step-control"} <= prepared.keys() and "step" not in prepared


def test_guessing_is_refused(pipe: Pipeline):
    with pytest.raises(RequestError, match="with guess"):
        pipe.plan([Case().request(control=[Control("zeros", picture(0, SIZE), guess=True)])])


def test_the_step_with_residuals_has_the_weights_of_the_step(controlled: Controlled):
    bundle = Bundle.open(controlled.bundle)
    step, with_residuals = bundle.component("step"), bundle.component(STEP_CONTROL)
    assert with_residuals.graph.weights == step.graph.weights
    assert step.graph.digest == Bundle.open(controlled.bundle.with_name("plain")).component("step").graph.digest
    rows = bundle.manifest["parity"]
    assert {row["component"] for row in rows} == {f"controlnet-{name}" for name in controlled.nets}
    assert all(row["passed"] for row in rows)


@pytest.mark.parametrize("made", [1, 2, 3])
def test_blocks_share_residuals_as_in_diffusers(controlled: Controlled, made: int, tmp_path: Path):
    """The bare network with random residuals, whatever made them."""
    run = next(run for run in controlled.chain.runs["step"] if run.case.startswith("bare network"))
    feed = run.feed | {"block_gate": np.ones_like(run.feed["block_gate"])}
    model = ir.load(controlled.chain.graphs["step"].graph.path)
    dims = add_step_residuals(model, made=made)
    ir.save(model, tmp_path / "step.onnx", external_data="step.weights")
    session = ort.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    batch, _, _, h, w = feed["state"].shape
    rng = np.random.default_rng(0)
    residuals = [rng.standard_normal((1, batch, h // 2, w // 2, 64), np.float32) for _ in range(made)]
    found, plain = (
        session.run(["denoised"], feed | {f"residual_{i}": factor * residuals[i] for i in range(len(dims))})[0]
        for factor in (np.float32(1), np.float32(0))
    )
    with torch.no_grad():
        expected = controlled.chain.opened().load("transformer")(
            torch.from_numpy(feed["state"][:, 0]),
            torch.from_numpy(feed["context"][0]),
            torch.from_numpy(feed["pooled"][0]),
            torch.from_numpy(feed["timestep"]),
            block_controlnet_hidden_states=[torch.from_numpy(each[0]).flatten(1, 2) for each in residuals],
            return_dict=False,
        )[0]
    assert distance(found, expected.numpy()) <= 1e-5
    assert distance(plain, found) >= 0.1


@pytest.mark.parametrize("settings", [{}, POOLED, BARE, DUAL], ids=["zeros", "pooled", "bare", "dual"])
def test_each_kind_of_controlnet_is_traced_from_what_diffusers_computes(settings: dict[str, Any]):
    """The module that is traced, without a bundle."""
    torch.manual_seed(3)
    grid = {"sample_size": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4}
    text = {"joint_attention_dim": 48, "caption_projection_dim": 64, "pooled_projection_dim": 40}
    net = SD3ControlNetModel(**grid | text | {"pos_embed_max_size": 24} | settings).eval()
    if net.pos_embed is None:
        transformer = SD3Transformer2DModel(**grid | text | {"pos_embed_max_size": 24})
        net.pos_embed = net._get_pos_embed_from_transformer(transformer)
    for layer in (*net.controlnet_blocks, net.pos_embed_input.proj):
        torch.nn.init.normal_(layer.weight, std=0.3)
    x, latent, context, pooled = (torch.randn(2, *shape) for shape in ((16, 10, 14), (16, 10, 14), (20, 48), (40,)))
    timestep = torch.tensor([500.0, 20])
    context = context if net.context_embedder is not None else None
    used = pooled if settings.get("force_zeros_for_pooled_projection") is False else None
    with torch.no_grad():
        expected = net(
            x,
            latent + 0.5,
            encoder_hidden_states=context,
            pooled_projections=torch.zeros_like(pooled) if used is None else used,
            timestep=timestep,
            return_dict=False,
        )[0]
        found = TransformerControl(net, offset=0.5)(
            state=torch.stack([x, *[torch.zeros_like(x)] * 3], dim=1),
            timestep=timestep,
            scalings=torch.tensor([[1.0, 0, 1]] * 2),
            image_latent=latent,
            scale=torch.ones(1, 2, 2),
            context=None if context is None else context[None],
            pooled=None if used is None else used[None],
        )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours[0].flatten(1, 2), theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"joint_attention_dim": 64}, "features of a token's context: 64; expected 48"),
        ({"pooled_projection_dim": 64}, "features of the pooled texts: 64; expected 40"),
        ({"in_channels": 4}, "channels of the latent: 4; expected 16"),
        ({"patch_size": 4}, "pixels for one token: 32; expected 16"),
        ({"num_layers": 4}, "layers: 4; expected 3"),
        ({"pos_embed_max_size": 8}, "positions along each axis: 8; expected"),
        ({"num_attention_heads": 2}, "channels of its residuals"),
        ({"num_layers": 1}, "other numbers of layers.*controlnet-zeros [23].*, controlnet-other 1"),
        ({"_class_name": "ControlNetModel"}, "belongs to a unet, and the model's denoiser is a transformer"),
    ],
)
def test_one_that_does_not_fit_the_bundle_is_refused(
    values: dict[str, Any], says: str, controlled: Controlled, tmp_path: Path
):
    folder = shutil.copytree(controlled.nets["zeros"], tmp_path / "other")
    config = {} if "_class_name" in values else json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(CheckpointError, match=says):
        add_controlnets(Bundle.open(controlled.bundle), tmp_path / "bundle", [ControlNet.open("other", folder)])
    assert not (tmp_path / "bundle").exists()


def test_it_works_in_fp16_and_becomes_engines(controlled: Controlled, pipe: Pipeline, tmp_path: Path):
    whole = Bundle.open(controlled.bundle)
    chosen = {"step": "fp16", **{f"controlnet-{name}": "fp16" for name in controlled.nets}}
    half = convert_bundle(whole, tmp_path / "half", precision=chosen, range_check="none")
    assert half.component(STEP_CONTROL).precision == "fp16"
    expected = last_latent(pipe, CASES["one"].request())
    with replace(controlled, bundle=half.root).pipeline() as other:
        assert distance(last_latent(other, CASES["one"].request()), expected) <= 0.02  # judged in test_half.py
    if variant("tensorrt-rtx").installed():
        ranges = Ranges.of(half.family, size=sizes("64x64..128x128"))
        names = [STEP_CONTROL, *(f"controlnet-{name}" for name in controlled.nets)]
        built = build_engines(
            half, backend="tensorrt-rtx", folder=tmp_path, ranges=ranges, gpus=["sm89"], components=names
        )
        assert [engine.record.component for engine in built] == names
        assert all(engine.record.products == ("float16",) for engine in built)


def test_latentrt_check_has_both_references_for_it(controlled: Controlled):
    """Torch for the ControlNets themselves; for the step with their residuals the float bundle."""
    bundle = Bundle.open(controlled.bundle)
    nets = [ControlNet.open(name, path) for name, path in controlled.nets.items()]
    torch_side = TorchReference(controlled.chain.opened(), controlled=bundle, controlnets=nets)
    assert STEP_CONTROL not in torch_side.components and torch_side.controls == ()
    for net in nets:
        runs = torch_side.runs(net.component)
        results = compare(net.component, bundle.component(net.component).graph, runs)
        assert [result for result in results if not result.passed] == []
        assert len(results) == 2
    bundle_side = BundleReference(bundle)
    results = compare(STEP_CONTROL, bundle.component(STEP_CONTROL).graph, bundle_side.runs(STEP_CONTROL))
    assert len(results) == 8 and all(result.passed for result in results)
