"""Everything that can be named, by origin and family."""

import fnmatch
from collections import Counter

import timm

from training.model.cv_models import SEED, cv_family, cv_names
from training.model.names import shipped_names, timm_names


def families() -> dict[str, int]:
    """How many models each family of timm has, the largest first."""
    counts = {module: len(timm.list_models(module=module)) for module in timm.list_modules()}
    return dict(
        sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))
    )


def cv_families() -> dict[str, int]:
    """How many classifiers each family of pytorchcv has, the largest first."""
    counts = Counter(cv_family(name) for name in cv_names())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def matching(pattern: str) -> dict[str, list[str]]:
    """Names that match a shell pattern, by origin.

    Args:
        pattern: With `*`, `?` and `[...]`.
    """
    origins = {
        "timm": sorted(timm_names()),
        "yaml": list(shipped_names()),
        "seed": [SEED, f"{SEED}_2_5_2", f"{SEED}_conv"],
        "pytorchcv": list(cv_names()),
    }
    return {origin: fnmatch.filter(names, pattern) for origin, names in origins.items()}
