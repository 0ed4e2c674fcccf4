"""From results.json to Markdown.

python -m tests.gpu.report OUTPUT_DIR/results.json
"""

import json
import sys
from pathlib import Path
from typing import Any

LINES_SHOWN = 8


def render(results: dict[str, Any]) -> str:
    """The whole report."""
    sections = results["sections"]
    parts = [_head(results), _summary(sections, rehearsal=results["rehearsal"])]
    parts += [_section(section, rehearsal=results["rehearsal"]) for section in sections]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(results: dict[str, Any]) -> str:
    card, machine = results["card"], results["machine"]
    name = card.get("name", "unknown")
    lines = ["# On a GPU"]
    if results["rehearsal"]:
        lines.append("**A rehearsal on the CPU, with tiny images and counts: no figure here means anything.**")
    found = {
        "card": name if name == "unknown" else f"{name}, {card.get('memory.total', '')}".rstrip(", "),
        "driver": card.get("driver_version", "unknown"),
        "CUDA of torch": card.get("cuda") or "none",
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Python "
        f"{machine['python']}, Linux {machine['kernel']}",
        "packages": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        **{key: value for section in results["sections"] for key, value in section.get("facts", {}).items()},
        "commit, date": f"{results['commit']}, {results['date']}",
        "command": f"`{results['command']}`",
        "time": f"{sum(section['seconds'] for section in results['sections']) / 60:.1f} of {results['minutes']:g} min",
    }
    return "\n\n".join(lines) + "\n\n" + _table(["", ""], [[key, value] for key, value in found.items()])


def verdict(row: dict[str, Any]) -> str:
    """`met`, `missed`, or nothing where there is no goal; without a figure a goal is missed."""
    if row["goal"] is None:
        return ""
    if row["measured"] is None:
        return "missed"
    good = row["measured"] <= row["goal"] if row["at_most"] else row["measured"] >= row["goal"]
    return "met" if good else "missed"


def _summary(sections: list[dict[str, Any]], *, rehearsal: bool) -> str:
    states = [
        [section["title"], section["state"], f"{section['seconds']:.0f}", _goals(section, rehearsal=rehearsal)]
        for section in sections
    ]
    return _table(["section", "state", "seconds", "goals met"], states)


def _goals(section: dict[str, Any], *, rehearsal: bool) -> str:
    verdicts = [verdict(row) for row in section.get("rows", []) if row["goal"] is not None]
    if rehearsal or not verdicts:
        return ""
    return f"{verdicts.count('met')} of {len(verdicts)}"


def _section(section: dict[str, Any], *, rehearsal: bool) -> str:
    parts = [f"## {section['title']}"]
    if section["state"] != "done":
        parts.append(f"**{section['state']}** after {section['seconds']:.0f} s")
    if section.get("rows"):
        rows = [_figure(row, rehearsal=rehearsal) for row in section["rows"]]
        parts.append(_table(["what", "measured", "(least - most)", "goal", "", "note"], rows))
    for table in section.get("tables", []):
        parts.append(f"{table['title']}\n\n" + _table(table["headers"], table["rows"]))
    if section.get("notes"):
        parts.append("\n".join(f"- {note}" for note in section["notes"]))
    for failure in section.get("failures", []):
        words = "\n".join(failure["tail"][-LINES_SHOWN:])
        parts.append(f"**{failure['name']} failed**: {_plain(failure['message'])}\n\n```\n{words}\n```")
    return "\n\n".join(parts)


def _figure(row: dict[str, Any], *, rehearsal: bool) -> list[Any]:
    unit = f" {row['unit']}" if row["unit"] else ""
    spread = "" if row["spread"] is None else " - ".join(number(value) for value in row["spread"])
    goal = "" if row["goal"] is None else f"{'at most' if row['at_most'] else 'at least'} {number(row['goal'])}{unit}"
    judged = "" if rehearsal else verdict(row)
    return [row["what"], f"{number(row['measured'])}{unit}", spread, goal, judged, row["note"]]


def number(value: Any) -> str:
    """A figure with as many digits as it deserves; a dash for none."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if (value == int(value) and abs(value) < 1e15) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _table(headers: list[str], rows: list[list[Any]]) -> str:
    lines = [headers, ["---"] * len(headers), *([number(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(_plain(str(cell)) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """On one line, and without what Markdown takes for the end of a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Render a file."""
    results = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.stdout.write(render(results))


if __name__ == "__main__":
    main()
