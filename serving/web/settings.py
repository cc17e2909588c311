"""How a server answers: whom, on which address, and within which limits."""

import hmac
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType

from latentrt.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of one server.

    Args:
        aliases: other names of models, such as those that a client has fixed; a name of their own goes before them.
        keys: of which a client gives one, as `Authorization: Bearer KEY` or `api-key: KEY`.
        users: `name:password`, of which a client gives one by HTTP Basic.
        cors: origins of other sites whose pages may ask, such as `https://lite.koboldai.net`.
        hosts: names under which the server is asked; None: any.
        body_bytes: of a request, at most.
        body_s: seconds within which a request's body is there.
        vllm_metrics: has `/metrics` give requests by the names that vLLM has for them, too.
    """

    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    keys: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    body_bytes: int = 64 << 20
    body_s: float = 60.0
    vllm_metrics: bool = False

    @property
    def closed(self) -> bool:
        """Whether clients need a key or a password."""
        return bool(self.keys or self.users)

    def admits(self, authorization: str, key: str) -> bool:
        """Whether a request with these headers, empty where it has none, may be answered."""
        if not self.closed:
            return True
        scheme, _, value = authorization.strip().partition(" ")
        match scheme.lower():
            case "bearer":
                return _among(value.strip(), self.keys)
            case "basic":
                try:
                    return _among(b64decode(value, validate=True).decode(), self.users)
                except (Base64Error, ValueError):
                    return False
        return _among(key.strip(), self.keys)


def _among(given: str, allowed: tuple[str, ...]) -> bool:
    """Compares with every entry, in a time that says nothing of how much of one was right."""
    data = given.encode(errors="surrogateescape")
    return sum(hmac.compare_digest(data, entry.encode()) for entry in allowed) > 0


def secrets(path: Path, *, expected: str) -> tuple[str, ...]:
    """The lines of a file of keys, without empty ones and those that begin with #.

    Raises:
        RequestError: it cannot be read, or has no line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {path} ({type(error).__name__})", expected=expected) from error
    found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not found:
        raise RequestError(f"{path} holds nothing", expected=expected)
    return found


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
