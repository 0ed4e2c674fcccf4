"""The cards of all methods as text, with what they gave here."""

import json
import textwrap
from pathlib import Path
from typing import Any

from training.distillation.methods.base import Card
from training.distillation.methods.catalogue import METHODS
from training.distillation.methods.ways import WAYS

MEASURED = Path(__file__).parent / "measured.json"
"""Written by the benchmark that measures all methods: card → sentences."""
WIDTH = 110


def methods_text() -> str:
    """All cards, one below the other."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    cards = [*(kind.card for kind in METHODS.values()), *WAYS]
    return "\n".join(_card_text(card, measured, defaults=card not in WAYS) for card in cards)


def _card_text(card: Card, measured: dict[str, Any], *, defaults: bool) -> str:
    own = f"alpha {card.alpha}" + (f", temperature {card.temperature:g}" if card.temperature != 1 else "")
    rows = [
        ("what", card.what),
        ("loss", card.formula),
        ("source", card.source),
        ("when", card.when),
        *([("defaults", own)] if defaults else []),
        ("measured", measured.get(card.name, "not yet")),
    ]
    lines = [f"{card.name} · {card.title}"]
    for name, text in rows:
        lines.append(textwrap.fill(text, WIDTH, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12))
    return "\n".join(lines) + "\n"
