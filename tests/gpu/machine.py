"""Card, driver, versions, commit: what stands above every figure. Works where packages are missing."""

import os
import platform
import shutil
import subprocess
import sys
from datetime import date
from typing import Any

from pipelines.console.cores import usable_cores
from tests.gpu.common import ROOT
from training.measure.circumstances import cpu_model, installed_version

PACKAGES = (
    *("torch", "torchvision", "nvidia-dali-cuda110", "nvidia-dali-cuda130", "accelerate", "timm", "pytorchcv"),
    *("numpy", "opencv-python-headless", "simplejpeg", "pyarrow", "triton"),
)
ASKED = ("name", "driver_version", "memory.total")


def facts() -> dict[str, Any]:
    """Everything, JSON-able."""
    return {
        "date": date.today().isoformat(),
        "commit": os.environ.get("TACOPRESS_COMMIT") or said("git", "describe", "--always", "--dirty=+", "--exclude=*"),
        "command": f"bash tests/gpu/run.sh OUTPUT_DIR {' '.join(sys.argv[2:])}".rstrip(),
        "card": card(),
        "machine": {
            "cpu": cpu_model(),
            "cores": usable_cores(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "versions": {name: found for name in PACKAGES if (found := installed_version(name))},
    }


def card() -> dict[str, Any]:
    """Name, driver, memory of the first card, and the CUDA of torch; what cannot be known is left out."""
    line = said("nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader")
    found: dict[str, Any] = dict(zip(ASKED, (word.strip() for word in line.splitlines()[0].split(",")), strict=False))
    try:
        import torch
    except ImportError as error:
        return found | {"torch": f"cannot be imported: {error}"}
    found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        found |= {"processors": properties.multi_processor_count, "cudnn": torch.backends.cudnn.version()}
    return found


def said(*command: str) -> str:
    """Standard output of a command, `unknown` where it cannot be run."""
    if shutil.which(command[0]) is None:
        return "unknown"
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"
