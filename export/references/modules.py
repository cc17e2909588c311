"""What each graph must equal, by the modules and pipelines of diffusers and transformers alone.

Each class has the inputs and outputs of one graph. Nothing here comes from `latentrt.export.graphs.modules`: a fault
there, such as a scale that is left out or another layer of a text encoder, is then a difference and not the same fault
twice.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import diffusers
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn

from latentrt.export.quiet import quiet
from latentrt.export.references.stand_ins import Ids, NoTextEncoder, Posterior, Silent, Still

_TASKS = ("Img2Img", "Inpaint")


def pipeline_of(name: str, parts: Mapping[str, object], *, task: str = "") -> Any:
    """A pipeline of diffusers with some of its parts alone.

    Args:
        name: of a class of the same family.
        task: `Img2Img`, or nothing for text to image.
    """
    kind = _kind(name, task)
    taken = inspect.signature(kind.__init__).parameters
    absent = [key for key, value in taken.items() if key != "self" and value.default is inspect.Parameter.empty]
    absent += [key for key in ("image_encoder", "feature_extractor") if key in taken]
    settings = {"requires_safety_checker": False} if "requires_safety_checker" in taken else {}
    settings |= {"add_watermarker": False} if "add_watermarker" in taken else {}
    with quiet():
        pipeline = kind(**dict.fromkeys(absent) | dict(parts) | settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _kind(name: str, task: str = "") -> type[DiffusionPipeline]:
    for other in _TASKS:
        name = name.replace(other, "")
    kind: type[DiffusionPipeline] = getattr(diffusers, name.replace("Pipeline", f"{task}Pipeline"))
    return kind


def _takes(name: str, part: str) -> bool:
    return part in inspect.signature(_kind(name).__init__).parameters


class _Autoencoder(nn.Module):
    """Half of an autoencoder as a pipeline calls it."""

    def __init__(self, vae: nn.Module, pipeline: str) -> None:
        super().__init__()
        self.vae = vae
        self._pipeline = pipeline


class DecoderReference(_Autoencoder):
    """latent [B, C, h, w] -> image [B, H, W, 3] uint8, by the end of a text-to-image pipeline."""

    def forward(self, latent: Tensor) -> Tensor:
        silent = Silent(channels=latent.shape[1], like=latent)
        network = "transformer" if _takes(self._pipeline, "transformer") else "unet"
        pipeline = pipeline_of(self._pipeline, {"vae": self.vae, network: silent})
        pipeline.scheduler = Still()
        taken = inspect.signature(pipeline.__call__).parameters
        batch = len(latent)
        given = {"prompt_embeds": latent.new_zeros(batch, 1, 1), "pooled_prompt_embeds": latent.new_zeros(batch, 1)}
        with quiet():
            images = pipeline(
                latents=latent,
                num_inference_steps=1,
                guidance_scale=1.0,
                output_type="np",
                **{name: value for name, value in given.items() if name in taken},
            ).images
        return torch.from_numpy((images * 255).round()).to(torch.uint8)


class EncoderReference(_Autoencoder):
    """image, keep, noise -> latent [B, C, h, w], by the beginning of an image-to-image pipeline.

    `keep` masks the picture where an inpainting pipeline does, after it was scaled to -1..1.
    """

    def forward(self, image: Tensor, keep: Tensor, noise: Tensor | None = None) -> Tensor:
        pipeline = pipeline_of(self._pipeline, {"vae": self.vae}, task="Img2Img")
        pipeline.scheduler = Still()
        pixels = pipeline.image_processor.preprocess(image.cpu().numpy() / 255).to(image.device)
        pipeline.vae = Posterior(self.vae, noise)
        step = torch.ones(1, device=image.device)
        with quiet():
            latents: Tensor = pipeline.prepare_latents(
                (pixels * keep.permute(0, 3, 1, 2)).float(), step, len(image), 1, torch.float32, image.device
            )
        return latents


class TextReference(nn.Module):
    """ids, skip, extra_embeddings -> hidden, pooled, by `encode_prompt` and the text encoder of transformers itself.

    Textual-inversion embeddings become rows of its table, as `load_textual_inversion` adds them. Where the
    configuration says 2 for the end of a text, transformers takes the highest id for it, which such a row would be: a
    prompt with one is pooled at the tokenizer's end, as all prompts are where the configuration names that.

    Args:
        pipeline: name of the checkpoint's class.
        eos_id: the tokenizer's end of a text.
    """

    def __init__(self, model: nn.Module, pipeline: str, *, part: str, eos_id: int) -> None:
        super().__init__()
        self.model: Any = model
        self._pipeline, self._part, self._eos_id = pipeline, part, eos_id

    def forward(
        self, ids: Tensor, skip: Tensor | None = None, extra_embeddings: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if extra_embeddings is None or skip is None:
            return self._t5(ids)
        table = self.model.get_input_embeddings()
        longer = _embedding(torch.cat([table.weight, extra_embeddings]))
        self.model.set_input_embeddings(longer)
        try:
            rows = [self._row(row[None], int(skip), inverts=bool((row >= len(table.weight)).any())) for row in ids]
        finally:
            self.model.set_input_embeddings(table)
        hidden, pooled = (torch.cat(values) for values in zip(*rows, strict=True))
        return hidden, pooled

    def _row(self, ids: Tensor, skip: int, *, inverts: bool) -> tuple[Tensor, Tensor]:
        text_encoder = getattr(self.model, "text_model", self.model)
        configured = text_encoder.eos_token_id
        try:
            text_encoder.eos_token_id = self._eos_id if inverts and configured == 2 else configured
            output = self.model(ids)
        finally:
            text_encoder.eos_token_id = configured
        projected = getattr(output, "text_embeds", None)
        return self._hidden(ids, skip), output.pooler_output if projected is None else projected

    def _hidden(self, ids: Tensor, skip: int) -> Tensor:
        tokenizer, prompt = Ids(ids), [""] * len(ids)
        if _takes(self._pipeline, "text_encoder_3"):
            text_encoders = ("text_encoder", "text_encoder_2")
            both = dict.fromkeys(text_encoders, self.model) | dict.fromkeys(("tokenizer", "tokenizer_2"), tokenizer)
            hidden, _ = pipeline_of(self._pipeline, both)._get_clip_prompt_embeds(
                prompt, clip_skip=_beyond(skip), clip_model_index=text_encoders.index(self._part)
            )
            return cast(Tensor, hidden)
        if _takes(self._pipeline, "text_encoder_2"):
            parts = {"text_encoder_2": NoTextEncoder(self.model), "tokenizer_2": tokenizer, self._part: self.model}
            given = parts | {self._part.replace("text_encoder", "tokenizer"): tokenizer}
            hidden, *_ = pipeline_of(self._pipeline, given).encode_prompt(
                prompt, do_classifier_free_guidance=False, clip_skip=_beyond(skip)
            )
            return cast(Tensor, hidden)
        pipeline = pipeline_of(self._pipeline, {"text_encoder": self.model, "tokenizer": tokenizer})
        named = hasattr(self.model, "text_model")
        if not named:  # transformers 5 has the text encoder itself here, and diffusers 0.42 asks it for its final norm
            object.__setattr__(self.model, "text_model", self.model)
        try:
            hidden, _ = pipeline.encode_prompt(prompt, ids.device, 1, False, clip_skip=skip if skip else None)
            return cast(Tensor, hidden)
        finally:
            if not named:
                object.__delattr__(self.model, "text_model")

    def _t5(self, ids: Tensor) -> Tensor:
        pipeline = pipeline_of(self._pipeline, {"text_encoder_3": self.model, "tokenizer_3": Ids(ids)})
        hidden: Tensor = pipeline._get_t5_prompt_embeds(
            [""] * len(ids), max_sequence_length=ids.shape[1], device=ids.device, dtype=torch.float32
        )
        return hidden


def _embedding(weight: Tensor) -> nn.Embedding:
    return nn.Embedding(len(weight), weight.shape[1], _weight=weight)


def _beyond(skip: int) -> int | None:
    """As the pipelines count that read a text encoder one layer below its top; None is their default."""
    return None if skip == 1 else skip - 1


class StepReference(nn.Module):
    """A step: the network's own forward pass, branch by branch, and the arithmetic of docs/bundle.md around it.

    It also takes `residual_0` to `residual_{R-1}`, and then is `step-control` of a U-Net."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(
        self,
        *,
        state: Tensor,
        noise: Tensor,
        known: Tensor,
        mask: Tensor,
        timestep: Tensor,
        scalings: Tensor,
        transition: Tensor,
        context: Tensor,
        guidance: Tensor,
        rescale: Tensor,
        extra: Tensor | None = None,
        guidance_embed: Tensor | None = None,
        **branched: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x = state[:, 0]
        c_in, c_skip, c_out = (scalings[:, i].reshape(-1, 1, 1, 1) for i in range(3))
        sample = c_in * x if extra is None else torch.cat([c_in * x, extra], dim=1)
        outputs = torch.stack(
            [
                self._branch(sample, timestep, context[k], guidance_embed, {n: v[k] for n, v in branched.items()})
                for k in range(len(guidance))
            ]
        )
        guided = torch.einsum("kb,kbchw->bchw", guidance, outputs)
        scaled = [
            rescale_noise_cfg(each[None], positive[None], guidance_rescale=float(amount))
            for each, positive, amount in zip(guided, outputs[-1], rescale, strict=True)
        ]
        denoised = mask * (c_skip * x + c_out * torch.cat(scaled)) + (1 - mask) * known
        basis = torch.cat([state, denoised[:, None], noise[:, None]], dim=1)
        return torch.einsum("bij,bjchw->bichw", transition, basis), denoised

    def _branch(
        self, sample: Tensor, timestep: Tensor, context: Tensor, guidance: Tensor | None, given: dict[str, Tensor]
    ) -> Tensor:
        if "block_gate" in given:
            skipped = [number for number, gate in enumerate(given["block_gate"]) if not gate]
            output = self.network(
                hidden_states=sample,
                timestep=timestep,
                encoder_hidden_states=context,
                pooled_projections=given["pooled"],
                skip_layers=skipped,
            )
            return cast(Tensor, output.sample)
        residuals = _residuals(given)
        skips, middle = (tuple(residuals[:-1]), residuals[-1]) if residuals else (None, None)
        added = {"text_embeds": given.get("pooled"), "time_ids": given.get("time_ids")}
        output = self.network(
            sample,
            timestep,
            context,
            timestep_cond=None if guidance is None else self._angles(guidance),
            added_cond_kwargs=added if "pooled" in given else None,
            down_block_additional_residuals=skips,
            mid_block_additional_residual=middle,
        )
        return cast(Tensor, output.sample)

    def _angles(self, guidance: Tensor) -> Tensor:
        """Of the scale less 1, as every pipeline of diffusers that has this method calls it."""
        width = self.network.config.time_cond_proj_dim
        scale = guidance.cpu() - 1
        angles: Tensor = StableDiffusionPipeline.get_guidance_scale_embedding(None, scale, embedding_dim=width)
        return angles.to(guidance.device)


class ControlReference(nn.Module):
    """A ControlNet: its own forward pass, branch by branch, times the scales, plus what others have added.

    Args:
        controlnet: with the transformer's patches, where it has none of its own.
        offset: added to the picture's latent, where it was trained on latents without the VAE's shift.
    """

    def __init__(self, controlnet: nn.Module, *, offset: float = 0.0) -> None:
        super().__init__()
        self.controlnet: Any = controlnet
        self._offset = offset

    def forward(
        self, *, state: Tensor, timestep: Tensor, scalings: Tensor, scale: Tensor, **given: Tensor
    ) -> tuple[Tensor, ...]:
        sample = scalings[:, 0].reshape(-1, 1, 1, 1) * state[:, 0]
        running = _residuals(given)
        shared = {name: given.pop(name) for name in ("image", "image_latent") if name in given}
        found = []
        for k in range(len(scale)):
            own = {name: value[k] for name, value in given.items() if not name.startswith("residual_")}
            made = (
                self._unet(sample, timestep, shared["image"], own)
                if "image" in shared
                else self._transformer(sample, timestep, shared["image_latent"] + self._offset, own)
            )
            found.append([scale[k, :, number].reshape(-1, 1, 1, 1) * value for number, value in enumerate(made)])
        sums = [torch.stack(values) for values in zip(*found, strict=True)]
        return tuple(own + before for own, before in zip(sums, running, strict=True)) if running else tuple(sums)

    def _unet(self, sample: Tensor, timestep: Tensor, image: Tensor, given: dict[str, Tensor]) -> list[Tensor]:
        added = {"text_embeds": given.get("pooled"), "time_ids": given.get("time_ids")}
        skips, middle = self.controlnet(
            sample,
            timestep,
            encoder_hidden_states=given["context"],
            controlnet_cond=image.permute(0, 3, 1, 2).float() / 255,
            added_cond_kwargs=added if "pooled" in given else None,
            return_dict=False,
        )
        return [*skips, middle]

    def _transformer(self, sample: Tensor, timestep: Tensor, latent: Tensor, given: dict[str, Tensor]) -> list[Tensor]:
        width, patch = self.controlnet.config.pooled_projection_dim, self.controlnet.config.patch_size
        (blocks,) = self.controlnet(
            hidden_states=sample,
            controlnet_cond=latent,
            encoder_hidden_states=given.get("context"),
            pooled_projections=given.get("pooled", sample.new_zeros(len(sample), width)),
            timestep=timestep,
            return_dict=False,
        )
        rows, columns = (length // patch for length in sample.shape[2:])
        return [block.unflatten(1, (rows, columns)) for block in blocks]


def _residuals(given: dict[str, Tensor]) -> Sequence[Tensor]:
    """In the order of their numbers."""
    count = sum(name.startswith("residual_") for name in given)
    return [given[f"residual_{number}"] for number in range(count)]
