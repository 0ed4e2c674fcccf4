"""Check every byte of a cache; name each damaged row, and build damaged shards again with --repair."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from augment_cache.format.manifest import read_manifest
from augment_cache.verifying.check import Findings, check_cache
from augment_cache.verifying.repair import repair_cache
from pipelines.console.job import run_job
from pipelines.console.output import human_bytes, human_seconds, render_table
from pipelines.console.progress import ProgressMeter
from pipelines.errors import ProblemFoundError, UsageError

EXAMPLE = """
  python -m augment_cache.verify --cache out/cache
  python -m augment_cache.verify --cache out/cache --repair --data out/crops
"""
SHOWN = 50
"""Damages that the table lists; --json has all."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Options of the verify job.

    Args:
        cache: Folder of the cache.
        repair: Build what is damaged again, and only that. The result is the cache as it was, byte for byte, or an
            error that says why it cannot be.
        data: The folder that the cache was built from; needed to repair.
    """

    cache: Path
    repair: bool = False
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.repair and self.data is None:
            raise UsageError(
                "--repair builds damaged shards again: give --data, the folder that the cache was built from"
            )


def verify(config: VerifyConfig) -> dict[str, Any]:
    """Check a cache and, if asked to, repair it.

    Returns:
        The report. Keys: `cache`; `whole`; `shards`, `rows`, `bytes` that were read; `damage`, a list of {`file`,
        `what`, `row`, `sample_id`, `source`}, the last three null where a whole file is meant; `restored`, files that
        --repair put right; `seconds`.

    Raises:
        ProblemFoundError: Something is damaged; with --repair: and could not be repaired.
        UsageError: There is no cache.
    """
    start = time.monotonic()
    findings, restored = _checked(config.cache), []
    found = findings
    if findings.damage and config.repair:
        assert config.data is not None
        restored = repair_cache(config.cache, config.data, findings)
        findings = _checked(config.cache)
    report = {
        "cache": str(config.cache),
        "whole": not findings.damage,
        "shards": findings.shards,
        "rows": findings.rows,
        "bytes": findings.bytes,
        "damage": [asdict(damage) for damage in found.damage],
        "restored": restored,
        "seconds": round(time.monotonic() - start, 3),
    }
    if findings.damage:
        cure = (
            "it could not be repaired: build it again"
            if config.repair
            else "mend it with --repair --data FOLDER, the folder that it was built from"
        )
        raise ProblemFoundError(f"{config.cache} is damaged; {cure}", report)
    return report


def _checked(cache: Path) -> Findings:
    try:
        shards = len(read_manifest(cache).shards)
    except UsageError:
        shards = 0
    with ProgressMeter("verify", shards, "shards") as progress:
        return check_cache(cache, progress.advance)


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    read = (
        f"{report['rows']:,} rows in {report['shards']:,} shards, {human_bytes(report['bytes'])}, "
        f"{human_seconds(report['seconds'])}"
    )
    if not report["damage"]:
        return f"{report['cache']} is whole: {read}"
    rows = [
        [damage["file"], damage["row"], damage["sample_id"], damage["source"], damage["what"]]
        for damage in report["damage"][:SHOWN]
    ]
    left = len(report["damage"]) - len(rows)
    lines = [render_table(["file", ">row", "sample id", "source", "what"], rows, title="damage")]
    lines += [f"and {left:,} more: --json lists all"] if left else []
    lines += [f"restored: {', '.join(report['restored'])}"] if report["restored"] else []
    lines += [f"{report['cache']} is {'whole again' if report['whole'] else 'damaged'}: {read}"]
    return "\n".join(lines)


def main() -> None:
    """Run the job."""
    run_job(VerifyConfig, verify, name="augment_cache.verify", summary=__doc__ or "", example=EXAMPLE, table=table)


if __name__ == "__main__":
    main()
