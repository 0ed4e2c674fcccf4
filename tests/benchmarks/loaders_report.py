"""What `tests.benchmarks.loaders` measured, as ratios, verdicts, Markdown tables and a bar chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

from pipelines.console.files import replacing
from tests.benchmarks.rivals.facts import middle_and_ends, spread

Run = dict[str, Any]
Group = tuple[str, int]
"""(what is read, size in px)."""

READS = ("raw", "jpeg", "op")
READ_TITLES = {"raw": "raw pixels", "jpeg": "JPEG", "op": "JPEG + one random op"}

GOALS: dict[Group, dict[str, float]] = {
    ("raw", 64): {"ffcv": 1.5, "others": 10.0},
    ("jpeg", 64): {"ffcv": 1.2, "others": 2.0},
    ("jpeg", 224): {"ffcv": 1.2, "others": 2.0},
    ("op", 64): {"others": 5.0},
    ("op", 224): {"others": 5.0},
}
"""What is read, size → rival, or all others → how many times as fast Tacopress means to be at least."""

OURS, THEIRS, ABSENT = "#2a7f62", "#8a8f98", "#b3402f"


def is_ours(name: str) -> bool:
    """Whether a contestant is Tacopress."""
    return name.split("-")[0] == "ours"


def speeds(runs: Sequence[Run], group: Group, name: str) -> dict[int, float]:
    """Round → images per second."""
    return {run["round"]: run["images"] / run["seconds"] for run in _of(runs, group, name)}


def cpu_costs(runs: Sequence[Run], group: Group, name: str) -> dict[int, float]:
    """Round → CPU seconds per 1,000 images."""
    return {run["round"]: 1000 * run["cpu"] / run["images"] for run in _of(runs, group, name)}


def _of(runs: Sequence[Run], group: Group, name: str) -> list[Run]:
    return [run for run in runs if (run["read"], run["size"]) == group and run["name"] == name]


def groups_of(entry: Mapping[str, Any]) -> list[Group]:
    """The groups that were measured, raw first, small first."""
    found = {(part["read"], part["size"]) for part in (*entry["runs"], *entry["absent"])}
    return sorted(found, key=lambda group: (READS.index(group[0]), group[1]))


def ranked(runs: Sequence[Run], group: Group) -> list[str]:
    """Who was measured in a group, the fastest by the median first."""
    names = dict.fromkeys(run["name"] for run in runs if (run["read"], run["size"]) == group)
    return sorted(names, key=lambda name: -median(speeds(runs, group, name).values()))


def quoted(runs: Sequence[Run], group: Group) -> str | None:
    """The fastest of ours; None where none ran."""
    return next((name for name in ranked(runs, group) if is_ours(name)), None)


def ratios(runs: Sequence[Run], group: Group, over: str, under: str) -> list[float]:
    """Images per second of one contestant over another's, in each round that both took part in."""
    top, bottom = speeds(runs, group, over), speeds(runs, group, under)
    return [top[number] / bottom[number] for number in sorted(set(top) & set(bottom))]


def goal_of(group: Group, name: str) -> float | None:
    """How many times as fast as this one Tacopress means to be."""
    goals = GOALS.get(group, {})
    return None if is_ours(name) else goals.get(name, goals.get("others"))


def render(entry: Mapping[str, Any]) -> str:
    """The Markdown tables, one per group."""
    machine, pictures = entry["machine"], entry["set"]
    loads = [run["load"] for run in entry["runs"]] or [0.0]
    limited = (
        ""
        if pictures["images"] == pictures["of"]
        else f" **Only {pictures['images']:,} of {pictures['of']:,}: a try, no result.**"
    )
    head = (
        f"{pictures['name']}, {pictures['images']:,} images, padded to squares; batches of {entry['batch']}, uint8 "
        f"NCHW, random order and flip, {entry['workers']} workers or threads; {machine['cpu']}, {machine['cores']} "
        f"cores, Python {machine['python']}, load {min(loads)} to {max(loads)}; {entry['date']}, commit "
        f"{entry['git']}. Medians of rounds (least-most) of whole epochs, at least {entry['seconds']:g} s each; ratios "
        "are taken within each round. The first epoch includes opening the loader (and compiling it). Memory adds up "
        f"the processes' peaks, with what they share counted in each.{limited}"
    )
    versions = {f"{name} {number}" for part in entry["started"] for name, number in part["versions"].items()}
    tables = [_group_table(entry, group) for group in groups_of(entry)]
    return "\n\n".join([head, *tables, f"Versions: {', '.join(sorted(versions)) or 'none'}."])


def _group_table(entry: Mapping[str, Any], group: Group) -> str:
    runs, best = entry["runs"], quoted(entry["runs"], group)
    lines = [
        f"| {_group_title(entry, group)} | rounds | images/s | CPU s per 1,000 images "
        "| first epoch, images/s | conversion, s | on disk, MB | memory, MB | Tacopress is times as fast | goal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(entry, group, name, best) for name in ranked(runs, group)]
    for absent in _absent(entry, group):
        lines.append(f"| {entry['titles'][absent['name']]} | {absent['reason']}{' |' * 9}")
    return "\n".join(lines)


def _group_title(entry: Mapping[str, Any], group: Group) -> str:
    repeats = entry["repeats"][str(group[1])]
    return f"{READ_TITLES[group[0]]}, {group[1]} px" + (f", every image {repeats} times" if repeats > 1 else "")


def _absent(entry: Mapping[str, Any], group: Group) -> list[dict[str, Any]]:
    return [absent for absent in entry["absent"] if (absent["read"], absent["size"]) == group]


def _row(entry: Mapping[str, Any], group: Group, name: str, best: str | None) -> str:
    runs = entry["runs"]
    begun = next(part for part in entry["started"] if (part["read"], part["size"]) == group and part["name"] == name)
    rates = list(speeds(runs, group, name).values())
    first = begun["first"]
    cells = [f"**{entry['titles'][name]}**" if name == best else entry["titles"][name], str(len(rates))]
    cells.append(spread(rates, 0))
    cells.append(spread(list(cpu_costs(runs, group, name).values()), 3))
    cells.append(f"{first['images'] / first['seconds']:,.0f}")
    cells.append(f"{begun['conversion_seconds']:,.1f}")
    cells.append(f"{begun['bytes'] / 1e6:,.1f}")
    cells.append(f"{max(run['peak_bytes'] for run in _of(runs, group, name)) / 1e6:,.0f}")
    return "| " + " | ".join(cells + _verdict(runs, group, name, best)) + " |"


def _verdict(runs: Sequence[Run], group: Group, name: str, best: str | None) -> list[str]:
    """Cells: times as fast, goal."""
    faster = ratios(runs, group, best, name) if best and not is_ours(name) else []
    if not faster:
        return ["", ""]
    goal = goal_of(group, name)
    if goal is None:
        return [spread(faster, 2), ""]
    return [spread(faster, 2), f"{goal:g}: {'met' if middle_and_ends(faster)[0] >= goal else 'missed'}"]


LOG_FROM = 40.0
"""Fastest over slowest from which a panel's axis is logarithmic: below it every bar can still be seen."""


def bars(entry: Mapping[str, Any], group: Group) -> list[tuple[str, str, tuple[float, float, float] | None]]:
    """(name, title, (median, least, most) of images per second), the fastest first; None for who is absent."""
    runs, titles = entry["runs"], entry["titles"]
    present = [
        (name, titles[name], middle_and_ends(list(speeds(runs, group, name).values()))) for name in ranked(runs, group)
    ]
    return [*present, *((part["name"], titles[part["name"]], None) for part in _absent(entry, group))]


def draw(entry: Mapping[str, Any], path: Path) -> None:
    """The bar chart, PNG: a panel for each group."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = groups_of(entry)
    rows = [bars(entry, group) for group in groups]
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(9, sum(0.32 * len(row) + 0.75 for row in rows)),
        squeeze=False,
        gridspec_kw={"height_ratios": [len(row) + 1 for row in rows]},
        layout="constrained",
    )
    for panel, group, row in zip(axes[:, 0], groups, rows, strict=True):
        _panel(panel, _group_title(entry, group), row, {part["name"]: part["reason"] for part in _absent(entry, group)})
    axes[-1, 0].set_xlabel(f"images per second, {entry['machine']['cores']} cores; line: least to most of the rounds")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)


def _panel(panel: Any, title: str, row: Sequence[tuple[str, str, Any]], reasons: Mapping[str, str]) -> None:
    rates = [rate for _, _, rate in row if rate]
    logarithmic = bool(rates) and max(rate[0] for rate in rates) > LOG_FROM * min(rate[0] for rate in rates)
    for place, (name, _, rate) in enumerate(row):
        if rate is None:
            words = shorten(reasons[name], 80, placeholder=" …")
            panel.text(0.01, place, words, transform=panel.get_yaxis_transform(), va="center", fontsize=8, color=ABSENT)
            continue
        middle, least, most = rate
        panel.barh(place, middle, color=OURS if is_ours(name) else THEIRS)
        panel.plot([least, most], [place, place], color="black", linewidth=1)
        panel.annotate(f"{middle:,.0f}", (most, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    panel.set_yticks(range(len(row)), [title for _, title, _ in row], fontsize=8)
    panel.set_ylim(len(row) - 0.5, -0.5)  # the fastest on top; room for rows that are words
    panel.set_xscale("log" if logarithmic else "linear")
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.margins(x=0.1)
    panel.set_title(f"{title}{' (logarithmic)' if logarithmic else ''}", loc="left")
    panel.spines[["top", "right"]].set_visible(False)
