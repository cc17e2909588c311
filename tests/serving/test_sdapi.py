"""AUTOMATIC1111's interface, asked by webuiapi, and by bodies as other clients send them."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import webuiapi
from live_server import Live, Serve, listening, until
from PIL import Image

from latentrt import Request
from latentrt.serving.service import Service
from latentrt.serving.web.settings import Settings
from latentrt.testing import fake_pipeline

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
SIZE = {"width": 64, "height": 64}


@pytest.fixture
def api(live: Live) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(host="127.0.0.1", port=live.port, steps=4)


def text_of(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def picture(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.compatibility(kind="Client", what="webuiapi", recognised="`POST /sdapi/v1/txt2img`", outcome="works")
def test_images_know_their_seeds_and_how_they_were_made(api):
    made = api.txt2img(prompt="a fox", negative_prompt="fog", seed=1, batch_size=2, **SIZE)
    assert made.info["all_seeds"] == [1, 2]
    assert (made.info["sampler_name"], made.info["width"], made.info["steps"]) == ("Euler a", 64, 4)
    assert [image.info["parameters"] for image in made.images] == made.info["infotexts"]
    read = api.png_info(made.images[1])
    assert read.info == made.info["infotexts"][1]
    found = read.json["parameters"]
    assert (found["Seed"], found["Prompt"], found["Negative prompt"]) == ("2", "a fox", "fog")
    assert not np.array_equal(*map(np.asarray, made.images))


@pytest.mark.compatibility(
    kind="Client", what="webuiapi", recognised="`POST /sdapi/v1/img2img` with a mask", outcome="works"
)
@pytest.mark.parametrize("part", [True, False])
@pytest.mark.parametrize("inverted", [0, 1])
def test_a_mask_is_painted_where_it_is_white(api, part, inverted):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    made = api.img2img(
        images=[PHOTO],
        prompt="a door",
        mask_image=Image.fromarray(mask),
        inpaint_full_res=part,
        inpainting_mask_invert=inverted,
        denoising_strength=0.9,
        seed=3,
        **SIZE,
    )
    painted, image = (mask == 255) ^ bool(inverted), np.asarray(made.image)
    assert np.array_equal(image[~painted], np.asarray(PHOTO)[~painted])
    assert (image[painted] != np.asarray(PHOTO)[painted]).any()


def test_a_photo_is_followed_by_its_strength(api):
    options = {"images": [PHOTO.resize((96, 64))], "prompt": "a", "seed": 3, "steps": 10, **SIZE}
    near, far = (np.asarray(api.img2img(denoising_strength=strength, **options).image) for strength in (0.1, 0.9))
    assert near.shape == (64, 64, 3)
    assert not np.array_equal(near, far)


def test_lists(api, live: Live):
    assert {"Euler a", "Euler", "DPM++ 2M", "DDIM"} <= set(api.util_get_sampler_names())
    assert {"karras", "default"} <= set(api.util_get_scheduler_names())
    assert api.get_upscalers()[0]["name"] == "None"
    assert api.util_get_model_names() == ["fake"]
    assert api.get_loras() == []
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_memory()["ram"]["total"] > 0
    for empty in (api.get_hypernetworks, api.get_face_restorers, api.get_prompt_styles, api.get_sd_vae):
        assert empty() == []
    assert api.get_cmd_flags() == {}
    assert live.client().get("/internal/ping").json()
    assert api.refresh_checkpoints() == {}


def test_the_model_is_chosen_and_the_options_posted_back_change_nothing(api, live: Live):
    api.util_set_model("Fak")
    assert api.util_get_current_model() == "fake"
    before = api.get_options()
    assert before["sd_model_checkpoint"] in api.util_get_model_names()
    assert before["samples_format"] is not None
    assert "forge_preset" not in before
    assert api.set_options(before) is None
    assert api.get_options() == before
    assert live.client().post("/sdapi/v1/options", json={"sd_model_checkpoint": "none"}).status_code == 400


def test_progress_rises_and_is_nothing_afterwards(serve: Serve):
    live = serve()
    api = webuiapi.WebUIApi(host="127.0.0.1", port=live.port)
    live.gate.shut()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(api.txt2img, prompt="a", steps=5, **SIZE)
        until(lambda: live.service.jobs(), "the job")
        seen = []
        for step in range(1, 5):
            live.gate.let(1)
            until(lambda step=step: live.service.jobs()[0].done == step, "a step")
            seen.append(api.get_progress())
        live.gate.open()
        asked.result()
    shares = [row["progress"] for row in seen]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1
    assert picture(seen[-1]["current_image"]).shape == (8, 8, 3)
    assert [row["state"]["sampling_step"] for row in seen] == [1, 2, 3, 4]
    idle = api.get_progress()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    api.util_wait_for_ready()


def test_an_interrupt_is_answered_with_what_there_is_and_the_next_job_is_clean(serve: Serve):
    live = serve()
    api = webuiapi.WebUIApi(host="127.0.0.1", port=live.port)
    live.gate.shut()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(api.txt2img, prompt="a", steps=100, **SIZE)
        until(lambda: live.service.jobs(), "the job")
        live.gate.let(2)
        until(lambda: live.service.jobs()[0].done == 2, "two steps")
        assert api.interrupt() == {}
        assert asked.result().image.size == (64, 64)
    live.gate.open()
    assert live.gate.calls <= 4
    made, alone = (np.asarray(api.txt2img(prompt="b", seed=5, steps=3, **SIZE).image) for _ in range(2))
    assert np.array_equal(made, alone)


def test_a_task_is_followed_by_its_own_name(live: Live):
    if not live.inside:
        pytest.skip("its steps cannot be held back")
    with live.client() as http:
        live.gate.shut()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(http.post, "/sdapi/v1/txt2img", json={"prompt": "a", "force_task_id": "task(1)"})
            until(lambda: any(job.id == "task(1)" for job in live.service.jobs()), "the job")
            found = live.client().post("/internal/progress", json={"id_task": "task(1)"}).json()
            live.gate.open()
            assert asked.result().is_success
        assert (found["completed"], found["active"] or found["queued"]) == (False, True)
        assert http.post("/internal/progress", json={"id_task": "task(1)"}).json()["completed"]
        assert http.get("/internal/pendingTasks").json() == {"size": 0, "tasks": []}


def test_pictures_are_enlarged(api):
    assert api.extra_single_image(PHOTO, upscaler_1="Lanczos", upscaling_resize=2).image.size == (128, 128)
    assert api.extra_single_image(PHOTO).image.size == (64, 64)
    both = api.extra_batch_images([PHOTO, PHOTO], upscaler_1="Nearest", upscaling_resize=1.5)
    assert [image.size for image in both.images] == [(96, 96)] * 2
    with pytest.raises(RuntimeError, match="upscaler"):
        api.extra_single_image(PHOTO, upscaler_1="R-ESRGAN 4x+")
    made = api.txt2img(prompt="a", enable_hr=True, hr_scale=2, hr_upscaler="Latent", denoising_strength=0.6, **SIZE)
    assert made.image.size == (128, 128)


LITE = {
    "prompt": "a fox",
    "negative_prompt": "",
    "cfg_scale": 7,
    "steps": 4,
    "width": 64,
    "height": 64,
    "sampler_name": "k_euler_a",
    "override_settings": {
        "sd_model_checkpoint": "fake",
        "eta_noise_seed_delta": 0,
        "CLIP_stop_at_last_layers": 1.0,
        "ddim_discretize": "uniform",
        "img2img_fix_steps": False,
        "sd_hypernetwork": "None",
        "inpainting_mask_weight": 1,
        "initial_noise_multiplier": 1,
        "comma_padding_backtrack": 20,
    },
}
SILLYTAVERN = {
    "url": "http://127.0.0.1",
    "auth": "",
    "prompt": "a fox",
    "negative_prompt": "fog",
    "sampler_name": "DPM++ 2M",
    "scheduler": "Karras",
    "steps": 4,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1.5,
    "hr_second_pass_steps": 0,
    "denoising_strength": 0.7,
    "clip_skip": 2,
    "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic"},
    "override_settings_restore_afterwards": True,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
LIBRECHAT = {"prompt": "a", "negative_prompt": "b", "cfg_scale": 4.5, "steps": 4, "width": 128, "height": 128}
OPEN_WEBUI = {"prompt": "a", "batch_size": 2, "width": 64, "height": 64, "steps": 4, "negative_prompt": "b"}


@pytest.mark.parametrize(
    ("body", "images"),
    [
        pytest.param(
            body,
            images,
            id=name,
            marks=pytest.mark.compatibility(
                kind="Client", what=name, recognised="`/sdapi/v1/txt2img`, recorded body", outcome="works"
            ),
        )
        for name, body, images in (
            ("KoboldAI Lite", LITE, 1),
            ("SillyTavern", SILLYTAVERN, 1),
            ("LibreChat", LIBRECHAT, 1),
            ("Open WebUI", OPEN_WEBUI, 2),
        )
    ],
)
def test_bodies_of_clients(live: Live, body, images):
    answer = live.client().post("/sdapi/v1/txt2img", json=body, headers={"Authorization": ""})
    assert answer.is_success, answer.text
    assert [picture(text).shape for text in answer.json()["images"]] == [(body["height"], body["width"], 3)] * images
    info = json.loads(answer.json()["info"])
    assert {"height", "width", "seed", "infotexts"} <= info.keys()
    assert info["clip_skip"] == body.get("override_settings", {}).get("CLIP_stop_at_last_layers", 1)
    assert answer.headers["x-process-time"]


def test_a_page_of_another_site_asks_where_it_is_allowed_only(serve: Serve, live: Live):
    origin = "https://lite.koboldai.net"
    allowed = serve(Settings(cors=(origin,)))
    asking = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    with allowed.client() as http:
        preflight = http.options("/sdapi/v1/txt2img", headers=asking)
        made = http.post("/sdapi/v1/txt2img", json=LITE, headers={"Origin": origin})
        foreign = http.post("/sdapi/v1/txt2img", json=LITE, headers={"Origin": "https://else.example"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    assert made.headers["access-control-allow-origin"] == origin
    assert len(made.json()["images"]) == 1
    assert foreign.status_code == 403
    with live.client() as http:
        assert http.post("/sdapi/v1/txt2img", json=LITE, headers={"Origin": origin}).status_code == 403
        assert http.post("/sdapi/v1/txt2img", json=LITE, headers={"Origin": live.url}).is_success


def test_basic_authentication(serve: Serve):
    live = serve(Settings(users=("me:secret",)))
    refused = live.client().get("/sdapi/v1/options")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic")
    assert live.client().get("/sdapi/v1/options", headers={"Authorization": ""}).status_code == 401
    assert live.client().get("/health").is_success
    api = webuiapi.WebUIApi(host="127.0.0.1", port=live.port, username="me", password="secret")
    assert api.get_options()["sd_model_checkpoint"] == "fake"


FAULTS = {
    "sampler": ({"sampler_name": "Nothing"}, 400),
    "scheduler": ({"scheduler": "Nothing"}, 400),
    "script": ({"script_name": "X/Y/Z plot"}, 422),
    "always on": ({"alwayson_scripts": {"adetailer": {"args": [True]}}}, 422),
    "tiling": ({"tiling": True}, 400),
    "faces": ({"restore_faces": True}, 400),
    "variation": ({"subseed_strength": 0.5}, 400),
    "model": ({"override_settings": {"sd_model_checkpoint": "other"}}, 400),
    "autoencoder": ({"override_settings": {"sd_vae": "other.pt"}}, 400),
    "LoRA": ({"prompt": "a <lora:none:1>"}, 404),
    "size": ({"width": 8192, "height": 64}, 400),
    "hires": ({"enable_hr": True, "hr_second_pass_steps": 5}, 400),
}


@pytest.mark.parametrize(("body", "status"), FAULTS.values(), ids=FAULTS)
def test_what_is_not_there_is_refused_in_the_form_of_the_protocol(live: Live, body, status):
    answer = live.client().post("/sdapi/v1/txt2img", json={"prompt": "a"} | body)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error", "detail", "body", "errors"}


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("euler A", "euler-a", "default"),
        ("K_EULER", "euler", "default"),
        ("DPM++ 2M Karras", "dpmpp-2m", "karras"),
        ("dpmpp-3m", "dpmpp-3m", "default"),
    ],
)
def test_samplers_by_alias_and_any_case(live: Live, name, sampler, schedule):
    body = {"prompt": "a", "sampler_name": name, "scheduler": "automatic", "force_task_id": f"by {name}"}
    assert live.client().post("/sdapi/v1/txt2img", json=body).is_success
    request = live.service.job(f"by {name}").request
    assert (request.sampler, request.schedule) == (sampler, schedule)


def test_two_at_once_share_steps_and_get_their_own(serve: Serve, tmp_path):
    live = serve()
    api = webuiapi.WebUIApi(host="127.0.0.1", port=live.port)
    (tmp_path / "alone").mkdir()
    alone = fake_pipeline(tmp_path / "alone")
    live.gate.shut()
    with ThreadPoolExecutor(2) as pool:
        options = [{"prompt": f"fox {seed}", "seed": seed, "steps": 40, "sampler_name": "Euler"} for seed in (1, 2)]
        asked = [pool.submit(api.txt2img, **row, **SIZE) for row in options]

        def shared() -> bool:
            live.gate.let(1)  # step by step, so that the second one's text is encoded before the first one's end
            return live.service.stats().batches.get(2, 0) >= 1

        until(lambda: len(live.service.jobs()) == 2, "both jobs")
        until(shared, "a step of both")
        live.gate.open()
        made = [each.result() for each in asked]
    for row, result in zip(options, made, strict=True):
        assert (result.info["seed"], result.info["prompt"]) == (row["seed"], row["prompt"])
        image = alone.run(
            Request(row["prompt"], seed=row["seed"], steps=40, sampler="euler", guidance=7, size=(64, 64))
        ).images[0]
        assert np.abs(np.asarray(result.image).astype(int) - image).max() <= 1


@pytest.mark.compatibility(
    kind="Client", what="SillyTavern", recognised="its sequence of requests, and its wait for idleness", outcome="works"
)
def test_sillytavern_call_by_call(live: Live):
    with live.client(headers={"Authorization": "Basic Og=="}) as http:
        assert "forge_preset" not in http.get("/sdapi/v1/options").json()
        upscalers = [row["name"] for row in http.get("/sdapi/v1/upscalers").json()]
        modes = [row["name"] for row in http.get("/sdapi/v1/latent-upscale-modes").json()]
        assert [upscalers[0], *modes, *upscalers[1:]][:2] == ["None", "Latent"]
        assert [http.get(f"/sdapi/v1/{name}").json() for name in ("sd-vae", "sd-modules")] == [[], []]
        samplers = [row["name"] for row in http.get("/sdapi/v1/samplers").json()]
        schedulers = [row["name"] for row in http.get("/sdapi/v1/schedulers").json()]
        titles = [row["title"] for row in http.get("/sdapi/v1/sd-models").json()]
        assert http.post("/sdapi/v1/options", json={"sd_model_checkpoint": titles[0]}).is_success

        def idle() -> bool:
            found = http.get("/sdapi/v1/progress").json()
            return found["progress"] == 0.0 and found["state"]["job_count"] == 0

        until(idle, "idleness")
        assert http.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == titles[0]
        body = SILLYTAVERN | {"sampler_name": samplers[0], "scheduler": schedulers[0]}
        assert len(http.post("/sdapi/v1/txt2img", json=body).json()["images"]) == 1
        until(idle, "idleness")
        assert http.post("/sdapi/v1/interrupt", json={}).json() == {}


ANSWERS = {
    "GET /sdapi/v1/options": {"sd_model_checkpoint", "samples_format", "sd_vae", "CLIP_stop_at_last_layers"},
    "GET /sdapi/v1/sd-models": {"title", "model_name", "hash", "sha256", "filename", "config"},
    "GET /sdapi/v1/samplers": {"name", "aliases", "options"},
    "GET /sdapi/v1/schedulers": {"name", "label", "aliases", "default_rho", "need_inner_model"},
    "GET /sdapi/v1/upscalers": {"name", "model_name", "model_path", "model_url", "scale"},
    "GET /sdapi/v1/latent-upscale-modes": {"name"},
    "GET /sdapi/v1/embeddings": {"loaded", "skipped"},
    "GET /sdapi/v1/scripts": {"txt2img", "img2img"},
    "GET /sdapi/v1/memory": {"ram", "cuda"},
    "GET /sdapi/v1/progress": {"progress", "eta_relative", "state", "current_image", "textinfo"},
    "GET /internal/pendingTasks": {"size", "tasks"},
    "GET /controlnet/version": {"version"},
    "GET /controlnet/model_list": {"model_list"},
    "GET /controlnet/module_list": {"module_list", "module_detail"},
    **{
        f"GET /sdapi/v1/{name}": set()
        for name in """sd-vae sd-modules loras hypernetworks face-restorers realesrgan-models prompt-styles script-info
        cmd-flags""".split()  # noqa: SIM905
    },
    **{
        f"POST /sdapi/v1/{name}": set()
        for name in """refresh-checkpoints refresh-loras refresh-vae refresh-embeddings unload-checkpoint
        reload-checkpoint interrupt skip options""".split()  # noqa: SIM905
    },
    "GET /internal/ping": {"status"},
}


@pytest.mark.parametrize(("route", "keys"), ANSWERS.items(), ids=ANSWERS)
def test_every_list_and_state_has_what_clients_read(live: Live, route: str, keys: set[str]):
    method, path = route.split()
    answer = live.client().request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    rows = found if isinstance(found, list) and keys else [found]
    assert all(keys <= row.keys() for row in rows if keys)
    assert rows


@pytest.mark.compatibility(
    kind="Client", what="webuiapi", recognised="`alwayson_scripts` with ControlNet units", outcome="works"
)
def test_a_controlnet_unit_leads_and_leaves_nothing_behind(controlled_bundle):
    lines = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8))
    with (
        Service({"shapes": controlled_bundle}, backend="onnxruntime", threads=1) as service,
        listening(service) as (url, _, _),
    ):
        api = webuiapi.WebUIApi(host="127.0.0.1", port=int(url.rsplit(":", 1)[1]), steps=3)
        assert api.controlnet_model_list() == ["random"]
        assert {"none", "canny"} <= set(api.controlnet_module_list())
        assert "controlnet m2m" in api.get_scripts()["txt2img"]
        unit = webuiapi.ControlNetUnit(image=lines, model="random [1234abcd]", resize_mode="Just Resize")
        edges = webuiapi.ControlNetUnit(image=lines, module="canny", model="random", threshold_a=100, threshold_b=200)
        options = {"prompt": "a circle", "seed": 1, **SIZE}
        runs = [api.txt2img(**options, controlnet_units=units) for units in ([unit], [], [unit], [edges])]
        led, free, again, outlined = (np.asarray(run.image) for run in runs)
        assert np.array_equal(led, again)
        assert not np.array_equal(led, free)
        assert not np.array_equal(led, outlined)
        assert np.array_equal(free, np.asarray(api.txt2img(**options).image))
        bare = webuiapi.ControlNetUnit(model="random")  # reads the picture that is begun with
        assert api.img2img(images=[lines], **options, controlnet_units=[bare]).image.size == (64, 64)
        with pytest.raises(RuntimeError, match="an image"):
            api.txt2img(**options, controlnet_units=[bare])
        with pytest.raises(RuntimeError, match="ControlNet"):
            api.txt2img(**options, controlnet_units=[webuiapi.ControlNetUnit(image=lines, model="other")])
        shown = api.controlnet_detect(images=[lines], module="canny", threshold_a=100, threshold_b=200)
        assert shown.image.size == (64, 64)

        control = {"name": "random", "image": text_of(lines)}
        body = {"prompt": "a circle", "seed": 1, "steps": 3, "size": "64x64", "guidance": 7.0, "sampler": "euler-a"}
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            made = {}
            for name, controls in {
                "led": [control],
                "edges": [control | {"edges": True}],
                "off": [control | {"scale": 0}],
                "none": [],
            }.items():
                assert http.post("/v1/jobs", json=body | {"id": name, "controls": controls}).status_code == 202
                assert service.job(name).wait(60)
                made[name] = service.job(name).result.images[0]
            refused = http.post("/v1/jobs", json=body | {"controls": [control | {"name": "other"}]})
        assert refused.status_code == 400
        assert np.array_equal(made["off"], made["none"])
        assert not np.array_equal(made["led"], made["none"])
        assert not np.array_equal(made["led"], made["edges"])
