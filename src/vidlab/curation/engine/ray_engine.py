"""Workers of a Ray cluster, or of a local Ray, work on partitions; the bytes are those of one process."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from vidlab.curation.engine.engines import Crashes, Engine, OnDone, one_thread
from vidlab.curation.engine.work import Doomed, Work, process_partition
from vidlab.errors import MissingPackageError, UserError

DEATH = "ended with its Ray worker"


@dataclass(frozen=True)
class Ray(Engine):
    """Tasks of Ray, a partition each. Videos and the curation's folder must be on storage that all nodes share.

    A source whose worker dies is tried again, then rejected by name; the rest goes on.

    Args:
        address: of a running cluster, ``auto`` for the one this machine belongs to; None starts a local Ray.
        workers: tasks at a time; None is one per processor of the cluster.
        crashes: deaths of a source's reader that are forgiven.
        num_cpus: processors that Ray reserves for a task.
        num_gpus: GPUs, or a part of one, that Ray reserves for a task.

    Raises:
        UserError: a setting is out of range.
    """

    address: str | None = None
    workers: int | None = None
    crashes: int = 2
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"engine.workers={self.workers}: it must be 1 or more, or null.")
        if self.crashes < 0 or self.num_cpus < 0 or self.num_gpus < 0:
            raise UserError("engine: crashes, num_cpus and num_gpus must be 0 or more.")

    @override
    def run(self, work: Work, partitions: Sequence[str], on_done: OnDone, on_source: Callable[[], None]) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingPackageError(
                f"engine=ray needs Ray, which does not import ({error}): pip install -e '.[ray]', or take "
                "engine=process."
            ) from error
        began = not ray.is_initialized()
        if began:
            local = {"num_cpus": self.workers, "include_dashboard": False} if self.address is None else {}
            ray.init(address=self.address, log_to_driver=False, configure_logging=False, **local)
        try:
            limit = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            _Tasks(ray, self, work, deque(partitions)).run(limit, on_done)
        finally:
            if began:
                ray.shutdown()


class _Tasks:
    def __init__(self, ray: Any, engine: Ray, work: Work, waiting: deque[str]) -> None:
        self.ray, self.waiting = ray, waiting
        self.work = ray.put(work)
        self.crashes = Crashes(work, engine.crashes)
        resources = {"num_cpus": engine.num_cpus, "num_gpus": engine.num_gpus}
        self.task = ray.remote(max_retries=0, **resources)(_on_worker)
        self.running: dict[Any, str] = {}
        known = ray.exceptions  # its memory monitor ends a worker before the system would
        self.deaths = (known.WorkerCrashedError, known.NodeDiedError, known.OutOfMemoryError)

    def run(self, limit: int, on_done: OnDone) -> None:
        while self.waiting or self.running:
            while self.waiting and len(self.running) < limit:
                name = self.waiting.popleft()
                self.running[self.task.remote(self.work, name, self.crashes.doomed(name))] = name
            (ready, *_), _ = self.ray.wait(list(self.running), num_returns=1)
            name = self.running.pop(ready)
            try:
                failed = self.ray.get(ready)
            except self.deaths:
                self.crashes.add(name, DEATH)
                self.waiting.appendleft(name)
                continue
            if failed is not None:
                raise failed
            on_done(name)


def _on_worker(work: Work, name: str, doomed: Doomed) -> Exception | None:
    """Work on a partition; an error is returned, since Ray would wrap one that is raised."""
    with one_thread():
        try:
            process_partition(work, name, doomed)
        except Exception as error:
            return error
    return None
