"""The search for what returns to float: its order, how few it takes, and what cannot be held."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrt.bundle import Bundle
from latentrt.calibration.budget import MARGIN_DB, hold, worst_first
from latentrt.calibration.layers import Measure
from latentrt.calibration.package import calibrate_bundle
from latentrt.calibration.placement import Operator
from latentrt.calibration.trial import Outcome, Trials
from latentrt.errors import GateError

LIMIT_DB = 47.0  # all in int8 it keeps 44.5


def operator(name: str, *, size: int = 100, kept: str | None = None) -> Operator:
    return Operator(
        name,
        kind="MatMul",
        activation=f"{name}.x",
        weight=f"{name}.w",
        shape=(size, 1),
        out_axis=1,
        in_axis=0,
        channel_axis=-1,
        float_reason=kept,
    )


class Bench:
    """Trials whose quality is a table by the number of operators in float."""

    def __init__(self, ratios: list[float]) -> None:
        self.ratios, self.counts = ratios, []

    def run(self, operators, what: str) -> Outcome:
        count = sum(operator.float_reason is not None for operator in operators)
        self.counts.append(count)
        return Outcome(self.ratios[count], 1000 + count)


def test_damage_per_cost_decides_the_order():
    found = [operator("cheap"), operator("dear", size=900), operator("good"), operator("kept", kept="by rule")]
    measures = {
        "cheap": Measure(50.0, 10, 20.0),
        "dear": Measure(30.0, 900, 20.0),
        "good": Measure(10.0, 10, 40.0),
        "kept": Measure(None, 10),
    }
    assert worst_first(found, measures) == ["cheap", "dear", "good"]


@given(st.integers(1, 60), st.data())
def test_the_fewest_of_the_worst_return(count: int, data):
    found = [operator(str(i)) for i in range(count)]
    order = [operator.name for operator in found]
    needed = data.draw(st.integers(0, count))
    bench = Bench([30.0 if i >= needed else 20.0 for i in range(count + 1)])
    settled = hold(found, order, min_sqnr=25.0, run=bench.run)
    assert settled.before == Outcome(30.0 if needed == 0 else 20.0, 1000)
    assert settled.held == (needed < count)
    expected = needed if settled.held else 0
    assert settled.returned == tuple(order[:expected])
    assert [o.name for o in settled.operators if o.float_reason is not None] == order[:expected]
    assert settled.after.graph_bytes == 1000 + expected
    assert len(set(bench.counts)) <= 2 + 2 * count.bit_length()


def test_a_quality_that_is_there_returns_nothing_and_one_aimed_at_has_a_margin():
    found = [operator(str(i)) for i in range(8)]
    order = [o.name for o in found]
    assert hold(found, order, min_sqnr=25.0, run=Bench([25.0] * 9).run).returned == ()
    ratios = [24.0, 25.0 + MARGIN_DB / 2, *[26.0] * 7]
    assert hold(found, order, min_sqnr=25.0, run=Bench(ratios).run).returned == ("0", "1")


@pytest.fixture
def brief_run(shapes_bundle, brief):
    """Arguments of a short calibration on ONNX Runtime, without its policy; shortest is that of the text encoder."""
    settings = replace(brief.settings, prompts=("a red circle",), steps=1, sizes=((64, 64),))
    evaluation = replace(
        brief.evaluation, prompts=("a blue star",), steps=1, size=(64, 64), backends=("onnxruntime",), min_sqnr=0.0
    )
    return {"settings": settings, "evaluation": evaluation, "threads": 1}


def test_the_example_returns_a_few_operators_and_says_what_that_costs(shapes_bundle, brief, brief_run, tmp_path):
    lines = []
    policy = replace(brief.policy, components={"text_encoder": "int8"}, alpha=None, min_sqnr=LIMIT_DB)
    arguments = {**brief_run, "evaluation": replace(brief_run["evaluation"], min_sqnr=LIMIT_DB), "status": lines.append}
    done = calibrate_bundle(Bundle.open(shapes_bundle), tmp_path / "q", policy=policy, **arguments)
    found = done.bundle.manifest["calibration"]["components"]["text_encoder"]
    budget = found["budget"]
    assert budget["sqnr_db"]["before"] < LIMIT_DB <= budget["sqnr_db"]["after"]
    assert 0 < len(budget["returned"]) < len(found["quantised"]) / 2
    assert budget["bytes"]["before"] < budget["bytes"]["after"] == done.bytes_after
    assert 0 < budget["work_returned"] < 0.5
    reasons = {layer["name"]: layer["reason"] for layer in found["layers"]}
    assert {reasons[name] for name in budget["returned"]} == {f"returned to float to hold {LIMIT_DB:g} dB"}
    judged = [row.value for row in done.rows if row.unit == "dB SQNR"]
    assert min(judged) == pytest.approx(budget["sqnr_db"]["after"], abs=0.01)
    assert any("operators in float" in line for line in lines)


def test_what_no_operator_in_int8_can_hold_is_rejected(shapes_bundle, brief, brief_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Trials, "run", lambda *_, **__: Outcome(43.0, 1000))
    monkeypatch.setattr("latentrt.calibration.package.measure_outputs", lambda *_, **__: {})
    policy = replace(brief.policy, components={"text_encoder": "int8"}, alpha=None, min_sqnr=150.0)
    arguments = {**brief_run, "evaluation": replace(brief_run["evaluation"], min_sqnr=150.0)}
    with pytest.raises(GateError, match="no set of operators of text_encoder reaches 150 dB"):
        calibrate_bundle(Bundle.open(shapes_bundle), tmp_path / "q", policy=policy, **arguments)
    rejected = Bundle.open(tmp_path / "q.rejected").manifest["calibration"]["components"]["text_encoder"]
    assert rejected["budget"]["held"] is False
    assert rejected["budget"]["returned"] == []


@pytest.mark.families
def test_the_best_strength_of_smoothing_is_taken(shapes_bundle, brief, brief_run, tmp_path, monkeypatch):
    """With the qualities given, the choice; and the bundle that comes of it is the one of that strength."""
    ratios = {None: 30.0, 0.65: 33.0, 0.9: 29.0}
    monkeypatch.setattr("latentrt.calibration.package.ALPHAS", tuple(ratios))
    tried = []

    def run(_, component: str, found, scales, *, what: str) -> Outcome:
        tried.append((component, what, bool(scales.factors)))
        return Outcome(list(ratios.values())[len(tried) - 1], 1000)

    monkeypatch.setattr(Trials, "run", run)
    bundle = Bundle.open(shapes_bundle)
    policy = replace(brief.policy, components={"text_encoder": "int8"})
    searched, fixed = (
        calibrate_bundle(bundle, tmp_path / str(alpha), policy=replace(policy, alpha=alpha), **brief_run).bundle
        for alpha in ("search", 0.65)
    )
    assert tried == [("text_encoder", f"alpha {alpha}", alpha is not None) for alpha in ratios]
    assert searched.manifest["calibration"]["policy"]["alpha"] == 0.65
    assert searched.manifest["calibration"]["policy"]["alphas_tried"] == {"none": 30.0, "0.65": 33.0, "0.9": 29.0}
    assert searched.component("text_encoder").graph.digest == fixed.component("text_encoder").graph.digest
