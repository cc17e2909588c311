"""What a cluster serves, to whom and how: the arguments of an application in a file for `serve deploy`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from latentrt.errors import RequestError
from latentrt.names import BackendName, ComputeName, DeviceName
from latentrt.serving.web.settings import Settings, secrets
from latentrt.values import FilePath, Flag, Kind, Listed, Named, Number, Optional, Text, Whole, settle, shown

_NAMES = "._-:"  # beside letters and digits, as on the command line; `+` joins a model and its LoRAs


@dataclass(frozen=True, slots=True)
class _Everywhere:
    """A path that means the same on every node."""

    def read(self, name: str, value: Any) -> str:
        path = str(FilePath().read(name, value))
        if not Path(path).is_absolute():
            raise RequestError(
                f"{name} is {shown(path)}", expected="an absolute path, which every node of the cluster has"
            )
        return path


@dataclass(frozen=True, slots=True)
class _Options:
    """Options of a deployment, which Ray Serve checks."""

    def read(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise RequestError(f"{name} is {shown(value)}", expected="options of serve.deployment by name")
        return dict(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Of an application.

    Args:
        models: bundles by the names that clients use; the first one is the default.
        loras: files by the names that clients use.
        aliases: other names of models.
        controls: other names of the models' ControlNets.
        models_in_memory: bundles, each with its LoRAs, that a replica has in memory at a time; the least recently used
            one leaves when another is asked for.
        queue: jobs of a model that have not begun, at most; whoever asks for more is told 503.
        keep_s: seconds for which results of `/v1/jobs` are kept.
        backend, device, compute, threads, cache_dir: as `latentrt.load` takes them. Without `threads` a replica uses as
            many as it has cores, one at least.
        batch_area: pixels that the images of an engine call have together, at most.
        memory: 10^9 bytes for each bundle and its calls; a replica that shares a GPU has a share of its memory.
        api_key_file: a key a line; basic_auth_file: a NAME:PASSWORD a line.
        open_to_everyone: whoever reaches the cluster's proxies is answered.
        cors: sites whose pages may ask.
        body_mb: of a request, at most.
        replicas, front: options of the deployments of both, over those of `latentrt.serving.ray_app`.

    Raises:
        RequestError: a value that is not what it may be, or nothing that says who may ask.
    """

    models: Mapping[str, str]
    loras: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    controls: Mapping[str, str] = field(default_factory=dict)
    models_in_memory: int = 1
    queue: int = 256
    keep_s: float = 600
    backend: BackendName = "auto"
    device: DeviceName | None = None
    compute: ComputeName | None = None
    threads: int | None = None
    cache_dir: str | None = None
    batch_area: int | None = None
    memory: float | None = None
    api_key_file: str | None = None
    basic_auth_file: str | None = None
    open_to_everyone: bool = False
    cors: tuple[str, ...] = ()
    body_mb: int = 64
    replicas: Mapping[str, Any] = field(default_factory=dict)
    front: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settle(self, _FIELDS)
        if not self.models:
            raise RequestError("no model", expected="bundles by name, in models")
        for name in (*self.models, *self.aliases, *self.loras):
            if not name or not all(sign.isalnum() or sign in _NAMES for sign in name):
                raise RequestError(f"a name {name!r}", expected=f"letters, digits, and {' '.join(_NAMES)}")
        if unknown := set(self.aliases.values()) - set(self.models):
            raise RequestError(f"aliases of {', '.join(sorted(unknown))}", expected=" or ".join(self.models))
        if not (self.open_to_everyone or self.api_key_file or self.basic_auth_file):
            raise RequestError(
                "others reach a cluster's proxies, and no key is asked for",
                expected="api_key_file or basic_auth_file",
                hint="or say open_to_everyone: true",
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Config:
        """As a file says it.

        Raises:
            RequestError: a value that is not what it may be, or a name that nothing has.
        """
        known = {each.name for each in fields(cls)}
        if unknown := set(given) - known:
            raise RequestError(
                f"arguments {', '.join(sorted(unknown))}", expected=f"some of {', '.join(sorted(known))}"
            )
        if "models" not in given:
            raise RequestError("no models", expected="bundles by name, such as models: {sd15: /bundles/sd15}")
        return cls(**given)

    def settings(self) -> Settings:
        """Whom the server answers.

        Raises:
            RequestError: files of keys that cannot be read.
        """
        keys = () if self.api_key_file is None else secrets(Path(self.api_key_file), expected="a key a line")
        users: tuple[str, ...] = ()
        if self.basic_auth_file is not None:
            users = secrets(Path(self.basic_auth_file), expected="a NAME:PASSWORD a line")
        return Settings(aliases=self.aliases, keys=keys, users=users, cors=self.cors, body_bytes=self.body_mb << 20)

    def live(self) -> dict[str, Any]:
        """What may change while replicas go on: all but the options of the deployments, as JSON has it."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()} | {
            "replicas": {},
            "front": {},
        }


_FIELDS: Mapping[str, Kind] = {
    "models": Named(_Everywhere()),
    "loras": Named(_Everywhere()),
    "aliases": Named(Text()),
    "controls": Named(Text()),
    "models_in_memory": Whole(1, 1000),
    "queue": Whole(1, 1 << 20),
    "keep_s": Number(0, 1e9),
    "backend": Text(),
    "device": Optional(Text()),
    "compute": Optional(Text()),
    "threads": Optional(Whole(1, 1024)),
    "cache_dir": Optional(_Everywhere()),
    "batch_area": Optional(Whole(1)),
    "memory": Optional(Number(0.001, 1e6)),
    "api_key_file": Optional(_Everywhere()),
    "basic_auth_file": Optional(_Everywhere()),
    "open_to_everyone": Flag(),
    "cors": Listed(Text(), "sites"),
    "body_mb": Whole(1, 1 << 20),
    "replicas": _Options(),
    "front": _Options(),
}
