"""The facts of a cache as text that fits in 100 columns."""

import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from augment_cache.statistics.histogram import bar
from augment_cache.statistics.policy_text import policy_text, signed_text, strength_text
from pipelines.console.output import human_bytes, render_table

WIDTH = 100
NAME_WIDTH = 36
BAR_WIDTH = 40
MOST_REASONS = 8


def info_text(report: dict[str, Any]) -> str:
    """Everything there is to say about a report, one table after the other."""
    splits = report["splits"]
    parts = [overview(report), class_table(report), split_table(splits)]
    if any(len(entry["copies"]) > 1 for entry in splits.values()):
        parts.append(copies_table(splits))
    parts += [ops_table(name, entry) for name, entry in splits.items() if entry["ops"]]
    parts.append(size_histogram(splits))
    if report["plot"]:
        parts.append(f"pictures of all this: {report['plot']}")
    return "\n\n".join(parts)


def shortened(name: str, width: int = NAME_WIDTH) -> str:
    """A name that is not too long for a table, on one line."""
    line = " ".join(name.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def overview(report: dict[str, Any]) -> str:
    """What the cache is and how it was made."""
    splits, recipe = report["splits"], report["recipe"]
    rows, size = (sum(entry[key] for entry in splits.values()) for key in ("rows", "bytes"))
    quality = f" of quality {recipe['quality']}" if recipe.get("quality") is not None else ""
    lines = {
        "cache": f"{report['folder']}, split{'s' if len(splits) > 1 else ''} {', '.join(splits)}",
        "holds": f"{rows:,} images in {len(report['classes'])} classes, {human_bytes(size)}",
        "images": f"{recipe['size']} x {recipe['size']} px, {recipe['fit']}, {recipe['encoding']}{quality}",
        "copies": f"{copies_text(recipe)}, seed {recipe.get('seed')}, by the {recipe.get('engine')} engine",
        "policy": policy_text(recipe.get("policy")),
        "rejected": rejected_text(report["rejected"]),
        "made with": ", ".join(f"{name} {version}" for name, version in report["made_with"].items()),
        "fingerprint": f"{report['fingerprint']} (format {report['format_version']})",
    }
    return "\n".join(_entry(name, text) for name, text in lines.items())


def _entry(name: str, text: str) -> str:
    lead = f"{name:<13}"
    return textwrap.fill(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)


def copies_text(recipe: dict[str, Any]) -> str:
    """How many copies the build was asked for."""
    own = [f"{copies} of {shortened(name)}" for name, copies in (recipe.get("class_copies") or {}).items()]
    return f"{recipe.get('copies')} of each training image{', but ' if own else ''}{', '.join(own)}"


def rejected_text(rejected: dict[str, Any]) -> str:
    """How many images could not be read, and why."""
    if not rejected["count"]:
        return "none"
    reasons = [f"{reason} ({count:,})" for reason, count in rejected["reasons"].items()]
    more = f", {len(reasons) - MOST_REASONS} more reasons" if len(reasons) > MOST_REASONS else ""
    return f"{rejected['count']:,}: {', '.join(reasons[:MOST_REASONS])}{more}"


def class_table(report: dict[str, Any]) -> str:
    """Originals of each class and, where there are copies, all rows."""
    splits = report["splits"]
    columns: list[tuple[str, dict[str, int]]] = []
    for name, entry in splits.items():
        columns.append((name, entry["originals"]))
        if entry["rows"] != entry["samples"]:
            columns.append((f"{name} + copies", entry["classes"]))
    headers = ["class", *(f">{header}" for header, _ in columns)]
    rows: list[list[object]] = []
    for name in report["classes"]:
        rows.append([shortened(name), *(counts[name] for _, counts in columns)])
    rows.append(["all classes", *(sum(counts.values()) for _, counts in columns)])
    ratios = "; ".join(f"{name} {_ratio_text(entry['balance'])}" for name, entry in splits.items() if entry["samples"])
    return _titled("images per class", headers, rows) + (f"\n{_entry('balance', ratios)}" if ratios else "")


def _ratio_text(balance: dict[str, Any]) -> str:
    largest, smallest = shortened(balance["largest"]), shortened(balance["smallest"])
    if balance["ratio"] is None:
        return f"without {smallest}"
    return "even" if balance["ratio"] == 1 else f"{balance['ratio']:.1f} ({largest} to {smallest})"


def _titled(title: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table under a title that may be wider than it."""
    return f"{textwrap.fill(title, WIDTH)}\n\n{render_table(headers, rows)}"


def split_table(splits: dict[str, Any]) -> str:
    """Files and bytes of each split."""
    headers = ["split", ">shards", ">on disk", ">of it images", ">least", ">median", ">mean", ">most"]
    rows = [
        [
            name,
            entry["shards"],
            human_bytes(entry["bytes"]),
            f"{entry['image_share']:.1%}",
            *(_whole(entry["image_bytes"][key]) for key in ("min", "median", "mean", "max")),
        ]
        for name, entry in splits.items()
    ]
    return _titled("files, and bytes per image", headers, rows)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def copies_table(splits: dict[str, Any]) -> str:
    """Rows of each copy number; numbers with equal rows share a line."""
    most = max(len(entry["copies"]) for entry in splits.values())
    counts = [
        tuple(entry["copies"][copy] if copy < len(entry["copies"]) else 0 for entry in splits.values())
        for copy in range(most)
    ]
    rows: list[list[object]] = [["0 (originals)", *counts[0]]]
    for values, group in groupby(range(1, most), key=lambda copy: counts[copy]):
        numbers = list(group)
        name = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}, each"
        rows.append([name, *values])
    return _titled("rows per copy number", ["copy", *(f">{name}" for name in splits)], rows)


def ops_table(split: str, entry: dict[str, Any]) -> str:
    """How often and how strongly each op was applied."""
    copies = entry["rows"] - entry["samples"]
    twice = any(op["times"] != op["rows"] for op in entry["ops"].values())
    headers = ["op", ">rows", *([">times"] if twice else []), ">of copies", ">mean strength", ">from", ">to"]
    rows = [
        [
            shortened(name),
            op["rows"],
            *([op["times"]] if twice else []),
            f"{op['rows'] / copies:.1%}" if copies else None,
            strength_text(name, op["mean_strength"]),
            signed_text(name, op["least"]),
            signed_text(name, op["most"]),
        ]
        for name, op in entry["ops"].items()
    ]
    numbers = [f"{count:,} with {_ops(number)}" for number, count in enumerate(entry["ops_per_copy"]) if count]
    told = ", ".join(numbers) if len(numbers) > 1 else f"{_ops(len(entry['ops_per_copy']) - 1)} on each"
    title = f"ops of {split}: {copies:,} copies, {told}"
    return _titled(title, headers, rows)


def _ops(number: int) -> str:
    return "1 op" if number == 1 else f"{number or 'no'} ops"


def size_histogram(splits: dict[str, Any]) -> str:
    """Image sizes as bars."""
    histograms = {name: entry["image_histogram"] for name, entry in splits.items()}
    first = next(iter(histograms.values()))
    if first is None:
        sizes = [entry["image_bytes"]["max"] for entry in splits.values() if entry["rows"]]
        return f"every image takes {sizes[0]:,} bytes" if sizes else "there are no images"
    edges = first["edges"]
    counts = [[histogram["counts"][place] for histogram in histograms.values()] for place in range(len(edges) - 1)]
    most = max(sum(values) for values in counts)
    width = len(f"{edges[-1]:,}")
    rows = [
        [f"{edges[place]:>{width},} to {edges[place + 1] - 1:>{width},}", bar(sum(values) / most, BAR_WIDTH), *values]
        for place, values in enumerate(counts)
    ]
    return _titled("sizes of the images", ["bytes", "", *(f">{name}" for name in splits)], rows)
