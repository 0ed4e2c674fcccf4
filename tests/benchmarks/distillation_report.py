"""What `tests.benchmarks.distillation` says of its runs: paired bootstrap, tables, sentences, and the picture."""

import io
from statistics import mean, stdev

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.benchmarks.distillation_running import BASE, DATA, ROWS, STUDENTS
from training.measure.bootstrap import Cells

RESAMPLES, SURE = 10_000, 0.05


def scores_of(labels, predictions, counts):
    """Macro F1 of resampled tests: labels [n], predictions [seeds, n], counts [resamples, n] → [resamples, seeds]."""
    classes = int(max(labels.max(), predictions.max())) + 1
    return np.stack([Cells(labels, said, classes).macro_f1(counts) for said in predictions], axis=1)


def paired(labels, first, second):
    """(difference of the means over seeds, low, high, two-sided p): samples and seeds are both drawn again.

    Args:
        labels: int [n].
        first: int [seeds, n].
        second: Likewise, the same seeds.
    """
    random = np.random.Generator(np.random.Philox(0))
    n, seeds = len(labels), len(first)
    counts = random.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
    drawn = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    gains = scores_of(labels, second, counts) - scores_of(labels, first, counts)
    differences = (gains * drawn).sum(1)
    whole = np.ones((1, n))
    estimate = (scores_of(labels, second, whole) - scores_of(labels, first, whole)).mean()
    sides = min((differences <= 0).mean(), (differences >= 0).mean())
    low, high = np.quantile(differences, [0.025, 0.975])
    return estimate, low, high, min(1.0, max(2 * sides, 1 / RESAMPLES))


def summary(results):
    """(data, student) → row → what the table says of it."""
    found = {}
    for data in DATA:
        for student in STUDENTS:
            runs = [run for run in results["runs"] if (run["data"], run["student"]) == (data, student)]
            table = {name: _entry(results, data, runs, name) for name in ROWS}
            found[data, student] = {name: entry for name, entry in table.items() if entry}
    return found


def _entry(results, data, runs, name):
    mine = {run["seed"]: run for run in runs if run["row"] == name}
    base = {run["seed"]: run for run in runs if run["row"] == BASE}
    if not mine:
        return None
    scores = [run["macro_f1"] for run in mine.values()]
    entry = {"scores": scores, "mean": mean(scores), "std": stdev(scores) if len(scores) > 1 else None}
    entry |= {key: next(iter(mine.values()))[key] for key in ("macs", "parameters", "input_size", "steps", "samples")}
    seeds = sorted(set(mine) & set(base))
    if name != BASE and seeds:
        labels = numbers(results["tests"][data]["labels"])
        ours, plain = (np.stack([numbers(of[seed]["predicted"]) for seed in seeds]) for of in (mine, base))
        entry["gain"] = paired(labels, plain, ours)
    return entry


def numbers(letters):
    """`letters`, back: int [n]."""
    return np.frombuffer(letters.encode(), np.uint8).astype(int) - ord("a")


def render(results):
    """Markdown: a table per student."""
    found, lines = summary(results), []
    for student in STUDENTS:
        facts = next((found[data, student][BASE] for data in DATA if BASE in found[data, student]), None)
        if facts is None:
            continue
        lines += [f"**{student}** at {facts['input_size']} px, {facts['macs']:,} MACs", ""]
        lines += ["| method | " + " | ".join(f"{data}: macro F1 | gain (95 %)" for data in DATA) + " |"]
        lines += ["|---|" + "---|---|" * len(DATA)]
        for name in ROWS:
            cells = [_cells(found[data, student].get(name)) for data in DATA]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cells(entry):
    if entry is None:
        return " | "
    spread = f" ± {entry['std']:.3f}" if entry["std"] is not None else ""
    score = f"{entry['mean']:.3f}{spread} ({len(entry['scores'])})"
    if "gain" not in entry:
        return f"{score} | "
    gain, low, high, p = entry["gain"]
    strong = "**" if p < SURE and gain > 0 else ""
    return f"{score} | {strong}{gain:+.3f}{strong} ({low:+.3f} to {high:+.3f}), {chance(p)}"


def chance(p):
    """A p value in words."""
    return f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def sentences(results):
    """Card → what was measured, in words."""
    found, said = summary(results), {}
    for name, row in ROWS.items():
        parts = []
        for (data, student), table in found.items():
            entry = table.get(name)
            if row.card and entry and "gain" in entry:
                gain, *_, p = entry["gain"]
                parts.append(
                    f"{student} on {data} {entry['mean']:.3f}, {gain:+.3f} to plain training "
                    f"({len(entry['scores'])} seeds, {chance(p)})"
                )
        if parts:
            said[row.card] = "macro F1 of " + "; ".join(parts)
    return said


def draw(results):
    """What each method adds to plain training, with its 95 % interval: PNG, a panel per student and data set.

    None while no method has been measured beside plain training.
    """
    found = {place: table for place, table in summary(results).items() if any("gain" in of for of in table.values())}
    if not found:
        return None
    names = [name for name in ROWS if any("gain" in table.get(name, {}) for table in found.values())]
    columns = min(len(found), len(DATA))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(2 + 5 * columns, 1 + rows * (0.7 + 0.25 * len(names))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, ((data, student), table) in zip(panels, found.items(), strict=False):
        _panel(axes, table, names)
        axes.set_title(f"{student}, {data}: {table[BASE]['mean']:.3f} from labels", fontsize=10)
    for axes in panels[len(found) :]:
        axes.remove()
    figure.supxlabel("macro F1 added to it, test split; line: 95 %; filled: p < 0.05", fontsize=10)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _panel(axes, table, names):
    axes.axvline(0, color="0.6", linewidth=1)
    for place, name in enumerate(names):
        if "gain" not in table.get(name, {}):
            continue
        gain, low, high, p = table[name]["gain"]
        color = "C0" if gain > 0 else "C3"
        axes.plot([low, high], [place, place], color=color, linewidth=1.5)
        axes.plot(gain, place, "o", color=color, markerfacecolor=color if p < SURE else "w")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
