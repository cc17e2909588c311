"""`--memory` of `generate` and `inspect`: what fits is said, and too little is refused before any work."""

from latentrt.backends.host_memory import BY_TURNS, RESIDENT

QUICK = ("--steps", "1", "--guidance", "1", "--size", "64x64", "--seed", "1", "--backend", "onnxruntime")


def test_inspect_says_what_fits_on_each_backend_of_the_cpu(cli, tiny_bundle):
    rows = cli("inspect", tiny_bundle, "--memory", "64", "--size", "128x64", "--json").document["memory"]
    assert {(row["backend"], row["compute"]) for row in rows} == {
        ("onnxruntime", "fp32"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
    }
    assert all(row["fits_with"] == RESIDENT and row["size"] == [128, 64] for row in rows)
    assert all(row["plans"][BY_TURNS] < row["plans"][RESIDENT] for row in rows)
    least = min(row["plans"][BY_TURNS] for row in rows)
    tight = cli("inspect", tiny_bundle, "--memory", least / 1e9 - 0.001, "--size", "128x64")
    assert tight.out.count("does not fit") == 3
    assert cli("inspect", tiny_bundle, "--json").document["memory"][0]["memory"] > 0  # what is free


def test_a_picture_is_made_within_a_limit_and_too_little_is_refused(cli, tiny_bundle, tmp_path):
    asked = ("generate", tiny_bundle, "a red circle", "-o", tmp_path / "a.png", *QUICK)
    refused = cli(*asked, "--memory", "0.01")
    assert refused.code == 2
    assert "0.01 GB of memory" in refused.err
    assert BY_TURNS in refused.err
    assert not (tmp_path / "a.png").exists()
    assert cli(*asked, "--memory", "nothing").code == 2
    made = cli(*asked, "--memory", "8", "--overwrite")
    assert made.code == 0, made.err
    assert (tmp_path / "a.png").is_file()


def test_a_limit_does_not_go_with_ray(cli, tiny_bundle, tmp_path):
    outcome = cli("generate", tiny_bundle, "--prompts", "-", "-o", tmp_path / "out", "--ray", "--memory", "8")
    assert outcome.code == 2
    assert "--memory with --ray" in outcome.err
