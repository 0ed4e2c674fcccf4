"""DALI's CPU graph makes the same shards in each supported version, bit for bit, from pixels that need no decoder.

The golden checksums were written with one version and hold for the other: DALI 1.34 (cuda110) and 2.4 (cuda130).
`TACOPRESS_WRITE_GOLDENS=1 python -m pytest tests/augment_cache/test_dali_versions.py` writes them anew.
"""

import json
import os
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from augment_cache.build import BuildConfig, build
from augment_cache.format.manifest import read_manifest
from augment_cache.format.policy import read_policy
from augment_cache.format.shards import Shard
from augment_cache.format.source import CacheSource
from pipelines.engines.dali_compat import dali_version

pytestmark = [
    pytest.mark.dali,
    pytest.mark.skipif(dali_version() is None, reason="NOT TESTED, SHARDS OF DALI: DALI is not installed"),
]

GOLDENS = Path(__file__).parent / "goldens" / "dali_raw.json"
SIZE = 40
IMAGES = 60
WRITE = bool(os.environ.get("TACOPRESS_WRITE_GOLDENS"))


def _picture(number):
    """Integers only, so that no library's rounding has a say: noise, flat areas, ramps, few levels."""
    draw = np.random.Generator(np.random.Philox(number))
    kind = number % 4
    if kind == 0:
        return draw.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    if kind == 1:
        return np.kron(draw.integers(0, 256, (5, 5, 3)), np.ones((8, 8, 1), np.int64)).astype(np.uint8)
    ramp = np.arange(SIZE)[:, None, None] * draw.integers(1, 6, 3) + np.arange(SIZE)[None, :, None] * draw.integers(
        1, 4
    )
    if kind == 2:
        return (ramp % 256).astype(np.uint8)
    return (draw.integers(100, 140) + ramp % 7).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """PNG and BMP files of exactly the size of the cache: nothing to resize, nothing lossy to decode."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(IMAGES):
        path = root / f"class {number % 2}" / f"{number:02d}.{'png' if number % 3 else 'bmp'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), _picture(number))
    return root


@pytest.fixture(scope="module")
def make(pictures, tmp_path_factory):
    def run(**options):
        out = tmp_path_factory.mktemp("dali") / "cache"
        known = {"engine": "dali", "device": "cpu", "encoding": "raw", "size": SIZE, "shard_mib": 0.2, "copies": 12}
        build(BuildConfig(data=pictures, out=out, **(known | options)))
        return out

    return run


@pytest.fixture(scope="module")
def first(make):
    return make()


def shards(cache):
    return {name: entry.sha256 for name, entry in read_manifest(cache).shards.items()}


def pixels(cache):
    """SHA-256 of all images of a shard: what stays the same where another pyarrow writes other words around them."""
    found = {}
    for name, entry in read_manifest(cache).shards.items():
        shard = Shard(cache / name, "raw", SIZE)
        found[name] = sha256(b"".join(shard.image(row).tobytes() for row in range(entry.rows))).hexdigest()
    return found


def rows_of_ops(cache):
    """Op → SHA-256 over the rows that it made: says which op differs."""
    source = CacheSource(cache, "train")
    found = {}
    for row in range(len(source.labels)):
        record = source.record(row)
        found.setdefault("+".join(record.op) or "Identity", sha256()).update(record.image)
    return {name: digest.hexdigest() for name, digest in sorted(found.items())}


def test_pictures_are_what_they_were(pictures):
    """If this fails, nothing below says anything about DALI."""
    digest = sha256()
    for path in sorted(pictures.rglob("*.*")):
        digest.update(path.name.encode() + cv2.imread(str(path)).tobytes())
    assert WRITE or digest.hexdigest() == json.loads(GOLDENS.read_text())["pictures"]


def test_all_ops_are_there_and_leave_originals_alone(first, pictures):
    """The 14 ops of the policy, each several times; the originals are the files' own pixels."""
    ops = {
        step.op.name if hasattr(step.op, "name") else step.op
        for turn in read_policy("taco14").policy.turns
        for step in turn
    }
    assert len(ops) == 14
    made = rows_of_ops(first)
    assert set(made) == ops | {"Identity"}
    source = CacheSource(first, "train")
    for row in range(len(source.labels)):
        record = source.record(row)
        if not record.op:
            wanted = cv2.cvtColor(cv2.imread(str(pictures / record.source)), cv2.COLOR_BGR2RGB)
            assert record.image == wanted.tobytes(), record.source


def test_same_version_same_bytes(make, first, hashes):
    assert hashes(make(batch=7, threads=1)) == hashes(first)


def test_shards_have_their_golden_checksums(first, pictures):
    found = {"shards": shards(first), "pixels": pixels(first), "ops": rows_of_ops(first)}
    if WRITE:
        digest = sha256()
        for path in sorted(pictures.rglob("*.*")):
            digest.update(path.name.encode() + cv2.imread(str(path)).tobytes())
        about = {"dali": dali_version(), "pyarrow": pa.__version__, "pictures": digest.hexdigest()}
        GOLDENS.parent.mkdir(exist_ok=True)
        GOLDENS.write_text(json.dumps({**about, **found}, indent=1) + "\n")
        pytest.skip("goldens were written, not tested")
    golden = json.loads(GOLDENS.read_text())
    assert len(found["shards"]) >= 4
    assert found["ops"] == golden["ops"]  # first, because it names the op
    assert found["pixels"] == golden["pixels"]
    assert found["shards"] == golden["shards"], f"only pyarrow differs: {pa.__version__} here, {golden['pyarrow']} then"
