"""NVIDIA DALI on the CPU: its file reader, its decoder, its flip, its iterator for PyTorch.

https://docs.nvidia.com/deeplearning/dali/user-guide/docs/plugins/pytorch_plugin_api.html and
https://docs.nvidia.com/deeplearning/dali/user-guide/docs/examples/use_cases/pytorch/resnet50/pytorch-resnet50.html:
`readers.file` with random_shuffle, pad_last_batch and a name, `decoders.image`, `DALIGenericIterator` with reader_name
and the PARTIAL policy; without pad_last_batch some images come twice in an epoch and others not at all. `initial_fill`
is the whole set: everybody else shuffles all of it. Images have their size already, and nobody normalises, so `flip`
takes the place of `crop_mirror_normalize`, whose way from HWC to CHW costs more than the flip: the HWC pixels are a
channels-last tensor as they are.
"""

from typing import Any

from nvidia.dali import fn, pipeline_def, types  # type: ignore[attr-defined]
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy  # type: ignore[attr-defined]
from protocol import Batches, Epochs, Options, Peer, samples, serve

NAME = "reader"


@pipeline_def
def graph(folder: str, count: int, seed: int) -> Any:
    """Read, decode, mirror."""
    files, labels = fn.readers.file(
        file_root=folder, random_shuffle=True, initial_fill=count, pad_last_batch=True, seed=seed, name=NAME
    )
    images = fn.decoders.image(files, device="cpu", output_type=types.RGB)  # type: ignore[attr-defined]
    return fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5, seed=seed)), labels


def open_epochs(options: Options) -> Epochs:
    """The loader."""
    pipeline = graph(
        str(options.images),
        len(samples(options.images)),
        options.seed,
        batch_size=options.batch,
        num_threads=options.workers,
        device_id=None,
    )
    iterator = DALIGenericIterator(
        [pipeline],
        ["image", "label"],
        reader_name=NAME,
        last_batch_policy=LastBatchPolicy.PARTIAL,
        auto_reset=True,
    )

    def epochs() -> Batches:
        for (batch,) in iterator:
            yield batch["image"].permute(0, 3, 1, 2), batch["label"].squeeze(1).long()

    return epochs


if __name__ == "__main__":
    serve(Peer(packages=("nvidia-dali-cuda120", "torch"), open=open_epochs, encodings=("jpeg",)))
