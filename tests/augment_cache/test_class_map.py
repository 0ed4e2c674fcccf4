"""Class maps: the shipped ones against TACO's categories, own ones against every mistake, and moves."""

import pytest

from augment_cache.annotations.class_map import (
    class_of_category,
    load_class_map,
    move_categories,
    shipped_maps,
)
from pipelines.errors import UsageError

# All 60 categories of TACO in the order of their ids, 0 to 59.
NAMES = """
    Aluminium foil; Battery; Aluminium blister pack; Carded blister pack; Other plastic bottle; Clear plastic bottle;
    Glass bottle; Plastic bottle cap; Metal bottle cap; Broken glass; Food Can; Aerosol; Drink can; Toilet tube;
    Other carton; Egg carton; Drink carton; Corrugated carton; Meal carton; Pizza box; Paper cup;
    Disposable plastic cup; Foam cup; Glass cup; Other plastic cup; Food waste; Glass jar; Plastic lid; Metal lid;
    Other plastic; Magazine paper; Tissues; Wrapping paper; Normal paper; Paper bag; Plastified paper bag;
    Plastic film; Six pack rings; Garbage bag; Other plastic wrapper; Single-use carrier bag; Polypropylene bag;
    Crisp packet; Spread tub; Tupperware; Disposable food container; Foam food container; Other plastic container;
    Plastic glooves; Plastic utensils; Pop tab; Rope & strings; Scrap metal; Shoe; Squeezable tube; Plastic straw;
    Paper straw; Styrofoam piece; Unlabeled litter; Cigarette
"""
TACO = dict(enumerate(" ".join(NAMES.split()).split("; ")))
SIX = {
    "Plastic": {3, 4, 5, 7, 21, 24, 27, 29, 37, 43, 44, 45, 47, 48, 49, 54, 55},
    "Plasticbag": {36, 38, 39, 40, 41, 42},
    "Metal": {0, 2, 8, 10, 11, 12, 28, 50, 52},
    "Paper": {13, 14, 15, 17, 18, 19, 30, 31, 32, 33, 34, 35, 56},
    "Styrofoam": {22, 46, 57},
    "Paperpack": {16, 20},
}
NINE = {**SIX, "Glass": {6, 9, 23, 26}, "Clothing": {53}, "Battery": {1}}


def ids_by_class(class_map, categories=TACO):
    result = {}
    for number, class_name in class_of_category(class_map, categories).items():
        result.setdefault(class_name, set()).add(number)
    return result


def own_map(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return load_class_map(str(path))


@pytest.mark.parametrize(("name", "expected"), [("taco6", SIX), ("taco9", NINE)])
def test_shipped_map_covers_exactly_these_taco_ids(name, expected):
    class_map = load_class_map(name)
    assert ids_by_class(class_map) == expected
    listed = [category for categories in class_map.classes.values() for category in categories]
    assert set(listed) <= set(TACO.values())  # a misspelt name would silently drop a category
    assert list(class_map.classes) == sorted(expected)
    assert str(len(expected)) in class_map.description


def test_taco9_leaves_only_four_categories_out():
    assert set(TACO) - set(class_of_category(load_class_map("taco9"), TACO)) == {25, 51, 58, 59}
    assert shipped_maps() == ["taco6", "taco9"]


def test_shipped_map_takes_a_part_of_taco():
    assert class_of_category(load_class_map("taco6"), {3: "Drink can", 8: "Cigarette"}) == {3: "Metal"}


def test_shipped_map_on_other_data_is_an_error():
    with pytest.raises(UsageError, match="none of the categories of --map taco6"):
        class_of_category(load_class_map("taco6"), {1: "person", 2: "dog"})


def test_own_map_with_names_and_ids(tmp_path):
    class_map = own_map(tmp_path, "description: mine\nclasses:\n  Cans: [Drink can, 10]\n  Rest: [Cigarette]\n")
    assert ids_by_class(class_map) == {"Cans": {12, 10}, "Rest": {59}}
    assert class_map.description == "mine"
    assert not class_map.shipped


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classes:\n  A: [Drink cann]", "no category 'Drink cann' .under A.; the closest are .*'Drink can'"),
        ("classes:\n  A: [77]", "no category '77'"),
        ("classes:\n  A: [Aerosol]\n  B: [Drink can, Aerosol]", "Aerosol is listed twice, under A and B"),
        ("classes:\n  A: [Aerosol, Aerosol]", "listed twice"),
        ("classes:\n  A: [Aerosol]\n  B: [11]", r"category 11 \(Aerosol\) is listed twice, by name and by id"),
        ("classes:\n  A: []", "class A has no categories"),
        ("classes:\n  A:", "class A has no categories"),
        ("classes:\n  A: Aerosol", "class A has no categories"),
        ("classes:\n  A: [Aerosol]\n  A: [Drink can]", "given twice"),
        ("classes:\n  A: [Aerosol]\n  a: [Drink can]", "one folder"),
        ("classes:\n  No: [Aerosol]", "class name False"),
        ("classes:\n  ../x: [Aerosol]", "cannot be the name"),
        ("classes:\n  drop: [Aerosol]", "cannot be the name"),
        ("classes:\n  A: [1.5]", "neither a category's name nor its id"),
        ("classes:\n  A: [yes]", "neither a category's name nor its id"),
        ("classes: {}", "has no 'classes:'"),
        ("- A\n- B", "has no 'classes:'"),
        ("", "has no 'classes:'"),
        ("classes:\n  A: [Aerosol]\nclases: 3", "unknown key 'clases'"),
        ("classes: [", "is not YAML"),
        ("classes: !!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_mistakes_in_an_own_map(tmp_path, text, words):
    with pytest.raises(UsageError, match=words) as caught:
        class_of_category(own_map(tmp_path, text), TACO)
    assert "own.yaml" in str(caught.value)


def test_a_map_that_is_not_there_names_those_that_are():
    with pytest.raises(UsageError, match="--map taco7: no such file; give taco6 or taco9"):
        load_class_map("taco7")


def test_a_name_with_two_ids_must_be_listed_by_id(tmp_path):
    categories = {1: "can", 2: "can"}
    with pytest.raises(UsageError, match=r"'can' belongs to the ids \[1, 2\]"):
        class_of_category(own_map(tmp_path, "classes:\n  A: [can]"), categories)
    assert class_of_category(own_map(tmp_path, "classes:\n  A: [2]"), categories) == {2: "A"}


@pytest.mark.parametrize("move", ["Paper cup=Paper", "20=Paper", " Paper cup = Paper "])
def test_paper_cup_moves_to_paper(move):
    moved = ids_by_class(move_categories(load_class_map("taco6"), [move], TACO))
    assert moved == {**SIX, "Paper": SIX["Paper"] | {20}, "Paperpack": {16}}


def test_paper_cup_drops_and_others_come_in():
    moved = move_categories(load_class_map("taco6"), ["Paper cup=drop", "Glass jar=Metal"], TACO)
    assert ids_by_class(moved) == {**SIX, "Paperpack": {16}, "Metal": SIX["Metal"] | {26}}


def test_moving_a_category_home_changes_nothing():
    assert ids_by_class(move_categories(load_class_map("taco6"), ["Paper cup=Paperpack"], TACO)) == SIX


def test_a_move_finds_a_category_that_the_map_lists_by_id(tmp_path):
    class_map = own_map(tmp_path, "classes:\n  A: [20, 16]\n  B: [33]")
    assert ids_by_class(move_categories(class_map, ["Paper cup=B"], TACO)) == {"A": {16}, "B": {20, 33}}


def test_a_shipped_category_that_the_file_lacks_can_be_moved():
    moved = move_categories(load_class_map("taco6"), ["Paper cup=Paper"], {16: "Drink carton"})
    assert "Paper cup" in moved.classes["Paper"]


@pytest.mark.parametrize(
    ("moves", "words"),
    [
        (["Paper cup"], "is not CATEGORY=CLASS"),
        (["=Paper"], "is not CATEGORY=CLASS"),
        (["Paper cup="], "is not CATEGORY=CLASS"),
        (["Paper cup=Papier"], "no class 'Papier'; the closest are 'Paper'"),
        (["Paper cups=Paper"], "no category 'Paper cups'; the closest are 'Paper cup'"),
        (["99=Paper"], "no category '99'"),
        (["Paper cup=Paper", "20=drop"], "names the category '20' twice"),
        (["Paper cup=drop", "Drink carton=drop"], "leaves class Paperpack of taco6 without categories"),
    ],
)
def test_mistakes_in_a_move(moves, words):
    with pytest.raises(UsageError, match=words):
        move_categories(load_class_map("taco6"), moves, TACO)
