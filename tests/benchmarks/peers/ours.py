"""Tacopress: an augmentation cache without copies, read by `pipelines.loader.Loader`.

Runs with the environment of the benchmark itself. Every row is held against its checksum when it is read, as always.
"""

from protocol import Batches, Epochs, Options, Peer, serve

from augment_cache.build import BuildConfig, build
from augment_cache.format.policy import load_policy
from augment_cache.format.source import CacheSource
from pipelines.engines.base import RenderSpec
from pipelines.engines.choose import EngineName, make_engine
from pipelines.loader import Loader, LoaderOptions
from pipelines.plan import View
from pipelines.resident import ResidentSource


def convert(options: Options) -> None:
    """Build a cache with nothing but a train split."""
    build(
        BuildConfig(
            data=options.images,
            out=options.work / "cache",
            size=options.size,
            encoding="raw" if options.encoding == "raw" else "jpeg",
            quality=90,
            copies=0,
            val=0.0,
            test=0.0,
            engine="cpu",
            device="cpu",
            processes=options.workers,
        )
    )


def make_loader(options: Options, *, engine: EngineName, policy: str | None = None) -> Loader:
    """The loader, streaming."""
    return Loader(
        CacheSource(options.work / "cache", "train"),
        make_engine(engine, RenderSpec(options.size), device="cpu", threads=options.workers),
        LoaderOptions(
            batch_size=options.batch,
            train=True,
            seed=options.seed,
            view=View(flip=True),
            policy=load_policy(policy) if policy else None,
        ),
    )


def open_epochs(options: Options) -> Epochs:
    """The loader of a variant. A NEW VARIANT IS ONE MORE CASE HERE, and a contestant in `tests.benchmarks.loaders`."""
    match options.variant:
        case "stream" | "resident":
            loader = make_loader(options, engine="cpu")
        case "ops" | "ops-resident":
            loader = make_loader(options, engine="cpu", policy="taco14")
        case "dali":
            loader = make_loader(options, engine="dali")
        case _:
            raise ValueError(f"--variant {options.variant!r} is none of stream, resident, ops, ops-resident, dali")
    keep = options.variant.endswith("resident")

    def epochs() -> Batches:
        if keep and not isinstance(loader.source, ResidentSource):  # its seconds are those of the first epoch
            plain = loader.options.policy is None
            loader.source = ResidentSource(loader.source, loader.engine, mirror=plain)
        for batch in loader:
            yield batch.images, batch.labels
        loader.set_epoch(loader.epoch + 1)

    return epochs


if __name__ == "__main__":
    serve(Peer(packages=("torch", "numpy", "simplejpeg", "pyarrow"), open=open_epochs, convert=convert))
