"""What comes with a request: LoRAs, embeddings, pictures, prompts, lines of a list, and Python's own values."""

import datetime
import decimal
import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.kind import Kind, Make, Try, from_corpus, safetensors
from fuzz.mutate import wrong_bytes, wrong_json
from PIL import Image as Pillow
from small_bundles import small_bundle

import latentrt
from latentrt import Lora, Request
from latentrt.bundle import Bundle
from latentrt.datasets.request_file import read_lines
from latentrt.images.photo import read_mask, read_photo
from latentrt.lora import merge
from latentrt.output.png import encode_png
from latentrt.testing import fake_pipeline
from latentrt.text.textual_inversion import read_embedding

LAYER = "mid_block.to_q"
_MATRICES = {"A": (2, 8), "B": (8, 2)}


def loras(folder: Path) -> tuple[Make, Try]:
    """A file of one layer in each layout, merged into a weight."""
    bundle = Bundle.open(small_bundle(folder / "small"))
    path = folder / "a.safetensors"
    peft = {"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {LAYER: 2}, "unet.use_rslora": True}
    flat = f"lora_unet_{LAYER.replace('.', '_')}"
    corpus = [
        _tensors({f"{flat}.lora_down.weight": (2, 8), f"{flat}.lora_up.weight": (8, 2), f"{flat}.alpha": ()}),
        _tensors(
            {f"unet.{LAYER}.lora_A.weight": (2, 8), f"unet.{LAYER}.lora_B.weight": (8, 2)},
            {"lora_adapter_metadata": json.dumps(peft)},
        ),
        _tensors({f"unet.{LAYER}.lora.down.weight": (2, 8), f"unet.{LAYER}.lora.up.weight": (8, 2)}),
        _tensors(
            {f"base_model.model.{LAYER}.lora_A.weight": (2, 8), f"base_model.model.{LAYER}.lora_B.weight": (8, 2)}
        ),
    ]

    def use(data: bytes) -> None:
        path.write_bytes(data)
        for graph in merge(bundle, [Lora(path, 0.5)]).graphs.values():
            list(graph.new_weights())

    return from_corpus(corpus, _wrong_tensors), use


def embeddings(folder: Path) -> tuple[Make, Try]:
    """A file of textual inversion."""
    text_encoders = Bundle.open(small_bundle(folder / "small")).family.text_encoders
    path = folder / "a.safetensors"
    corpus = [
        _tensors({"emb_params": (2, 8)}),
        _tensors({"<cat>": (8,)}),
        _tensors({"clip_l": (2, 8), "clip_g": (2, 8)}),
    ]

    def use(data: bytes) -> None:
        path.write_bytes(data)
        read_embedding("cat", path, text_encoders)

    return from_corpus(corpus, _wrong_tensors), use


def _tensors(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, shape in shapes.items():
        values = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    return safetensors(header, data)


def _wrong_tensors(whole: bytes, rng: random.Random) -> bytes:
    """The header, what its metadata says, or the bytes."""
    if rng.random() < 0.3:
        return wrong_bytes(whole, rng)
    end = 8 + int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8:end]), whole[end:]
    texts = header.get("__metadata__")
    if texts and rng.random() < 0.5:
        header["__metadata__"] = {name: json.dumps(wrong_json(json.loads(text), rng)) for name, text in texts.items()}
        return safetensors(header, data)
    if rng.random() < 0.3:  # the tensors fit their claims: only what they are is wrong
        name = rng.choice([name for name in header if name != "__metadata__"])
        shape = rng.choice(([], [1], [8, 2], [2, 8], [2, 8, 1, 1], [0, 8], [1] * 70, [16], [4, 4, 1]))
        dtype = rng.choice(("F32", "F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3"))
        size = int(np.prod(shape)) * {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(dtype, 1)
        begin = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        header[f"{name}.x" if rng.random() < 0.2 else name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [begin, begin + size],
        }
        return safetensors(header, data + rng.randbytes(size))
    return safetensors(wrong_json(header, rng), data)


def pictures(folder: Path) -> tuple[Make, Try]:
    """A picture's file as a photo, as a mask, and as one that says how it was made."""
    path = folder / "a.png"
    ramp = np.arange(16 * 12 * 4, dtype=np.uint8).reshape(12, 16, 4)
    rgba = Pillow.fromarray(ramp)
    corpus = [encode_png(ramp[..., :3], "a red fox\nSteps: 4, Seed: 7")]
    forms = {"PNG": ("RGBA", "P", "L", "LA", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA")}
    forms |= {"GIF": ("P",), "BMP": ("RGB",), "TIFF": ("RGB", "CMYK", "LA"), "ICO": ("RGBA",), "PPM": ("RGB",)}
    for form, modes in forms.items():
        for mode in modes:
            file = io.BytesIO()
            rgba.convert("L" if mode == "I;16" else mode).convert(mode).save(file, form)
            corpus.append(file.getvalue())

    def use(data: bytes) -> None:
        path.write_bytes(data)
        errors = [error for read in (read_photo, read_mask) if (error := _refused(read, path))]
        if errors:
            raise errors[0]

    return from_corpus(corpus, wrong_bytes), use


def _refused(read: Callable[[Path], object], path: Path) -> latentrt.LatentRTError | None:
    try:
        read(path)
    except latentrt.LatentRTError as error:
        return error
    return None


_PIECES = (
    *("(", ")", "((", "))", "[", "]", ":", ":1.3", ":-1", ":nan", ":1e309", "BREAK", "AND", " AND ", ":0", "\\", "\\("),
    *("<", ">", "<lora:a:1>", "<lyco:", "<cat>", "<>", "\\<", "|", "{", "}", "a", "red fox", ",", ".", " ", "\n", "\t"),
    *("\0", "\r", "é", "e\u0301", "日本語", "🎨", "👩\u200d👧", "\u202e", "\u200b", "\ufeff", "\ud800", "\udc00"),
    *("½", "ﬀ", "İ", "ß", "\uffff"),
)


def prompts(folder: Path) -> tuple[Make, Try]:
    """Texts with pieces of syntax and of every script."""
    pipe = fake_pipeline(folder)

    def text(rng: random.Random) -> str:
        pieces = rng.choices(_PIECES, k=rng.choice((0, 1, 3, 8, 30, 300)))
        if rng.random() < 0.2:
            pieces += [chr(rng.randrange(0x110000)) for _ in range(rng.randrange(20))]
        return "".join(pieces)

    def make(rng: random.Random) -> bytes:
        row = {"prompt": text(rng), "negative": text(rng), "syntax": rng.choice(("weighted", "plain"))}
        return json.dumps(row).encode()

    def use(data: bytes) -> None:
        plan = pipe.plan([Request(**json.loads(data), seed=1)])
        pipe.conditioner.encode(plan.texts, clip_skip=plan.clip_skip)

    return make, use


_LINE = {
    "prompt": "a fox",
    "negative": "blurry",
    "seed": 7,
    "images": 2,
    "size": [64, 64],
    "steps": 3,
    "guidance": 7.5,
    "guidance_interval": [0.1, 0.9],
    "sampler": "euler",
    "schedule": "karras",
    "eta": None,
    "image": "a.png",
    "mask": "b.png",
    "strength": 0.5,
    "upscale": 2.0,
    "control": ["edges=a.png:0.5:0-0.5"],
    "file_name": "a/b.png",
    "metadata": {"x": 1},
}


def lines(folder: Path) -> tuple[Make, Try]:
    """A list of requests, a JSON object a line."""
    pipe = fake_pipeline(folder)
    Pillow.new("RGB", (16, 16)).save(folder / "a.png")

    def make(rng: random.Random) -> bytes:
        rows = []
        for _ in range(rng.choice((1, 1, 2, 4))):
            row = {"prompt": "a"} | {key: _LINE[key] for key in rng.sample(list(_LINE), rng.randrange(8))}
            row = wrong_json(row, rng) if rng.random() < 0.8 else row
            rows.append(json.dumps(row).encode() if rng.random() < 0.9 else wrong_bytes(json.dumps(row).encode(), rng))
        return b"\n".join(rows)

    def use(data: bytes) -> None:
        found, bad = read_lines(data.decode("utf-8", "replace").splitlines(), defaults=Request("x"), root=folder)
        for line in found:
            pipe.plan([line.request])
        if bad:
            raise bad[0].error

    return make, use


class _Nasty:
    """An object of a foreign program."""

    def __repr__(self) -> str:
        raise ValueError("no words")

    def __len__(self) -> int:
        return 3

    def __eq__(self, other: object) -> bool:
        raise TypeError("not comparable")

    __hash__ = None  # type: ignore[assignment]


VALUES: Mapping[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "1": lambda: 1,
    "2": lambda: 2,
    "-1": lambda: -1,
    "0.5": lambda: 0.5,
    "7.5": lambda: 7.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "10**9": lambda: 10**9,
    "10**5000": lambda: 10**5000,
    "2**64": lambda: 2**64,
    "text": lambda: "euler",
    "size": lambda: "64x64",
    "NUL": lambda: "\0",
    "surrogate": lambda: "\ud800",
    "no text": lambda: "",
    "bytes": lambda: b"x",
    "list": list,
    "texts": lambda: ["a", "b"],
    "numbers": lambda: [64, 64],
    "fractions": lambda: (0.1, 0.9),
    "falling": lambda: [10.0, 1.0, 0.0],
    "nested": lambda: [[[[]]]],
    "mixed": lambda: ["a", 1, None],
    "dict": lambda: {"a": 1},
    "set": lambda: {1, 2},
    "range": lambda: range(5),
    "generator": lambda: (i for i in range(3)),
    "object": object,
    "nasty": _Nasty,
    "class": lambda: int,
    "complex": lambda: 1j,
    "Decimal": lambda: decimal.Decimal("7.5"),
    "date": lambda: datetime.date(2026, 1, 1),
    "Path": lambda: Path("a.png"),
    "missing": lambda: "no/such/file.png",
    "int64": lambda: np.int64(3),
    "float16": lambda: np.float16(0.5),
    "bool_": lambda: np.bool_(True),
    "nan64": lambda: np.float64("nan"),
    "datetime64": lambda: np.datetime64("2026-01-01"),
    "str_": lambda: np.str_("euler"),
    "0-d": lambda: np.array(3),
    "floats": lambda: np.linspace(1, 0, 4),
    "objects": lambda: np.array([None, "a"], object),
    "empty array": lambda: np.zeros((0, 3)),
    "photo": lambda: np.zeros((16, 16, 3), np.uint8),
    "mask": lambda: np.ones((16, 16), np.bool_),
    "float photo": lambda: np.zeros((16, 16, 3)),
    "empty photo": lambda: np.zeros((0, 0, 3), np.uint8),
    "latent": lambda: np.zeros((1, 4, 8, 8), np.float32),
    "nan latent": lambda: np.full((1, 4, 8, 8), np.nan, np.float32),
    "Pillow": lambda: Pillow.new("RGB", (16, 16)),
    "Pillow F": lambda: Pillow.new("F", (16, 16)),
    "empty Pillow": lambda: Pillow.new("RGB", (0, 0)),
    "start": lambda: latentrt.Image(np.zeros((64, 64, 3), np.uint8), 0.5),
    "upscaled": lambda: latentrt.Upscale(2),
    "request": lambda: Request("a"),
}
_CALLS: Mapping[str, tuple[Callable[..., Any], Mapping[str, str], tuple[str, ...]]] = {
    "Request": (Request, {"prompt": "text"}, tuple(Request.__dataclass_fields__)),
    "Image": (latentrt.Image, {"photo": "photo"}, ("photo", "strength")),
    "Inpaint": (latentrt.Inpaint, {"photo": "photo"}, ("photo", "mask", "strength", "margin", "feather")),
    "Outpaint": (latentrt.Outpaint, {"photo": "photo"}, tuple(latentrt.Outpaint.__dataclass_fields__)),
    "Latent": (latentrt.Latent, {"x": "latent"}, ("x", "denoising_start", "strength")),
    "Upscale": (latentrt.Upscale, {"factor": "2"}, tuple(latentrt.Upscale.__dataclass_fields__)),
    "Control": (latentrt.Control, {"name": "text", "image": "photo"}, tuple(latentrt.Control.__dataclass_fields__)),
    "Lora": (Lora, {"path": "Path"}, ("path", "scale", "strict")),
}


def requests(folder: Path) -> tuple[Make, Try]:
    """Values of any type wherever Python takes one."""
    pipe = fake_pipeline(folder)

    def make(rng: random.Random) -> bytes:
        name = rng.choice(("Request", "Request", "Request", *_CALLS))
        _, given, fields = _CALLS[name]
        wrong = rng.sample(fields, min(len(fields), rng.choice((1, 1, 2, 3))))
        chosen = {field: rng.choice(list(VALUES)) for field in wrong}
        return json.dumps({"call": name, "given": {**given, **chosen}}).encode()

    def use(data: bytes) -> None:
        row = json.loads(data)
        call, _, _ = _CALLS[row["call"]]
        made = call(**{field: VALUES[value]() for field, value in row["given"].items()})
        if isinstance(made, Request):
            pipe.plan([made])
        elif row["call"] in ("Image", "Inpaint", "Outpaint", "Latent"):
            pipe.plan([Request("a", start=made)])
        elif row["call"] == "Upscale":
            pipe.plan([Request("a", upscale=made)])

    return make, use


KINDS = (
    Kind("loras", loras),
    Kind("embeddings", embeddings),
    Kind("pictures", pictures),
    Kind("prompts", prompts),
    Kind("lines", lines),
    Kind("requests", requests),
)
