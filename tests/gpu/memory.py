"""How much memory resident mode takes at its peak, and whether anything is left behind when loaders come and go.

Memory of the device is what the driver says is taken: DALI has its own beside torch's. Of the host it is the resident
set of this process. A leak is a slope: least squares over the later two thirds of the cycles.
"""

import gc

import numpy as np
import torch

from augment_cache.format.source import CacheSource
from pipelines.loader import Loader, LoaderOptions
from pipelines.plan import View
from pipelines.resident import ResidentSource
from tests.gpu.common import Record, Setting, has_dali
from tests.gpu.engines import device_engine, policy_of
from tests.memory import MIB, resident_bytes

MOST_PER_CYCLE = 0.5
"""MiB that a cycle may leave behind: less than one batch, and what allocators do by themselves."""


def run(setting: Setting, record: Record) -> None:
    """The peak, then cycles."""
    with record.attempt("peak"):
        peak(setting, record)
    with record.attempt("leak"):
        leak(setting, record)


def host_mib() -> float:
    """Resident memory of this process."""
    return resident_bytes() / MIB


def device_mib(setting: Setting) -> float:
    """Memory of the device that is taken, by whomever; 0 without one."""
    if not setting.gpu:
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / MIB


def peak(setting: Setting, record: Record) -> None:
    """One epoch of resident images, with one op where DALI is there."""
    if setting.gpu:
        torch.zeros(1, device=setting.device)  # the context is nobody's fault
        torch.cuda.reset_peak_memory_stats()
    before, host = device_mib(setting), host_mib()
    engine = device_engine(setting, setting.px(64))
    source = ResidentSource(CacheSource(setting.cache("raw64"), "train"), engine)
    options = LoaderOptions(batch_size=setting.pick(1024, 16), train=True, policy=policy_of(int(has_dali())))
    most = 0.0
    for number, _ in enumerate(Loader(source, engine, options)):
        if number % 4 == 0 and setting.gpu:
            free, total = torch.cuda.mem_get_info()
            most = max(most, (total - free) / MIB)
    images = source.bytes / MIB
    note = f"the images themselves are {images:.0f} MiB"
    record.row("resident 64 px: memory of the device at its peak", max(0.0, most - before), "MiB", note=note)
    if setting.gpu:
        record.row("of it torch's", torch.cuda.max_memory_allocated() / MIB, "MiB")
    record.row("resident 64 px: memory of the host that was added", host_mib() - host, "MiB")
    engine.close()


def cycle(setting: Setting) -> None:
    """Make an engine, a resident source and two loaders, take some batches, leave in the middle, drop all of it."""
    engine = device_engine(setting, setting.px(64))
    source = CacheSource(setting.cache("raw64"), "train")
    resident = ResidentSource(source, engine)
    ops = policy_of(1) if has_dali() else None
    options = LoaderOptions(batch_size=setting.pick(256, 16), train=True, view=View(flip=True), policy=ops)
    for given in (resident, source) if has_dali() else (resident,):
        for number, _ in enumerate(Loader(given, engine, options)):
            if number == 4:
                break
    engine.close()


def leak(setting: Setting, record: Record) -> None:
    """Cycles until there are 50, or the time is spent."""
    seen: list[tuple[float, float]] = []
    wanted = setting.pick(50, 6)
    while len(seen) < wanted and not (len(seen) > 5 and setting.late(2)):
        cycle(setting)
        gc.collect()
        seen.append((device_mib(setting), host_mib()))
    if len(seen) < wanted:
        record.note(f"only {len(seen)} of {wanted} cycles: the time was spent")
    for index, what in enumerate(("device", "host")):
        values = [pair[index] for pair in seen]
        note = f"{len(seen)} cycles, from {values[0]:.0f} to {values[-1]:.0f} MiB"
        name = f"left behind by each create, iterate, drop: {what}"
        record.row(name, slope(values), "MiB", goal=MOST_PER_CYCLE, at_most=True, note=note)


def slope(values: list[float]) -> float:
    """Growth per cycle over the later two thirds."""
    later = values[len(values) // 3 :]
    return float(np.polyfit(np.arange(len(later)), np.array(later), 1)[0])
