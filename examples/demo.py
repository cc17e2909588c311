"""Prompts made by LatentRT and by torch, from the same checkpoint and seeds, side by side.

make demo                                               # build/demo.png
.venv/bin/python examples/demo.py docs/images/demo.png
"""

import sys
import textwrap
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import latentrt
from latentrt.export.quiet import quiet
from latentrt.names import SamplerName
from latentrt.output.result import Images

with quiet():
    import torch

    from latentrt.export.checkpoint.folder import Checkpoint
    from latentrt.export.package import export_bundle
    from latentrt.export.parity.metrics import worst_psnr_db
    from latentrt.export.parity.torch.pipeline import reference_pipeline
    from latentrt.export.references.schedulers import REFERENCES
    from latentrt.export.staging import ExportProgress

CHECKPOINT, BUNDLE = Path("examples/shapes/checkpoint"), Path("build/bundles/shapes")
PROMPTS = (
    "a red circle on a white background",
    "a yellow star on a navy background",
    "a cyan triangle on a gray background",
    "a pink heart on a black background",
    "a blue star left of a yellow ring on a black background",
    "a green square above an orange triangle on a white background",
    "a purple diamond right of a cyan circle on a brown background",
    "a red ring below a blue square on a white background",
)
SAMPLER: SamplerName = "dpmpp-2m"
STEPS, GUIDANCE, SEED = 25, 4.0, 7
ACROSS, PX, CAPTION_PX, MARGIN = 4, 128, 46, 8


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo.png")
    checkpoint = Checkpoint.open(CHECKPOINT)
    export_if_stale(checkpoint)
    print(f"{len(PROMPTS)} images in one batch, {PX}x{PX}, {STEPS} steps of {SAMPLER}, guidance {GUIDANCE:g}")
    ours, theirs = with_latentrt(), with_torch(checkpoint)
    print(f"PSNR between the two, worst image: {worst_psnr_db(ours, theirs):.1f} dB")
    grid(ours, theirs).save(output)
    print(output)


def export_if_stale(checkpoint: Checkpoint) -> None:
    """Makes the bundle unless there is one of this very checkpoint."""
    try:
        found = latentrt.Bundle.open(BUNDLE).manifest["provenance"]["checkpoint"]["sha256"]
    except latentrt.BundleError:
        found = None
    if found != checkpoint.fingerprint():
        print(f"exporting {CHECKPOINT} to {BUNDLE}, a minute or two")
        export_bundle(checkpoint, BUNDLE, overwrite=True, progress=show)


def show(event: ExportProgress) -> None:
    if event.seconds is not None:
        print(f"  {event.component:<14}{event.bytes / 1e6:6.1f} MB {event.seconds:6.1f} s")


def with_latentrt() -> Images:
    with latentrt.load(BUNDLE) as pipe:
        pipe.prepare(images=len(PROMPTS))
        made = pipe.generate(PROMPTS, seed=SEED, steps=STEPS, guidance=GUIDANCE, sampler=SAMPLER)
    times = made.timings
    report(latentrt.available_backends()[0], times.text_ms, sum(times.steps_ms), times.decode_ms)
    return made.images


def with_torch(checkpoint: Checkpoint) -> Images:
    pipe = reference_pipeline(checkpoint)
    pipe.scheduler = REFERENCES[SAMPLER].build(checkpoint.config("scheduler"))
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(len(PROMPTS))]
    marks = [time.perf_counter()]
    with torch.no_grad(), quiet():
        text, negative = pipe.encode_prompt(list(PROMPTS), "cpu", 1, True)
        marks.append(time.perf_counter())
        latent = pipe(prompt_embeds=text, negative_prompt_embeds=negative, generator=generators, **settings).images
        marks.append(time.perf_counter())
        decoded = pipe.vae.decode(latent / pipe.vae.config.scaling_factor).sample
        images = pipe.image_processor.postprocess(decoded, output_type="np")
        marks.append(time.perf_counter())
    report("torch", *(1e3 * np.diff(marks)))
    made: Images = (images * 255).round().astype(np.uint8)
    return made


def report(name: str, text_ms: float, steps_ms: float, decode_ms: float) -> None:
    stages = f"text {text_ms:.0f} ms, {STEPS} steps of {steps_ms / STEPS:.0f} ms, decoding {decode_ms:.0f} ms"
    print(f"  {name:<14}{(text_ms + steps_ms + decode_ms) / 1e3:6.2f} s: {stages}")


def grid(ours: Images, theirs: Images) -> Image.Image:
    """Pairs of images under their prompts, LatentRT's to the left of torch's."""
    width, height = 2 * PX + 2 * MARGIN, PX + CAPTION_PX + MARGIN
    rows = -(-len(PROMPTS) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * width + MARGIN, rows * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (prompt, *pair) in enumerate(zip(PROMPTS, ours, theirs, strict=True)):
        x, y = MARGIN + i % ACROSS * width, MARGIN + i // ACROSS * height
        draw.text((x, y), textwrap.fill(prompt, 44), "black", font)
        for name, image in zip(("LatentRT", "torch"), pair, strict=True):
            draw.text((x, y + CAPTION_PX - 14), name, "gray", font)
            sheet.paste(Image.fromarray(image), (x, y + CAPTION_PX))
            x += PX
    return sheet


if __name__ == "__main__":
    main()
