"""A server on a Ray cluster (docs/ray.md): `import_path: latentrt.serving.ray_app:build` in a file for `serve deploy`.

applications:
- name: latentrt
  route_prefix: /
  import_path: latentrt.serving.ray_app:build
  args:
    models: {sd15: /bundles/sd15}
    api_key_file: /keys/keys
    replicas: {num_replicas: 2, ray_actor_options: {num_gpus: 1}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentrt.environment.ray_cluster import RAY, import_ray, versions
from latentrt.environment.requirement import Requirement, check_requirements
from latentrt.errors import RequestError

SERVE = Requirement(extra=RAY.extra, packages=("ray", "fastapi", "prometheus_client", "python_multipart"))

REPLICAS: Mapping[str, Any] = {
    "num_replicas": 1,
    "max_ongoing_requests": 32,
    "health_check_period_s": 10,
    "health_check_timeout_s": 60,
    "graceful_shutdown_wait_loop_s": 1,
    "graceful_shutdown_timeout_s": 600,
    "max_constructor_retry_count": 3,
    "ray_actor_options": {"num_cpus": 1},
}
"""Options of those that make images. A replica has more jobs than images fit into an engine call, so that the next call
can be chosen among them; what is beyond waits in the front, for whichever replica has room first."""
FRONT: Mapping[str, Any] = {
    "num_replicas": 1,
    "max_ongoing_requests": 2000,
    "max_queued_requests": 1000,
    "max_constructor_retry_count": 3,
    "ray_actor_options": {"num_cpus": 1},
}
"""Options of the front. Connections are cheap: most wait for pictures, or listen to events."""


def build(args: Mapping[str, Any]) -> Any:
    """The application that `serve deploy`, `serve run` and `ray.serve.run` take.

    Args:
        args: the fields of `latentrt.serving.ray_app.config.Config`.

    Raises:
        RequestError: arguments that are not what they may be.
        EnvironmentLacks: no Ray here, or an old one.
    """
    check_requirements("serving on Ray", (SERVE,))
    from latentrt.serving.ray_app.front import Front
    from latentrt.serving.ray_app.images import Images

    return application(args, images=Images, front=Front)


def application(args: Mapping[str, Any], *, images: type, front: type) -> Any:
    """The same of other classes, which tests have."""
    from latentrt.serving.ray_app.config import Config

    config, own = Config.of(args), versions()
    import_ray()
    from ray import serve

    queue = {"max_queued_requests": 2 * config.queue}  # the front refuses first, in the words of each protocol
    try:
        many = serve.deployment(
            images, name="Images", user_config=config.live(), **options({**REPLICAS, **queue}, config.replicas)
        )
        one = serve.deployment(
            serve.ingress()(front), name="Front", user_config=config.live(), **options(FRONT, config.front)
        )
    except (TypeError, ValueError) as error:
        raise RequestError(f"options of a deployment ({error})", expected="those of ray.serve.deployment") from error
    return one.bind(many.bind(own), own)


def options(usual: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, over what is usual; a number of replicas gives way to autoscaling."""
    found = dict(usual) | dict(given)
    if "autoscaling_config" in given and "num_replicas" not in given:
        del found["num_replicas"]
    return found
