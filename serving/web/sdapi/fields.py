"""AUTOMATIC1111's fields of txt2img and img2img, and its names of samplers, as tables.

Source: AUTOMATIC1111/stable-diffusion-webui, `modules/api/models.py`, `modules/sd_samplers*.py`, `sd_schedulers.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentrt.images.control import Control
from latentrt.images.edges import canny
from latentrt.images.upscale import Upscale
from latentrt.request import MOST_STEPS, SCALE
from latentrt.serving.model import ModelInfo
from latentrt.serving.web.failures import Refused
from latentrt.serving.web.fields import NOT_HERE, SEED, AnyValue, Dictionary, Field, FieldError, Given, Name, read
from latentrt.serving.web.pictures import fitted, from_text
from latentrt.values import Flag, Listed, Number, Text, Whole

_NUMBER = Number(-1e9, 1e9)

TEXT_TO_IMAGE = (
    Field("prompt", Text(), to="prompt"),
    Field("negative_prompt", Text(), to="negative"),
    Field("seed", SEED, to="seed", neutral=(-1,)),
    Field("sampler_name", Text(), aliases=("sampler_index",), neutral=("", "Automatic")),
    Field("scheduler", Text(), neutral=("", "Automatic")),
    Field("batch_size", Whole(1, 64)),
    Field("n_iter", Whole(1, 64)),
    Field("steps", Whole(1, MOST_STEPS), to="steps"),
    Field("cfg_scale", SCALE, to="guidance"),
    Field("width", Whole(1, 1 << 15)),
    Field("height", Whole(1, 1 << 15)),
    Field("eta", Number(0, 1)),
    Field("denoising_strength", Number(0, 1)),
    Field("override_settings", Dictionary()),
    Field("enable_hr", Flag()),
    Field("hr_scale", Number(1, 64)),
    Field("hr_upscaler", Text()),
    Field("alwayson_scripts", Dictionary()),
    Field("send_images", Flag()),
    Field("force_task_id", Name(), neutral=("",)),
    Field("subseed_strength", _NUMBER, neutral=(0,), refused=NOT_HERE),
    Field("tiling", Flag(), neutral=(False,), refused=NOT_HERE),
    Field("restore_faces", Flag(), neutral=(False,), refused=NOT_HERE),
    Field("refiner_checkpoint", Text(), neutral=("", "None"), refused=NOT_HERE),
    Field("infotext", Text(), neutral=("",), refused=NOT_HERE),
)
_SECOND_PASS = (
    Field("hr_resize_x", Whole(), neutral=(0,), refused="hr_scale says how much larger"),
    Field("hr_resize_y", Whole(), neutral=(0,), refused="hr_scale says how much larger"),
    Field("hr_second_pass_steps", Whole(), neutral=(0,), refused="the second pass has the steps of the first"),
    Field("hr_sampler_name", Text(), neutral=("", "Use same sampler"), refused=NOT_HERE),
    Field("hr_scheduler", Text(), neutral=("", "Use same scheduler"), refused=NOT_HERE),
    Field("hr_checkpoint_name", Text(), neutral=("", "Use same checkpoint"), refused=NOT_HERE),
    Field("hr_prompt", Text(), neutral=("",), refused=NOT_HERE),
    Field("hr_negative_prompt", Text(), neutral=("",), refused=NOT_HERE),
)
IMAGE_TO_IMAGE = (
    *(field for field in TEXT_TO_IMAGE if field.name not in ("enable_hr", "hr_scale", "hr_upscaler")),
    Field("init_images", Listed(AnyValue(), "images", most=16)),
    Field("resize_mode", Whole(0, 2)),
    Field("mask", Text(), neutral=("",)),
    Field("mask_blur", Whole(0, 1024)),
    Field("inpainting_fill", Whole(0, 1), neutral=(0, 1)),
    Field("inpaint_full_res", Flag()),
    Field("inpaint_full_res_padding", Whole(0, 1 << 15)),
    Field("inpainting_mask_invert", Flag()),
    Field("initial_noise_multiplier", _NUMBER, neutral=(1, 0), refused=NOT_HERE),
    Field("latent_mask", Text(), neutral=("",), refused=NOT_HERE),
)
_SETTINGS = (
    Field("sd_model_checkpoint", Text(), neutral=("", "None")),
    Field("CLIP_stop_at_last_layers", Whole(1, 1000)),
    Field("sd_vae", Text(), neutral=("", "Automatic", "None"), refused="a bundle has one autoencoder"),
    Field("eta_noise_seed_delta", Whole(), neutral=(0,), refused=NOT_HERE),
)
_UNIT = (
    Field("enabled", Flag()),
    Field("image", AnyValue(), aliases=("input_image",), neutral=("",)),
    Field("mask", AnyValue(), neutral=("",), refused=NOT_HERE),
    Field("module", Text(), neutral=("None",)),
    Field("model", Text(), neutral=("", "None")),
    Field("weight", Number(-1000, 1000)),
    Field("resize_mode", AnyValue()),
    Field("threshold_a", Number(-1, 1e6)),
    Field("threshold_b", Number(-1, 1e6)),
    Field("guidance_start", Number(0, 1)),
    Field("guidance_end", Number(0, 1)),
    Field("control_mode", AnyValue()),
)
_MODES = {"just resize": 0, "crop and resize": 1, "resize and fill": 2}
_BALANCES = {"balanced": 0, "my prompt is more important": 1, "controlnet is more important": 2}
_TAG = re.compile(r"<(?P<kind>\w+):(?P<name>[^:<>]+)(?::(?P<scale>[^:<>]*))?>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """One of AUTOMATIC1111's names, and the sampler that makes the same.

    Args:
        label: the name.
        name: ours.
        aliases: other names that its clients use.
    """

    label: str
    name: str
    aliases: tuple[str, ...] = ()


_SAMPLERS = (
    Sampler(label="Euler a", name="euler-a", aliases=("k_euler_a", "k_euler_ancestral")),
    Sampler(label="Euler", name="euler", aliases=("k_euler",)),
    Sampler(label="Euler", name="flow-euler", aliases=("k_euler",)),
    Sampler(label="LMS", name="lms", aliases=("k_lms",)),
    Sampler(label="Heun", name="heun", aliases=("k_heun",)),
    Sampler(label="Heun", name="flow-heun", aliases=("k_heun",)),
    Sampler(label="DPM2", name="dpm2", aliases=("k_dpm_2",)),
    Sampler(label="DPM2 a", name="dpm2-a", aliases=("k_dpm_2_a", "k_dpm_2_ancestral")),
    Sampler(label="DPM++ 2M", name="dpmpp-2m", aliases=("k_dpmpp_2m",)),
    Sampler(label="DPM++ 2M SDE", name="dpmpp-2m-sde", aliases=("k_dpmpp_2m_sde",)),
    Sampler(label="DDIM", name="ddim"),
    Sampler(label="PLMS", name="pndm"),
    Sampler(label="UniPC", name="unipc"),
    Sampler(label="LCM", name="lcm"),
)
SCHEDULERS: Mapping[str, str] = {
    "Automatic": "default",
    "Uniform": "linspace",
    "Karras": "karras",
    "Exponential": "exponential",
    "SGM Uniform": "trailing",
    "DDIM": "leading",
    "Beta": "beta",
}
"""AUTOMATIC1111's names of schedules, and ours."""


def samplers_of(model: ModelInfo) -> list[Sampler]:
    """The samplers of a model: by AUTOMATIC1111's names where it has one, else by ours."""
    rows = {row.name: row for row in _SAMPLERS}
    return [
        Sampler(label=row.label, name=name, aliases=(name, *row.aliases))
        for name in model.samplers
        for row in (rows.get(name, Sampler(label=name, name=name)),)
    ]


def sampler_of(given: Given, model: ModelInfo) -> Given:
    """Sampler, schedule and eta of a request, where they are given.

    Raises:
        FieldError: a name that nothing here has.
    """
    known = {name.lower(): row.name for row in samplers_of(model) for name in (row.label, *row.aliases)}
    schedules = {name.replace(" ", "").lower(): ours for name, ours in SCHEDULERS.items()}
    schedules |= {ours: ours for ours in model.schedules}
    found: Given = {}
    if (name := given.get("sampler_name")) is not None:
        words = name.strip().lower()
        head, _, tail = words.rpartition(" ")
        if words not in known and head in known and tail in ("karras", "exponential"):
            words, found["schedule"] = head, tail
        if words not in known:
            raise FieldError("sampler_name", f"no sampler {name!r}", expected=f"one of {', '.join(known)}")
        found["sampler"] = known[words]
    if (name := given.get("scheduler")) is not None:
        if name.replace(" ", "").lower() not in schedules:
            raise FieldError("scheduler", f"no scheduler {name!r}", expected=f"one of {', '.join(SCHEDULERS)}")
        found["schedule"] = schedules[name.replace(" ", "").lower()]
    if found.get("sampler", model.defaults.sampler) in ("ddim", "tcd") and "eta" in given:
        found["eta"] = given["eta"]
    return found


def label_of(sampler: str | None) -> str:
    """AUTOMATIC1111's name of a sampler."""
    return next((row.label for row in _SAMPLERS if row.name == sampler), str(sampler))


def settings_of(given: Given) -> Given:
    """Model and clip skip, out of `override_settings`."""
    return read(_SETTINGS, given.get("override_settings", {}))


def tags_of(prompt: str) -> tuple[str, tuple[tuple[str, float], ...]]:
    """A prompt without its `<lora:name:0.8>`, and what they name.

    Raises:
        FieldError: another kind of tag of extra networks, or a scale that is none.
    """
    found: list[tuple[str, float]] = []

    def take(match: re.Match[str]) -> str:
        kind, name, scale = match["kind"].lower(), match["name"].strip(), match["scale"]
        if kind not in ("lora", "lyco"):
            if kind == "hypernet":
                raise FieldError("prompt", f"{match[0]} in the prompt", hint=NOT_HERE)
            return match[0]
        try:
            found.append((name, float(scale) if scale else 1.0))
        except ValueError:
            raise FieldError("prompt", f"{match[0]} in the prompt", expected="<lora:NAME:0.8>") from None
        return ""

    text = _TAG.sub(take, prompt)
    return (re.sub(r"  +", " ", text).strip() if found else text), tuple(found)


def size_of(given: Given, model: ModelInfo) -> tuple[int, int] | None:
    """Width and height, to the nearest that the model makes; None where neither is given."""
    if "width" not in given and "height" not in given:
        return None
    sides = (given.get("width", model.defaults.size[0]), given.get("height", model.defaults.size[1]))
    width, height = (max(1, round(side / model.multiple_px)) * model.multiple_px for side in sides)
    return width, height


def upscale_of(given: Given, body: Mapping[str, Any]) -> Upscale | None:
    """The second pass of "Hires. fix", if it is on."""
    if not given.get("enable_hr", False) or given.get("hr_scale", 2.0) == 1:
        return None
    read(_SECOND_PASS, body)
    name = given.get("hr_upscaler", "Latent").lower()
    if not name.startswith("latent") and name not in ("none", "lanczos"):
        raise FieldError("hr_upscaler", f"no upscaler {given['hr_upscaler']!r}", expected="Latent or Lanczos")
    space = "latent" if name.startswith("latent") else "pixel"
    return Upscale(given.get("hr_scale", 2.0), strength=given.get("denoising_strength", 0.75), space=space)


def controls_of(given: Given, size: tuple[int, int], model: ModelInfo, init: Any = None) -> list[Control]:
    """The units of the ControlNet extension that are on.

    Args:
        init: the picture of img2img, which a unit without one of its own reads.

    Raises:
        Refused: another script.
        FieldError: a unit that nothing here can follow.
    """
    found: list[Control] = []
    for name, script in given.get("alwayson_scripts", {}).items():
        units: Sequence[Any] = script.get("args", []) if isinstance(script, dict) else []
        if name.lower() == "controlnet":
            found += [each for unit in units if (each := _control(unit, size, model, init)) is not None]
        elif units or name.lower() not in scripts_of(model):
            raise Refused(422, f"no script {name[:80]!r}", expected=" or ".join(scripts_of(model)) or "none")
    return found


def scripts_of(model: ModelInfo) -> list[str]:
    """Names of scripts; webuiapi clears the units of an earlier call only where the second one is listed."""
    return ["controlnet", "controlnet m2m"] if model.controls else []


def _control(unit: Any, size: tuple[int, int], model: ModelInfo, init: Any) -> Control | None:
    if not isinstance(unit, dict):
        return None
    given = read(_UNIT, unit)
    if not given.get("enabled", True) or "model" not in given:
        return None
    name = given["model"].split(" [")[0]
    if name not in model.controls:
        raise FieldError("model", f"no ControlNet {name!r}", expected=" or ".join(model.controls) or "none")
    balance = _choice("control_mode", given.get("control_mode", 0), _BALANCES)
    if balance == 1:
        raise FieldError("control_mode", "control_mode 1", expected="Balanced or ControlNet is more important")
    picture = given.get("image", init)
    if isinstance(picture, dict):
        picture = picture.get("image")
    if picture is None:
        raise FieldError("image", "a ControlNet unit without an image", expected="one in base64")
    image = picture if not isinstance(picture, str) else from_text(picture, "image")
    image = fitted(image, size, _choice("resize_mode", given.get("resize_mode", 0), _MODES))
    module = given.get("module", "none").lower()
    if module == "canny":
        low, high = (given.get(key, default) for key, default in (("threshold_a", 100.0), ("threshold_b", 200.0)))
        image = canny(image, low=low, high=high)
    elif module != "none":
        raise FieldError("module", f"no module {module!r}", expected="none or canny")
    return Control(
        name,
        image,
        scale=given.get("weight", 1.0),
        start=given.get("guidance_start", 0.0),
        end=given.get("guidance_end", 1.0),
        guess=balance == 2,
    )


def _choice(name: str, value: Any, names: Mapping[str, int]) -> int:
    """A number of a choice that comes as a number or as its name."""
    found = names.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, int) or isinstance(found, bool) or found not in names.values():
        raise FieldError(name, f"{name} is {value!r}"[:120], expected=" or ".join(names))
    return found


def refused_script(body: Mapping[str, Any]) -> None:
    """Raises Refused where a script is chosen: there are none of that kind."""
    if body.get("script_name"):
        raise Refused(422, "no script of that name", expected="no script_name")


def parsed(text: str) -> dict[str, Any]:
    """The fields of a picture's `parameters` text, as `png-info` gives them."""
    lines = text.strip().split("\n")
    last = lines[-1] if re.match(r"Steps: \d+", lines[-1]) else ""
    words = lines[:-1] if last else lines
    cut = next((i for i, line in enumerate(words) if line.startswith("Negative prompt: ")), len(words))
    fields = dict(re.findall(r'([A-Z][\w +]*): ("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)', last))
    negative = "\n".join(words[cut:]).removeprefix("Negative prompt: ")
    return {"Prompt": "\n".join(words[:cut]), "Negative prompt": negative, **fields}
