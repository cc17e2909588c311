"""Int8 products are found where the system lists them, and oneDNN may be told to do without."""

from pathlib import Path

import pytest

from latentrt.backends import openvino
from latentrt.backends.processor import has_int8_products
from latentrt.engine import EngineOptions
from latentrt.export.parity import gates
from latentrt.export.parity.measurement import Measurement
from latentrt.graph import GraphFile


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n", True),
        ("flags\t\t: fpu avx2 avx_vnni\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw\n", False),
        ("Features\t: fp asimd asimddp\n", True),
    ],
    ids=["AMX", "AVX2 with VNNI", "AVX-512 without", "another architecture"],
)
def test_flags_of_the_system(text: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{text}")
    assert has_int8_products(tmp_path / "cpuinfo") is found
    assert has_int8_products(tmp_path / "nowhere")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert not has_int8_products(tmp_path / "cpuinfo")


@pytest.mark.parametrize(("products", "passes"), [(True, [True, False, False]), (False, [True, True, False])])
def test_backends_may_be_apart_by_what_the_processor_rounds(products: bool, passes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gates, "has_int8_products", lambda: products)

    def apart(difference: float) -> bool:
        rows = [
            Measurement(
                higher_is_better=True,
                subject="component step",
                case="network",
                backend=name,
                value=value,
                limit=25.0,
                unit="dB SQNR",
            )
            for name, value in (("onnxruntime", 44.0), ("openvino", 44.0 - difference))
        ]
        (row,) = gates.apart_rows(rows)
        return row.passed

    assert [apart(difference) for difference in (0.5, 7.5, 20)] == passes


@pytest.mark.parametrize(
    ("precision", "products", "said"), [("int8", False, True), ("int8", True, False), ("fp32", False, False)]
)
def test_who_loads_int8_on_such_a_processor_is_told(precision, products, said, monkeypatch, caplog):
    monkeypatch.setattr(openvino, "has_int8_products", lambda: products)
    openvino.open_engine(
        GraphFile("step", path=Path("step.onnx"), inputs={}, outputs={}, precision=precision), EngineOptions()
    )
    assert ("no int8 products" in caplog.text) is said
