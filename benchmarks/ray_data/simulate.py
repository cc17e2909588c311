"""A cluster that makes a dataset, in events: which of its parts the GPUs wait for."""

import heapq
import random
from collections import deque
from dataclasses import dataclass, replace

from latentrt.ray_data.run import tasks_for

NODE_GPUS = 8
IN_FLIGHT = 2  # tasks that Ray Data sends an actor ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A model and its pictures.

    Args:
        images: of the dataset.
        batch: images of an engine call.
        gpu_s: of a batch.
        encode_s: of an image to a PNG file, by one core.
        file_mb: of such a file.
        weights_gb: of the bundle.
    """

    images: int
    batch: int
    gpu_s: float
    encode_s: float
    file_mb: float
    weights_gb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A cluster.

    Args:
        gpus: with NODE_GPUS to a node.
        actors: of a GPU; they take turns on it, and encode meanwhile.
        tasks_s: that the driver starts and ends, in a second.
        begin_s: of a process: start, CUDA, engines that are built already.
        storage_gb_s: that all nodes together read.
        node_gb_s: that one node reads.
        put_s: until a file is stored.
        puts_s: files that the storage takes in a second.
    """

    gpus: int
    actors: int = 1
    tasks_s: float
    begin_s: float = 20.0
    storage_gb_s: float = 10.0
    node_gb_s: float = 1.5
    put_s: float = 0.03
    puts_s: float = 3500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What it comes to.

    Args:
        hours: in all.
        loading_s: until the first actor begins.
        efficiency: share of the time for which a GPU works.
        images_s, mb_s: stored in a second, on the average.
        driver: share of the time for which the driver is busy.
    """

    hours: float
    loading_s: float
    efficiency: float
    images_s: float
    mb_s: float
    driver: float


def simulate(work: Work, site: Site, *, seed: int = 0) -> Outcome:
    """Plays a run, row by row. A row takes its time give or take 3 percent; the driver, the storage and each GPU serve
    one after the other."""
    rng = random.Random(seed)
    actors = site.gpus * site.actors
    rows = -(-work.images // work.batch)
    tasks = tasks_for(rows, actors)
    sizes = (rows // tasks + (index < rows % tasks) for index in range(tasks))
    loading = site.begin_s + work.weights_gb / min(site.node_gb_s, site.storage_gb_s * NODE_GPUS / site.gpus)
    driver, storage = _Server(1 / site.tasks_s), _Server(work.batch / site.puts_s)
    gpus = [_Server(work.gpu_s) for _ in range(site.gpus)]
    sent = deque(driver.serve(0.0) for _ in range(min(tasks, IN_FLIGHT * actors)))  # ahead of what is asked for
    unsent = tasks - len(sent)
    ready = [(loading + rng.uniform(0, 2), actor, 0) for actor in range(actors)]  # when, who, rows left of its task
    heapq.heapify(ready)
    end = loading
    while ready:
        at, actor, left = heapq.heappop(ready)
        if not left:
            if not sent:
                continue
            at, left = max(at, sent.popleft()), next(sizes)
            if unsent:
                sent.append(driver.serve(at))
                unsent -= 1
        denoised = gpus[actor % site.gpus].serve(at, rng.gauss(1.0, 0.03))
        encoded = denoised + work.batch * (work.encode_s + site.put_s)
        stored = max(encoded, storage.serve(denoised))
        end = max(end, stored)
        heapq.heappush(ready, (stored, actor, left - 1))
    return Outcome(
        hours=end / 3600,
        loading_s=loading,
        efficiency=sum(gpu.busy for gpu in gpus) / (end * site.gpus),
        images_s=work.images / (end - loading),
        mb_s=work.images * work.file_mb / (end - loading),
        driver=driver.busy / end,
    )


class _Server:
    """Something that serves one at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._free, self.busy = seconds, 0.0, 0.0

    def serve(self, at: float, factor: float = 1.0) -> float:
        """When whoever comes at that time has been served."""
        taken = self._seconds * factor
        self._free = max(at, self._free) + taken
        self.busy += taken
        return self._free


def table(work: Work, site: Site, gpus: tuple[int, ...] = (8, 64, 512)) -> list[Outcome]:
    """The same work on more and more GPUs."""
    return [simulate(work, replace(site, gpus=count)) for count in gpus]
