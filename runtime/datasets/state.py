"""`bulk.json`: which settings each image of a folder is of."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from latentrt.datasets.store import Store
from latentrt.errors import RequestError

STATE = "bulk.json"


@dataclass(frozen=True, slots=True)
class State:
    """A digest of the weights, the seed, and a digest of each image's settings."""

    weights: str
    seed: int
    images: Mapping[str, str]

    @classmethod
    def read(cls, store: Store) -> Self | None:
        """What an earlier run wrote; None where there was none.

        Raises:
            RequestError: it is damaged.
        """
        try:
            state = json.loads(store.read(STATE))
            return cls(str(state["weights"]), int(state["seed"]), dict(state["images"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RequestError(
                f"{store.path(STATE)} cannot be read ({error})",
                expected="what an earlier run wrote",
                hint="choose another folder",
            ) from error

    def write(self, store: Store) -> None:
        """Replaces what is there."""
        store.write(STATE, json.dumps(asdict(self), indent=1).encode())
