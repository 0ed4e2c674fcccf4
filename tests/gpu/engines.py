"""The engines that sections measure, and what can be had of them without DALI."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from pipelines.augmentations import OPS, Policy, full_range
from pipelines.engines.base import Engine, Job, Rendered, RenderSpec
from pipelines.engines.choose import make_engine
from pipelines.engines.cpu import CpuEngine
from pipelines.engines.device import DeviceRows, versions
from pipelines.plan import Plan
from tests.gpu.common import Setting, has_dali

LAST_OF_THE_14 = 14


class GatherEngine:
    """Without DALI: images go to the device decoded by the cpu engine, and are gathered and mirrored there.

    That is what the dali engine does with resident images that get neither op nor crop, by the same function.
    """

    name = "gather"

    def __init__(self, spec: RenderSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device
        self._cpu = CpuEngine(spec)

    def stream(self, jobs: Iterable[Job]) -> Iterator[Rendered]:
        """See `pipelines.engines.base.Engine`."""
        for job in jobs:
            if isinstance(job.images, DeviceRows):
                assert job.plan.is_plain, "ops need DALI"
                yield Rendered(versions(job.images.gather(), job.plan.flip), {}, job.tag)
            else:
                yield from self._cpu.stream([job])

    def close(self) -> None:
        """Stop the threads."""
        self._cpu.close()


def device_engine(setting: Setting, size: int) -> Engine:
    """What the house renders with on the device: DALI, and without it what needs none."""
    if has_dali():
        return make_engine("dali", RenderSpec(size), device=setting.where)
    return GatherEngine(RenderSpec(size), setting.device)


def policy_of(ops: int) -> Policy | None:
    """So many of the 14 ops on each image, over their whole ranges."""
    choices = tuple(full_range(op.name) for op in OPS[1 : LAST_OF_THE_14 + 1])
    return Policy.repeated(f"{ops} of 14", choices, turns=ops) if ops else None


def render(engine: Engine, images: list[np.ndarray], plan: Plan, *, batch: int = 0) -> np.ndarray:
    """The pixels, on the CPU: int16 [n, size, size, 3]."""
    step = batch or len(images)
    jobs = [
        Job(images[start : start + step], plan.take(slice(start, start + step)), checked=True)
        for start in range(0, len(images), step)
    ]
    results = list(engine.stream(jobs))
    errors = [reason for result in results for reason in result.errors.values()]
    assert not errors, errors
    return np.concatenate([result.pixels[0].cpu().numpy() for result in results]).astype(np.int16)
