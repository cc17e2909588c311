"""The deployment that answers clients: the application of the server, on a fleet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from latentrt.environment.ray_cluster import check_same
from latentrt.serving.ray_app.config import Config
from latentrt.serving.ray_app.fleet import Fleet
from latentrt.serving.web.app import create_app
from latentrt.serving.web.health import Doors
from latentrt.serving.web.settings import Settings

log = logging.getLogger(__name__)


class Front:
    """One of the replicas that answer clients.

    Args:
        replicas: Ray Serve's handle of those that make images.
        versions: of the process that deploys.
    """

    def __init__(self, replicas: Any, versions: Mapping[str, str]) -> None:
        check_same(versions, where="the process that deploys")
        self._replicas = replicas
        self._config: Config | None = None
        self.present: ASGIApp | None = None
        self.fleet: Fleet | None = None
        self.doors = Doors()

    async def reconfigure(self, given: Mapping[str, Any]) -> None:
        """Takes what is to be served; jobs that there are go on and are found as before.

        Raises:
            LatentRTError: a bundle or a file of keys that cannot be read here.
        """
        config = Config.of(given)
        if config == self._config:
            return
        settings, former = self._settings(config), self.fleet
        fleet = self._new_fleet(config, former)
        for error in (await asyncio.to_thread(fleet.prepare)).values():
            fleet.close()
            raise error
        self._config, self.fleet, self.present = config, fleet, create_app(fleet, settings, doors=self.doors)
        if former is not None:
            former.leave()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray Serve asks: a function, since of a method it takes an older protocol to be meant."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await _live(receive, send)
            elif self.present is not None:
                await self.present(scope, receive, send)

        return answer

    def __del__(self) -> None:
        if self.fleet is not None:
            self.fleet.close()

    def _settings(self, config: Config) -> Settings:
        return config.settings()

    def _new_fleet(self, config: Config, former: Fleet | None) -> Fleet:
        return Fleet(config, self._replicas, asyncio.get_running_loop(), former=former)


async def _live(receive: Receive, send: Send) -> None:
    """Nothing begins and ends with the application: configurations come and go while it answers."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
