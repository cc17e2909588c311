"""Fakes for the tests of programs that embed the runtime: no model, no backend, the same checks.

pipe = latentrt.testing.fake_pipeline(tmp_path)
pipe.generate("a fox", seed=7).images  # deterministic, depends on prompt, seed and sampler
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.arrays import Array, Shape, Value, to_host
from latentrt.backends.base import GraphEngine
from latentrt.bundle import MANIFEST, Bundle, Component
from latentrt.engine import EngineOptions
from latentrt.errors import BackendError, RequestError
from latentrt.family import Defaults, Family, TextEncoderSpec
from latentrt.graph import GraphFile, TensorSpec
from latentrt.pipeline import Pipeline
from latentrt.samplers.noise_schedule import NoiseSchedule

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a fake engine: copies of what it was fed, and the names of kept outputs."""

    feed: Mapping[str, Array]
    keep: tuple[str, ...]


class FakeArray:
    """A kept output of a fake engine: like device memory, it is no numpy array and is reused in time."""

    def __init__(self, values: Array) -> None:
        self._values: Array | None = values
        self._slots: list[FakeArray] = []
        self.shape: Shape = values.shape
        self.dtype: np.dtype[Any] = values.dtype

    def numpy(self) -> Array:
        """A copy of the values.

        Raises:
            RequestError: the engine has run too often since, and a real one would have reused the memory.
        """
        if self._values is None:
            raise RequestError(
                "a kept output is used after its memory was reused",
                expected="use during the next run, or before it",
                hint="copy it with to_host(value).copy() to hold it longer",
            )
        return self._values.copy()

    def slot(self, index: int) -> FakeArray:
        """`[:, index]`, which expires with the whole."""
        view = FakeArray(self.numpy()[:, index])
        self._slots.append(view)
        return view

    def expire(self) -> None:
        self._values = None
        for view in self._slots:
            view.expire()


class FakeEngine(GraphEngine):
    """An engine that calls a Python function; it checks its arguments exactly as the real ones do.

    It holds callers to the strictest reading of the contract: a kept output expires after the next run.

    Args:
        inputs, outputs: what it claims to take and give.
        function: maps a feed of numpy arrays to all outputs.
        component: its name in messages.

    Attributes:
        calls: one `Call` a run, oldest first.
        prepared: the sizes that were prepared anew, oldest first; `unload` forgets which are ready.
    """

    backend = "fake"

    def __init__(
        self,
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        function: Function,
        *,
        component: str = "fake",
        options: EngineOptions | None = None,
    ) -> None:
        path = Path(f"{component}.onnx")
        super().__init__(GraphFile(component, path=path, inputs=inputs, outputs=outputs), options=options)
        self.function = function
        self.calls: list[Call] = []
        self.prepared: list[Mapping[str, Shape]] = []
        self._ready: list[Mapping[str, Shape]] = []
        self._kept: list[FakeArray] = []

    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        sizes = {name: tuple(shape) for name, shape in dims.items()}
        if sizes not in self._ready:
            with self._announced(f"preparing {self.graph.component}"):
                self._ready.append(sizes)
                self.prepared.append(sizes)

    def _run(self, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]) -> Mapping[str, Value]:
        arrays = {name: to_host(value).copy() for name, value in feed.items()}
        self.calls.append(Call(arrays, tuple(keep)))
        results = self._checked(self.function(arrays))
        self._expire()
        returned: dict[str, Value] = {}
        for name, array in results.items():
            if name in into:
                into[name][...] = array
                returned[name] = into[name]
            elif name in keep:
                self._kept.append(FakeArray(array))
                returned[name] = self._kept[-1]
            else:
                returned[name] = array
        return returned

    def _checked(self, results: Mapping[str, Array]) -> Mapping[str, Array]:
        """The results, copied, if they are what the fake claims to give."""
        if results.keys() != self.outputs.keys():
            raise BackendError(
                f"the function of fake '{self.graph.component}' returned {sorted(results)}",
                expected=str(sorted(self.outputs)),
            )
        for name, spec in self.outputs.items():
            array = results[name]
            if array.dtype != np.dtype(spec.dtype) or not spec.accepts(array.shape):
                raise BackendError(
                    f"the function of fake '{self.graph.component}' returned '{name}' as {array.dtype} "
                    f"{list(array.shape)}",
                    expected=str(spec),
                )
        return {name: results[name].copy() for name in self.outputs}

    def _expire(self) -> None:
        for value in self._kept:
            value.expire()
        self._kept.clear()

    def _release(self) -> None:
        self._expire()
        self._ready.clear()


def fake_pipeline(folder: Path) -> Pipeline:
    """A pipeline that makes small deterministic pictures out of a prompt, a seed and a sampler.

    Args:
        folder: an empty folder, such as pytest's `tmp_path`; a tokenizer and an empty manifest are written to it.
    """
    family = fake_family()
    _write_byte_tokenizer(folder / family.text_encoders[0].tokenizer)
    (folder / MANIFEST).write_text("{}", encoding="utf-8")
    engines = {name: _fake(name, *row) for name, row in _FAKES.items()}
    components = {
        name: Component(name, "fp32", 0, engines[name].graph, {**_dims(inputs), **_dims(outputs)})
        for name, (inputs, outputs, _) in _FAKES.items()
    }
    preview = ((0.2,) * 3,) * 4 + ((0.5,) * 3,)
    return Pipeline(Bundle(folder, manifest={}, family=family, components=components, preview=preview), engines)


def fake_family() -> Family:
    """The row of the pipeline's model: pictures of 64x64, up to 512, latents of 4 channels at an eighth."""
    text_encoder = TextEncoderSpec(
        component="text_encoder",
        tokenizer="tokenizer.json",
        length=77,
        width=8,
        vocabulary=258,
        bos_id=256,
        eos_id=257,
        pad_id=257,
        layers=3,
    )
    return Family(
        name="fake",
        text_encoders=(text_encoder,),
        latent_channels=4,
        vae_factor=8,
        size_range_px=(64, 512),
        noise=NoiseSchedule.from_config(
            {
                "_class_name": "EulerDiscreteScheduler",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
            }
        ),
        defaults=Defaults(size=(64, 64), steps=4, guidance=7.5, sampler="euler"),
    )


def step_reference(feed: Mapping[str, Array], network: Callable[[Array, Array, Array], Array]) -> Mapping[str, Array]:
    """The step graph's contract in numpy (docs/bundle.md), around any network.

    Args:
        feed: the step's inputs.
        network: (sample [K*B, C, h, w], timestep [K*B], context [K*B, L, D]) -> [K*B, C, h, w].
    """
    state, context, guidance = feed["state"], feed["context"], feed["guidance"]
    branches, batch = guidance.shape
    x = state[:, 0]
    c_in, c_skip, c_out = (column[:, None, None, None] for column in feed["scalings"].T)
    sample = np.concatenate([c_in * x] * branches)
    timestep = np.concatenate([feed["timestep"]] * branches)
    output = network(sample, timestep, context.reshape(branches * batch, *context.shape[2:]))
    output = output.reshape(branches, *x.shape)
    prediction = (guidance[:, :, None, None, None] * output).sum(0)
    ratio = output[-1].std(axis=(1, 2, 3)) / np.maximum(prediction.std(axis=(1, 2, 3)), 1e-12)
    prediction = prediction * (1 + feed["rescale"] * (ratio - 1))[:, None, None, None]
    denoised = c_skip * x + c_out * prediction
    denoised = feed["mask"] * denoised + (1 - feed["mask"]) * feed["known"]
    basis = np.concatenate([state, denoised[:, None], feed["noise"][:, None]], axis=1)
    next_state = np.einsum("bij,bj...->bi...", feed["transition"], basis)
    return {"next_state": next_state.astype(np.float32), "denoised": denoised.astype(np.float32)}


def _fake_text(feed: Mapping[str, Array]) -> Mapping[str, Array]:
    hidden = np.sin(feed["ids"][:, :, None] * np.arange(1, 9) + feed["skip"]).astype(np.float32)
    return {"hidden": hidden, "pooled": hidden.mean(axis=1)}


def _fake_step(feed: Mapping[str, Array]) -> Mapping[str, Array]:
    def network(sample: Array, timestep: Array, context: Array) -> Array:
        pull = context.mean(axis=1)[:, :4, None, None]
        result: Array = 0.5 * sample - pull * (1 + timestep[:, None, None, None] / 1000)
        return result

    return step_reference(feed, network)


def _fake_decoder(feed: Mapping[str, Array]) -> Mapping[str, Array]:
    levels = (np.tanh(feed["latent"][:, :3]) * 127.5 + 127.5).round().astype(np.uint8)
    return {"image": np.moveaxis(levels, 1, -1).repeat(8, axis=1).repeat(8, axis=2)}


def _fake_encoder(feed: Mapping[str, Array]) -> Mapping[str, Array]:
    pixels = (feed["image"].astype(np.float32) / 127.5 - 1) * feed["keep"]
    batch, height, width, _ = pixels.shape
    cells = pixels.reshape(batch, height // 8, 8, width // 8, 8, 3).mean(axis=(2, 4))
    latent = np.moveaxis(np.concatenate([cells, cells.mean(axis=-1, keepdims=True)], axis=-1), -1, 1)
    return {"latent": (latent + 0.1 * feed["noise"]).astype(np.float32)}


def _fake(component: str, inputs: Mapping[str, str], outputs: Mapping[str, str], function: Function) -> FakeEngine:
    return FakeEngine(_specs(inputs), _specs(outputs), function, component=component)


def _specs(tensors: Mapping[str, str]) -> dict[str, TensorSpec]:
    """`float32 B 4 h w` is a dtype and the axes."""
    return {
        name: TensorSpec(tensors[name].split()[0], tuple(axis if isinstance(axis, int) else None for axis in dims))
        for name, dims in _dims(tensors).items()
    }


def _dims(tensors: Mapping[str, str]) -> dict[str, tuple[str | int, ...]]:
    rows = {name: text.split()[1:] for name, text in tensors.items()}
    return {name: tuple(int(axis) if axis.isdecimal() else axis for axis in axes) for name, axes in rows.items()}


_FAKES: Mapping[str, tuple[Mapping[str, str], Mapping[str, str], Function]] = {
    "text_encoder": (
        {"ids": "int64 N 77", "skip": "int64 1", "extra_embeddings": "float32 E 8"},
        {"hidden": "float32 N 77 8", "pooled": "float32 N 8"},
        _fake_text,
    ),
    "step": (
        {
            "state": "float32 B 4 4 h w",
            "noise": "float32 B 4 h w",
            "known": "float32 B 4 h w",
            "mask": "float32 B 1 h w",
            "timestep": "float32 B",
            "scalings": "float32 B 3",
            "transition": "float32 B 4 6",
            "context": "float32 K B L 8",
            "guidance": "float32 K B",
            "rescale": "float32 B",
        },
        {"next_state": "float32 B 4 4 h w", "denoised": "float32 B 4 h w"},
        _fake_step,
    ),
    "encoder": (
        {"image": "uint8 B H W 3", "keep": "float32 B H W 1", "noise": "float32 B 4 h w"},
        {"latent": "float32 B 4 h w"},
        _fake_encoder,
    ),
    "decoder": ({"latent": "float32 B 4 h w"}, {"image": "uint8 B H W 3"}, _fake_decoder),
}


def _write_byte_tokenizer(path: Path) -> None:
    """One token a byte, between an opening and a closing one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    symbols = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**symbols, "<s>": 256, "</s>": 257}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    tokenizer.save(str(path))
