"""The measures of the judgement on values whose answer is known."""

import numpy as np
import pytest

from latentrt.export.parity.gates import apart_rows
from latentrt.export.parity.measurement import Measurement
from latentrt.export.parity.metrics import cosine, psnr_db, signal_to_noise_db, ssim
from latentrt.export.parity.probes import _bare


def test_sqnr_counts_powers():
    reference = np.full((2, 3), 10.0, np.float32)
    assert signal_to_noise_db(reference + 1, reference) == pytest.approx(20)
    assert signal_to_noise_db(reference, reference) == float("inf")
    assert signal_to_noise_db(np.full_like(reference, np.nan), reference) == float("-inf")


def test_cosine_ignores_size_and_knows_directions():
    x = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    assert cosine(3 * x, x) == pytest.approx(1)
    assert cosine(-x, x) == pytest.approx(-1)


def test_psnr_is_of_each_image():
    reference = np.full((2, 16, 16, 3), 100, np.uint8)
    found = reference.copy()
    found[1] += 5
    assert psnr_db(found, reference).tolist() == pytest.approx([100, 10 * np.log10(255**2 / 25)])


def test_ssim_is_one_for_equal_images_and_falls_with_noise_and_lost_structure():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (1, 32, 32, 3), np.uint8)
    noisy = np.clip(reference + rng.normal(0, 20, reference.shape), 0, 255).astype(np.uint8)
    flat = np.full_like(reference, 128)
    assert ssim(reference, reference)[0] == pytest.approx(1)
    assert 0.8 < ssim(noisy, reference)[0] < 0.999
    assert abs(ssim(flat, reference)[0]) < 0.05


def test_backends_that_disagree_fail_though_each_passes_alone():
    def row(backend: str, value: float) -> Measurement:
        return Measurement(
            higher_is_better=True,
            subject="step",
            case="network",
            backend=backend,
            value=value,
            limit=25.0,
            unit="dB SQNR",
        )

    (near,) = apart_rows([row("a", 27.2), row("b", 27.5)])
    (far,) = apart_rows([row("a", 27.2), row("b", 27.3 + near.limit)])  # the limit is the processor's
    assert near.passed
    assert not far.passed
    assert far.value == pytest.approx(0.1 + near.limit)


def test_the_bare_network_is_the_sum_of_what_guidance_makes_of_it(shapes_bundle):
    """Branch by branch the network's output, recombined by hand, is what the whole step computes."""
    import latentrt
    from latentrt.arrays import to_host

    rng = np.random.default_rng(0)
    with latentrt.load(shapes_bundle, backend="onnxruntime") as pipe:
        specs, batch, width = pipe.engines["step"].inputs, 2, pipe.bundle.family.text_encoders[0].width
        feed = {
            "state": rng.standard_normal((batch, 4, 4, 8, 8), np.float32),
            "noise": np.zeros((batch, 4, 8, 8), np.float32),
            "known": np.zeros((batch, 4, 8, 8), np.float32),
            "mask": np.ones((batch, 1, 8, 8), np.float32),
            "timestep": np.full(batch, 400, np.float32),
            "scalings": np.tile(np.float32([0.8, 0.6, -0.7]), (batch, 1)),
            "transition": np.tile(np.eye(4, 6, dtype=np.float32), (batch, 1, 1)),
            "context": rng.standard_normal((2, batch, 77, width), np.float32),
            "guidance": np.tile(np.float32([[-6.5], [7.5]]), (1, batch)),
            "rescale": np.zeros(batch, np.float32),
        }
        assert feed.keys() == specs.keys()
        branches = dict(_bare(feed))
        assert list(branches) == ["network, negative branch", "network, prompt branch"]
        outputs = [to_host(pipe.engines["step"].run(bare)["denoised"]) for bare in branches.values()]
        whole = to_host(pipe.engines["step"].run(feed)["denoised"])
    expected = 0.6 * feed["state"][:, 0] - 0.7 * (-6.5 * outputs[0] + 7.5 * outputs[1])
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-4)
