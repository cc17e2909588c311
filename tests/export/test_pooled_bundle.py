"""`latentrt export --pool-attention`: what the bundle says of it, how it is judged, and what is refused."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir
import pytest

from latentrt import Bundle, GateError, RequestError
from latentrt.bundle import STEP_CONTROL
from latentrt.cli import main
from latentrt.cli.bench import own_candidate
from latentrt.cli.inspect import pooling_text
from latentrt.export import package
from latentrt.export.bundles.step_cache import add_step_cache
from latentrt.export.checkpoint.family import read_family, with_defaults
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.controlnets.controlnet import ControlNet, add_controlnets
from latentrt.export.convert.precision import convert_bundle
from latentrt.export.parity.approximation import approximate
from latentrt.export.parity.check import run_check
from latentrt.export.parity.measurement import Measurement
from latentrt.export.parity.reference import BundleReference, Reference
from latentrt.export.parity.torch.reference import TorchReference
from latentrt.export.passes.pooling import check_poolable, pool_attention
from latentrt.export.staging import scratch_folder

LAYERS = [
    f"{place}.transformer_blocks.0.attn1"
    for place in ("down_blocks.0.attentions.0", "up_blocks.2.attentions.0", "up_blocks.2.attentions.1")
]


@pytest.fixture(scope="module")
def pooled(pooled_bundle: Path) -> Bundle:
    return Bundle.open(pooled_bundle)


@pytest.fixture(scope="module")
def plain(shapes_bundle: Path) -> Bundle:
    return Bundle.open(shapes_bundle)


def network_rows(bundle: Bundle, side: Reference, *backends: str) -> list[Measurement]:
    """What `check` says of the network, where all passes."""
    rows = run_check(bundle, side, backends=backends).rows
    assert [row for row in rows if not row.passed] == []
    return [row for row in rows if row.unit == "dB SQNR"]


@pytest.mark.compatibility(
    kind="bundle",
    what="an approximation: pooled attention",
    recognised="pooled_attention of its step, pooling",
    outcome="works",
)
@pytest.mark.families
def test_the_bundle_says_what_is_pooled_and_what_it_costs(pooled: Bundle, plain: Bundle):
    assert list(pooled.component("step").pooled_attention) == LAYERS
    assert pooled.component("decoder").pooled_attention == plain.component("step").pooled_attention == ()
    assert pooled.keys("step") == plain.keys("step")  # for LoRAs
    found = pooled.section("pooling")
    network = [row for row in found["judged"] if row["unit"] == "dB SQNR"]
    assert {row["case"] for row in network} == {"network, negative branch", "network, prompt branch"}
    assert all(15 < row["value"] < 40 and row["limit"] == 15 and row["passed"] for row in network)
    assert found["exam"]["steps"] == 2
    assert plain.section("pooling") is None
    assert "3 self-attentions, 2x2, an approximation: network" in pooling_text(pooled)
    assert pooling_text(plain) == ""
    assert own_candidate(pooled, backend="openvino", compute="fp32").name == "openvino fp32, pooled attention"


@pytest.mark.families
def test_check_judges_it_as_a_quantised_bundle(pooled: Bundle, plain: Bundle):
    """Against the bundle without it, by what it was judged by against torch."""
    side = BundleReference(plain)
    side.components = ("step",)
    rows = network_rows(pooled, side, "onnxruntime")
    made = [row["value"] for row in pooled.section("pooling")["judged"] if row["unit"] == "dB SQNR"]
    assert [row.value for row in rows] == pytest.approx(made, abs=0.01)
    assert {row.limit for row in rows} == {15.0}


@pytest.mark.families
def test_every_backend_is_judged_against_torch(pooled: Bundle, shapes_checkpoint: Path):
    rows = network_rows(pooled, TorchReference(Checkpoint.open(shapes_checkpoint)), "onnxruntime", "openvino")
    assert {row.backend for row in rows} == {"onnxruntime", "openvino"}


@pytest.mark.families
def test_graphs_made_of_the_step_pool_as_well(
    pooled: Bundle, controlled_bundle: Path, random_controlnet: Path, tmp_path: Path
):
    cached = add_step_cache(pooled, tmp_path / "cached", layers=1)
    both = add_controlnets(cached, tmp_path / "both", [ControlNet.open("random", random_controlnet)])
    parts = {name: list(part.pooled_attention) for name, part in both.components.items() if part.pooled_attention}
    last = LAYERS[-1:]  # the only one that a shallow call computes
    assert parts == {"step": LAYERS, STEP_CONTROL: LAYERS, "step-shallow": last, "step-control-shallow": last}
    rows = network_rows(both, BundleReference(Bundle.open(controlled_bundle)), "onnxruntime")
    assert [row.case for row in rows if row.subject == f"component {STEP_CONTROL}"] == [
        f"network, {branch} branch, control random" for branch in ("negative", "prompt")
    ]


@pytest.mark.families
def test_an_export_compares_its_graph_with_torch_that_pools_and_holds_the_gate(shapes_checkpoint: Path, tmp_path: Path):
    asked = {"precision": "step=fp16", "pool_attention": True, "range_check": "none"}
    checkpoint = Checkpoint.open(shapes_checkpoint)
    with pytest.raises(GateError, match=r"pooled attention costs too much in component step.*--min-sqnr") as caught:
        package.export_at_precision(checkpoint, tmp_path / "bundle", **asked)
    assert "rejected" in str(caught.value)
    family = with_defaults(read_family(checkpoint), steps=2, guidance=None, sampler=None)
    bundle, parity = package.export_at_precision(checkpoint, tmp_path / "bundle", family=family, min_sqnr=15, **asked)
    rows = [row for row in parity if row["component"] == "step"]
    assert any("104x72" in row["case"] for row in rows)  # 13x9 latents: sides that are not even
    assert all(row["worst"] < row["limit"] == 1e-4 for row in rows)
    assert bundle.section("pooling")["exam"]["min_sqnr"] == 15
    assert not (bundle.root / "engines").exists()


@pytest.mark.parametrize(("gate", "again"), [(15.0, False), (None, True)])
def test_an_interrupted_export_is_gone_on_with_by_the_same_gate(
    pooled: Bundle, shapes_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate, again: bool
):
    fresh = SimpleNamespace(manifest={"parity": []})
    monkeypatch.setattr(package, "export_bundle", lambda *_, **__: fresh)
    monkeypatch.setattr(package, "bake_and_convert", lambda whole, *_, **__: whole)
    output, checkpoint = tmp_path / "half", Checkpoint.open(shapes_checkpoint)
    shutil.copytree(pooled.root, scratch_folder(output, "fp32"))
    asked = {"precision": "fp16", "family": pooled.family, "pool_attention": True, "check": False}
    found, _ = package.export_at_precision(checkpoint, output, min_sqnr=gate, **asked)
    assert (found is fresh) is again


def test_the_same_in_fp16_is_compared_with_it_as_any_bundle_is(pooled: Bundle, tmp_path: Path):
    half = convert_bundle(pooled, tmp_path / "half", precision={"step": "fp16"}, range_check="none")
    assert half.component("step").pooled_attention == pooled.component("step").pooled_attention
    assert half.section("pooling") == pooled.section("pooling")
    assert approximate(half, BundleReference(pooled)) == ()


def test_what_has_no_meaning_is_refused(pooled: Bundle, plain: Bundle, tmp_path: Path, capsys):
    with pytest.raises(RequestError, match="pooled attention, which it is without"):
        run_check(plain, BundleReference(pooled), backends=("onnxruntime",))
    with pytest.raises(RequestError, match="without self-attentions"):
        pool_attention(ir.load(pooled.component("decoder").graph.path))
    for options, words in (((), "without --pool-attention"), (("--pool-attention", "--no-check"), "with --no-check")):
        assert main(["export", str(tmp_path), "-o", str(tmp_path / "b"), "--min-sqnr", "20", *options]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.compatibility(
    kind="checkpoint", what="pooled attention of a transformer", recognised="--pool-attention", outcome="refused"
)
def test_a_transformer_is_refused():
    with pytest.raises(RequestError, match=r"transformer.*U-Net"):
        check_poolable("transformer")
