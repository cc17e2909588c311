"""`latentrt serve`: models behind the interfaces that people's programs speak."""

import argparse
import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentrt.backends import needed
from latentrt.cli.arguments import add_execution, add_memory, count, named_file
from latentrt.cli.command import Command
from latentrt.cli.console import Console
from latentrt.environment.requirement import Requirement
from latentrt.errors import EnvironmentLacks, LatentRTError, RequestError

if TYPE_CHECKING:
    from latentrt.serving.service import Service
    from latentrt.serving.web.health import Doors
    from latentrt.serving.web.listening import Server
    from latentrt.serving.web.settings import Settings

log = logging.getLogger(__name__)

SERVE = Requirement(extra="serve", packages=("fastapi", "uvicorn", "prometheus_client", "python_multipart"))
GRACE_S = 60.0


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="[NAME=]BUNDLE", help="the first one is the default")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    parser.add_argument("--port", type=_port, default=7860, help="0 takes a free one; default: 7860")
    parser.add_argument("--lora", action="append", default=[], type=named_file, metavar="NAME=FILE")
    control = "another name of a model's ControlNet, such as control_v11p_sd15_canny=edges"
    parser.add_argument(
        "--controlnet", action="append", default=[], type=named_file, metavar="NAME=CONTROL", help=control
    )
    alias = "another name of a model, such as gpt-image-1=shapes"
    parser.add_argument("--alias", action="append", default=[], type=named_file, metavar="NAME=MODEL", help=alias)
    load = parser.add_argument_group("load")
    load.add_argument("--queue", type=count, default=64, metavar="N", help="jobs of a model that may wait; default: 64")
    load.add_argument("--batch-area", type=count, metavar="PIXELS", help="of an engine call's images together, at most")
    add_memory(load, "that models and calls may take: idle models make room for others; default: all stay")
    load.add_argument("--keep", type=float, default=600, metavar="SECONDS", help="how long results are kept")
    load.add_argument("--grace", type=float, default=GRACE_S, metavar="SECONDS", help="for what runs, on SIGTERM")
    access = parser.add_argument_group("access")
    access.add_argument("--api-key-file", type=Path, metavar="FILE", help="a key a line; clients need one")
    access.add_argument("--basic-auth-file", type=Path, metavar="FILE", help="a NAME:PASSWORD a line")
    access.add_argument("--open-to-everyone", action="store_true", help="another address than this machine's, no key")
    access.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="the server's name, too")
    cors = "a site whose pages may ask, such as https://lite.koboldai.net"
    access.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help=cors)
    most = "clients that are connected at a time, at most; default: 10000"
    access.add_argument("--connections", type=count, default=10_000, metavar="N", help=most)
    access.add_argument("--body-mb", type=count, default=64, metavar="MB", help="of a request, at most; default: 64")
    dashboards = "/metrics has vLLM's names of requests, too, for dashboards and autoscalers made for it"
    parser.add_argument("--vllm-metrics", action="store_true", help=dashboards)
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of a line for each request")
    add_execution(parser)


def _run(options: argparse.Namespace, console: Console) -> int:
    from latentrt.serving.service import Service
    from latentrt.serving.web.app import create_app
    from latentrt.serving.web.health import Doors
    from latentrt.serving.web.listening import ConnectionLimits, Server

    settings = settings_of(options)
    bundles = models_of(options.models)
    with (
        contextlib.closing(_listener(options.host, options.port)) as listener,
        Service(
            bundles,
            queue=options.queue,
            batch_area=options.batch_area,
            memory=options.memory,
            controls=dict(options.controlnet),
            keep_s=options.keep,
            loras=dict(options.lora),
            backend=options.backend,
            device=options.device,
            compute=options.compute,
            threads=options.threads,
            cache_dir=options.cache_dir,
        ) as service,
    ):
        if unknown := set(settings.aliases.values()) - set(bundles):
            raise RequestError(f"aliases of {', '.join(sorted(unknown))}", expected=" or ".join(bundles))
        doors = Doors()
        app = create_app(service, settings, doors=doors)
        _log_requests(json_lines=options.log_format == "json")
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        console.result(f"{', '.join(bundles)} on {url}", {"url": url, "models": list(bundles)})
        failed: list[LatentRTError] = []
        server = Server(
            app,
            limits=ConnectionLimits(most=options.connections),
            drain=lambda: _drain(service, doors, options.grace),
        )
        threading.Thread(
            target=_prepare, args=(service, list(bundles), server, failed), name="latentrt-prepare", daemon=True
        ).start()
        server.listen(listener)
        if failed:
            raise failed[0]
    return 0


def models_of(rows: Sequence[str]) -> dict[str, str]:
    """Bundles by name; one without a name has its folder's.

    Raises:
        RequestError: two of one name, or a name that no address can hold.
    """
    found: dict[str, str] = {}
    for row in rows:
        name, sign, path = row.partition("=")
        name, path = (name, path) if sign else (Path(row).resolve().name, row)
        if not name or not path or not all(sign.isalnum() or sign in "._-:" for sign in name):
            raise RequestError(f"model {row!r}", expected="BUNDLE or NAME=BUNDLE; letters, digits, . _ - : in a name")
        if name in found:
            raise RequestError(f"two models {name!r}", expected="a name for each", hint="NAME=BUNDLE")
        found[name] = path
    return found


def settings_of(options: argparse.Namespace) -> "Settings":
    """Whom the server answers.

    Raises:
        RequestError: files of keys that cannot be read, or an address that others reach without any.
    """
    from latentrt.serving.web.settings import Settings, is_loopback, secrets

    key_file, user_file = options.api_key_file, options.basic_auth_file
    keys = () if key_file is None else secrets(key_file, expected="a key a line")
    users = () if user_file is None else secrets(user_file, expected="a NAME:PASSWORD a line")
    if any(":" not in user for user in users):
        raise RequestError(f"a line of {user_file} without a colon", expected="a NAME:PASSWORD a line")
    local = is_loopback(options.host)
    if not local and not keys and not users and not options.open_to_everyone:
        raise RequestError(
            f"others reach {options.host}, and no key is asked for",
            expected="--api-key-file or --basic-auth-file",
            hint="or say --open-to-everyone",
        )
    own = ("localhost", "127.0.0.1", "::1", options.host.lower().strip("[]"))
    # A page that has its own name lead to this machine is told by that name; a key stops it as well.
    hosts = tuple(dict.fromkeys([*own, *options.allowed_host])) if local and not keys and not users else None
    return Settings(
        aliases=dict(options.alias),
        keys=keys,
        users=users,
        cors=tuple(options.cors),
        hosts=hosts,
        body_bytes=options.body_mb << 20,
        vllm_metrics=options.vllm_metrics,
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise RequestError(f"port {text!r}", expected="0 to 65535")
    return int(text)


def _listener(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except (OSError, UnicodeError) as error:
        raise EnvironmentLacks(
            f"cannot listen on {host}:{port} ({error})", expected="an address of this machine", hint="another --port"
        ) from error


def _drain(service: "Service", doors: "Doors", grace_s: float) -> None:
    """Takes nothing new, and waits for what there is; whoever asks for results is answered meanwhile."""
    doors.open = False
    service.drain(grace_s)


def _prepare(service: "Service", names: Sequence[str], server: "Server", failed: list[LatentRTError]) -> None:
    """Loads and tries the models while the server answers already; it ends where none of them can be loaded."""
    errors = service.prepare()
    for name, error in errors.items():
        log.error("model %s cannot be used: %s", name, error)
    if len(errors) == len(names):
        failed += errors.values()
        server.should_exit = True


def _log_requests(*, json_lines: bool) -> None:
    from latentrt.serving.web.guard import JsonLines, log

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if json_lines else logging.Formatter("%(asctime)s %(message)s"))
    log.setLevel(logging.INFO)
    log.handlers, log.propagate = [handler], False
    if json_lines:
        for other in logging.getLogger().handlers:
            other.setFormatter(JsonLines())


COMMAND = Command(
    help="serve bundles to clients of OpenAI, AUTOMATIC1111 and Hugging Face, and to a page",
    configure=_configure,
    run=_run,
    requires=lambda options: (SERVE, *needed([options.backend], device=options.device)),
    essential=("--host", "--port", "--lora", "--alias", "--queue", "--api-key-file", "--basic-auth-file", "--cors"),
)
