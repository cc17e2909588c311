"""What a service refuses; members of the tree in `latentrt.errors`."""

from latentrt.errors import EnvironmentLacks, RequestError


class UnknownModel(RequestError):  # noqa: N818 - reads as what it is
    """A model or a LoRA that the service does not have."""


class UnknownJob(RequestError):  # noqa: N818
    """A job that there never was, or whose result is kept no longer."""


class JobCancelled(RequestError):  # noqa: N818
    """The result of a job that was cancelled."""


class NotAccepting(EnvironmentLacks):
    """A service that is closed, or ends what it has and takes nothing new."""


class QueueFull(EnvironmentLacks):
    """As many jobs wait as may.

    Args:
        waiting: how many.
        retry_after: seconds after which to ask again.
    """

    def __init__(self, waiting: int, *, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(
            f"{waiting} jobs wait already", expected="a place in the queue", hint=f"ask again in {retry_after:.0f} s"
        )
