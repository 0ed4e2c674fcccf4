"""Plan values that must never change. Needs numpy only, so that it also runs where nothing else is installed.

`python -m tests.pipelines.golden_plan` prints the values as JSON; `--check` compares them and says with which numpy.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.augmentations import OPS, Policy, full_range
from pipelines.order import shuffled
from pipelines.plan import Stage, View, draw

GOLDEN = Path(__file__).parent / "golden_plan.json"


def golden_values() -> dict[str, Any]:
    """A small plan in full, and checksums of a large one."""
    # The ops of the first release: later ones must not change these numbers.
    policy = Policy.repeated("all", tuple(full_range(op.name) for op in OPS[1:15]), turns=2)
    view = View(flip=True, min_area=0.4)
    small = draw(
        policy, np.array([0, 1, 2**63, 2**64 - 1], np.uint64), seed=7, stage=Stage.BUILD, rounds=(1, 2), view=view
    )
    many = np.arange(20_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    large = draw(policy, many, seed=2**64 - 1, stage=Stage.LOAD, rounds=(5,), view=view)
    return {
        "op": small.op.tolist(),
        "value": [float(value).hex() for value in small.value.ravel()],
        "centre": [float(value).hex() for value in small.centre.ravel()],
        "flip": small.flip.tolist(),
        "box": [float(value).hex() for value in small.box.ravel()],
        "large": {name: _crc(getattr(large, name)) for name in ("op", "value", "centre", "flip", "box")},
        "order": shuffled(12, seed=3, epoch=4).tolist(),
        "large_order": _crc(shuffled(50_000, seed=2**64 - 1, epoch=2**32 - 1)),
    }


def _crc(array: Any) -> int:
    import zlib

    return zlib.crc32(np.ascontiguousarray(array).tobytes())


if __name__ == "__main__":
    if "--check" in sys.argv:
        same = golden_values() == json.loads(GOLDEN.read_text(encoding="utf-8"))
        sys.stdout.write(f"numpy {np.__version__}: {'same' if same else 'DIFFERENT'}\n")
        sys.exit(0 if same else 1)
    sys.stdout.write(json.dumps(golden_values(), indent=1) + "\n")
