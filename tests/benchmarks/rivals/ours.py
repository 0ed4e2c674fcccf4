"""Tacopress: the public `augment_cache.build.build`, which also writes shards, checksums and a manifest."""

from dataclasses import dataclass
from pathlib import Path

from augment_cache.build import BuildConfig, build
from pipelines.engines.choose import EngineName


@dataclass(frozen=True)
class Ours:
    """See `tests.benchmarks.rivals.contestant.Builder`.

    Attributes:
        size: Side of the images in px.
        processes: Processes side by side; they are started anew by each build.
        engine: Who renders.
    """

    size: int
    processes: int
    engine: EngineName

    def build(self, data: Path, out: Path) -> None:
        """Build a cache with nothing but a train split."""
        build(
            BuildConfig(
                data=data,
                out=out,
                size=self.size,
                copies=2,
                policy="taco14",
                quality=90,
                val=0.0,
                test=0.0,
                engine=self.engine,
                device="cpu",
                processes=self.processes,
            )
        )

    def close(self) -> None:
        """Nothing is kept between builds."""


def make(size: int, *, processes: int, engine: EngineName) -> Ours:
    """The contestant."""
    return Ours(size, processes, engine)
