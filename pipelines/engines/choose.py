"""Pick an engine by name."""

from typing import Literal

import torch

from pipelines.engines.base import Engine, RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.engines.dali import DaliEngine
from pipelines.engines.dali_compat import dali_version, require_dali
from pipelines.errors import UsageError

EngineName = Literal["auto", "dali", "cpu"]
DeviceName = Literal["auto", "cpu", "gpu"]


def resolve_device(device: DeviceName) -> Literal["cpu", "gpu"]:
    """`auto` is the GPU where there is one.

    Raises:
        UsageError: `gpu` was asked for and there is none.
    """
    if device == "gpu" and not torch.cuda.is_available():
        raise UsageError(
            "device 'gpu' was asked for, but torch sees no CUDA device; check the driver or use device cpu"
        )
    if device == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return device


def resolve_engine(name: EngineName, device: Literal["cpu", "gpu"]) -> Literal["dali", "cpu"]:
    """`auto` is DALI on a GPU where DALI is installed, the cpu engine otherwise.

    Raises:
        UsageError: DALI was asked for and is not installed.
    """
    if name == "dali":
        require_dali()
    if name == "auto":
        return "dali" if device == "gpu" and dali_version() is not None else "cpu"
    return name


def make_engine(
    name: EngineName, spec: RenderSpec, *, device: DeviceName = "auto", threads: int = 0, inline: bool = False
) -> Engine:
    """Make an engine.

    Args:
        name: `auto`, `dali` or `cpu`.
        spec: What the images look like.
        device: Where DALI works; the cpu engine always leaves its pixels in host memory.
        threads: CPU threads; 0 for one per core.
        inline: See `CpuEngine`.

    Raises:
        UsageError: DALI or a GPU was asked for and is not there.
    """
    where = resolve_device(device)
    if resolve_engine(name, where) == "dali":
        return DaliEngine(spec, gpu=where == "gpu", threads=threads)
    return CpuEngine(spec, threads=threads, inline=inline)
