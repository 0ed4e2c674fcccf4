"""What is drawn and how often: the categories, under TACO's ids and names, and the deck they are dealt from."""

from collections.abc import Callable
from typing import NamedTuple

from augment_cache.drawing import bags, metal, other, paper, paperpack, plastic, styrofoam
from augment_cache.drawing.canvas import Canvas
from augment_cache.drawing.noise import Rng, generator


class Kind(NamedTuple):
    """One TACO category that can be drawn."""

    id: int
    """TACO's category id."""
    name: str
    """TACO's category name."""
    group: str
    """TACO's supercategory."""
    litter: str | None
    """One of the six classes; None for litter outside them."""
    cards: int
    """How many there are among the objects of `DECK_PHOTOS` photos."""
    smallest: float
    """Longer side of the smallest one, in px."""
    largest: float
    """Longer side of the largest one, in px."""
    draw: Callable[[Rng, Canvas], None]
    """Paints one, upright, filling the canvas."""


KINDS = (
    Kind(4, "Other plastic bottle", "Bottle", "Plastic", 9, 48, 200, plastic.other_bottle),
    Kind(5, "Clear plastic bottle", "Bottle", "Plastic", 15, 48, 200, plastic.clear_bottle),
    Kind(8, "Metal bottle cap", "Bottle cap", "Metal", 4, 28, 72, metal.bottle_cap),
    Kind(10, "Food Can", "Can", "Metal", 5, 40, 150, metal.food_can),
    Kind(12, "Drink can", "Can", "Metal", 9, 40, 170, metal.drink_can),
    Kind(16, "Drink carton", "Carton", "Paperpack", 4, 44, 200, paperpack.drink_carton),
    Kind(20, "Paper cup", "Cup", "Paperpack", 4, 40, 160, paperpack.paper_cup),
    Kind(22, "Foam cup", "Cup", "Styrofoam", 2, 40, 150, styrofoam.foam_cup),
    Kind(27, "Plastic lid", "Lid", "Plastic", 9, 32, 120, plastic.lid),
    Kind(33, "Normal paper", "Paper", "Paper", 10, 40, 200, paper.normal_paper),
    Kind(34, "Paper bag", "Paper bag", "Paper", 6, 48, 200, paper.paper_bag),
    Kind(36, "Plastic film", "Plastic bag & wrapper", "Plasticbag", 10, 44, 200, bags.plastic_film),
    Kind(40, "Single-use carrier bag", "Plastic bag & wrapper", "Plasticbag", 13, 52, 200, bags.carrier_bag),
    Kind(42, "Crisp packet", "Plastic bag & wrapper", "Plasticbag", 11, 44, 190, bags.crisp_packet),
    Kind(46, "Foam food container", "Plastic container", "Styrofoam", 2, 52, 200, styrofoam.food_container),
    Kind(55, "Plastic straw", "Straw", "Plastic", 10, 60, 180, plastic.straw),
    Kind(57, "Styrofoam piece", "Styrofoam piece", "Styrofoam", 4, 32, 160, styrofoam.foam_piece),
    Kind(58, "Unlabeled litter", "Unlabeled litter", None, 1, 30, 90, other.unlabeled),
    Kind(59, "Cigarette", "Cigarette", None, 2, 28, 60, other.cigarette),
)
"""Shares follow TACO's: Plastic 34 %, Plasticbag 27 %, Metal 14 %, Paper 13 %, Styrofoam 6 %, Paperpack 6 %."""

OBJECTS_PER_PHOTO = (1,) * 9 + (2,) * 16 + (3,) * 14 + (4,) * 8 + (5,) * 3
"""How many objects each photo of a deck gets, before shuffling."""

DECK_PHOTOS = len(OBJECTS_PER_PHOTO)
_DECK_STREAMS = 1 << 40  # above any photo index, so that no deck shares its random numbers with a photo


def deal(seed: int, index: int) -> tuple[Kind, ...]:
    """The objects of one photo.

    The photos of a run of `DECK_PHOTOS` share a shuffled deck in which every category has its exact share; drawing
    each object's category by itself would leave the rare classes to luck.

    Args:
        seed: Of the data set.
        index: Of the photo, from 0.
    """
    block, place = divmod(index, DECK_PHOTOS)
    rng = generator(seed, _DECK_STREAMS + block)
    counts = rng.permutation(OBJECTS_PER_PHOTO)
    deck = rng.permutation([number for number, kind in enumerate(KINDS) for _ in range(kind.cards)])
    first = int(counts[:place].sum())
    return tuple(KINDS[number] for number in deck[first : first + int(counts[place])])
