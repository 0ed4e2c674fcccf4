"""The competitions' scores: every published row, the one that fits nothing, the smooth variant, preset files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from training.measure.score import load_preset, preset_names, score

P4, SEED, TEAMS, LEVEL3 = (load_preset(name) for name in ("p4-2021", "p4-2021-seed", "p4-2021-teams", "level3-2021"))

P4_ROWS = [
    ("day 02", 0.8205, 266_505, 0.0385, 0.00006, -0.00003),
    ("day 05", 0.5320, 1_688_940, 0.4858, 0.00006, 0.00012),
    ("day 06", 0.5619, 1_688_940, 0.4501, 0.00003, 0.00008),
    ("day 08", 0.5877, 1_688_940, 0.4192, 0.00009, 0.00014),
    ("day 09", 0.6001, 1_688_940, 0.4044, 0.00007, 0.00012),
    ("day 10", 0.6220, 1_688_940, 0.3782, 0.00010, 0.00014),
    ("day 11", 0.6318, 1_688_940, 0.3665, 0.00009, 0.00013),
    ("day 12", 0.6386, 1_688_940, 0.3584, 0.00006, 0.00010),
    ("day 13", 0.6211, 1_299_789, 0.3513, 0.00003, 0.00005),
    ("day 14", 0.6358, 1_515_459, 0.3493, 0.00001, 0.00003),
    ("day 15", 0.6318, 1_439_700, 0.3486, 0.00003, 0.00005),
    ("day 16", 0.6225, 1_272_450, 0.3476, 0.00009, 0.00010),
    ("day 17 and 21", 0.6207, 1_083_210, 0.3362, 0.00001, 0.00000),
    ("day 18", 0.6158, 1_007_460, 0.3366, 0.00001, 0.00000),
    ("after", 0.6149, 1_083_210, 0.3431, 0.00004, 0.00003),
]
"""Name, macro F1, MACs, published score; computed minus published with the team's constants and with the best fit."""

OTHER_TEAMS = [
    (0.5176, 1_862_490, 0.5156, 0.00005),
    (0.4892, 1_862_490, 1.1343, 0.00004),
    (0.5106, 41_809_542, 3.4050, 0.0005),
    (0.4526, 10_397_222, 1.7499, 0.00007),
    (0.3655, 2_553_606, 1.1842, 0.0),
]
LEVEL3_ROWS = [
    ("target", 0.7000, 60.0, 1.1950, 0.0001, 4),
    ("cv-18 #1", 0.688, 84.985, 1.546, -0.0017, 3),
    ("cv-18 #2", 0.653, 92.926, 1.795, 0.0007, 3),
    ("cv-18 #3", 0.687, 63.078, 1.295, 0.0004, 3),
    ("cv-18 #4", 0.7005, 58.3412, 1.1732, 0.0002, 4),
    ("cv-18 #5 public", 0.7012, 58.1225, 1.1676, -0.0002, 4),
    ("cv-18 #5 private", 0.6986, 58.1225, 1.1804, 0.0, 4),
    ("nlp-16 public", 0.6897, 59.3327, 1.2388, -0.0001, 4),
    ("nlp-16 private", 0.6936, 59.3327, 1.2195, -0.0001, 4),
    ("cv-09", 0.7194, 63.6555, 1.1415, 0.0002, 4),
    ("nlp-07", 0.6769, 57.069, 1.2747, 0.0, 4),
    ("nlp-10", 0.7013, 55.7934, 1.1399, 0.0, 4),
]
"""Name, macro F1, seconds, score, computed minus score, its digits. Of the last two none was published."""

SHARES = st.floats(0, 1)


def own_preset(folder, **changes):
    values = {
        "kind": "f1_macs", "source": "a test", "macs_ref": 1000, "f1_ref": 0.8, "cliff": 0.5, "cliff_term": 1.0,
        "slope_above": 0.5,
    } | changes  # fmt: skip
    path = folder / "own.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items() if value is not None))
    return path


class TestPublishedRows:
    @pytest.mark.parametrize(("name", "f1", "macs", "published", "seed", "best"), P4_ROWS)
    def test_p4(self, name, f1, macs, published, seed, best):
        for preset, residual in ((SEED, seed), (P4, best)):
            computed = score(preset, f1, macs=macs)
            assert computed.total == pytest.approx(published, abs=1.5e-4)
            assert computed.total - published == pytest.approx(residual, abs=5.1e-6)
            assert computed.total == computed.f1_term + computed.cost_term
        assert score(TEAMS, f1, macs=macs).total - published == pytest.approx(-0.002, abs=1e-3)

    @pytest.mark.parametrize(("preset", "residual"), [(SEED, -0.0205), (P4, -0.0205)])
    def test_the_row_before_compression_is_inconsistent_with_itself(self, preset, residual):
        """Its published score belongs to an F1 of 0.6034."""
        assert score(preset, 0.6206, macs=1_688_940).total - 0.4005 == pytest.approx(residual, abs=1e-4)
        assert score(preset, 0.6034, macs=1_688_940).total == pytest.approx(0.4005, abs=1.5e-4)

    @pytest.mark.parametrize(("f1", "macs", "published", "residual"), OTHER_TEAMS)
    def test_other_teams(self, f1, macs, published, residual):
        assert score(P4, f1, macs=macs).total - published == pytest.approx(residual, abs=5.1e-5)

    def test_public_and_private_half_on_two_sides_of_the_cliff(self):
        public, private = (score(P4, f1, macs=1_862_490) for f1 in (0.5176, 0.4892))
        assert (private.f1_term, private.cost_term) == (1.0, public.cost_term)
        assert private.total - public.total == pytest.approx(0.6187, abs=1e-4)

    @pytest.mark.parametrize(("name", "f1", "seconds", "published", "residual", "digits"), LEVEL3_ROWS)
    def test_level3(self, name, f1, seconds, published, residual, digits):
        computed = score(LEVEL3, f1, seconds=seconds).total
        assert computed == pytest.approx(published, abs=3e-4 if digits == 4 else 3e-3)
        assert computed - published == pytest.approx(residual, abs=7e-5)


class TestFormula:
    def test_edges(self):
        assert score(P4, 0.5, macs=1).f1_term == pytest.approx(1 - 0.5 / 0.8366)
        assert score(P4, np.nextafter(0.5, 0), macs=1).f1_term == 1.0
        assert score(P4, 0.8366, macs=1).f1_term == 0.0
        assert score(P4, 1.0, macs=1).f1_term == pytest.approx(0.5 * (1 - 1 / 0.8366))
        assert score(P4, 1.0, macs=1).total < 0
        assert score(P4, 1.0, macs=13_863_553).cost_term == 1.0
        assert score(LEVEL3, 0.7, seconds=43.157).total == 1.0

    @given(st.lists(SHARES, min_size=1, max_size=20), st.booleans())
    def test_arrays_give_what_their_entries_give(self, shares, smooth):
        for preset in (P4, LEVEL3):
            whole = score(preset, np.array(shares), macs=2e6, seconds=60, smooth=smooth)
            each = [score(preset, f1, macs=2e6, seconds=60, smooth=smooth) for f1 in shares]
            assert whole.total.tolist() == [entry.total for entry in each]
            assert whole.f1_term.tolist() == [entry.f1_term for entry in each]
            assert {whole.cost_term} == {entry.cost_term for entry in each}
        assert score(P4, np.zeros(0), macs=1).total.shape == (0,)

    @given(SHARES, SHARES)
    @pytest.mark.parametrize("preset", [P4, SEED, TEAMS, LEVEL3], ids=lambda preset: preset.name)
    def test_smooth_falls_everywhere_without_a_jump(self, preset, one, two):
        low, high = sorted((one, two))
        above, below = (score(preset, f1, macs=1, seconds=1, smooth=True).f1_term for f1 in (low, high))
        assert above >= below
        if high - low > 1e-6:
            assert above > below
        steepest = 5.0 if preset is LEVEL3 else 1 / preset.constants.f1_ref
        assert above - below <= steepest * (high - low) + 1e-12

    @given(SHARES)
    @pytest.mark.parametrize("preset", [P4, SEED, TEAMS, LEVEL3], ids=lambda preset: preset.name)
    def test_smooth_is_official_from_the_cliff_on_and_never_worse(self, preset, f1):
        official, smooth = (score(preset, f1, macs=1, seconds=1, smooth=smooth) for smooth in (False, True))
        if f1 >= preset.cliff:
            assert smooth == official
        else:
            assert smooth.total <= official.total

    def test_smooth_meets_the_flat_step_at_zero(self):
        assert score(P4, 0.0, macs=1, smooth=True) == score(P4, 0.0, macs=1)
        assert score(P4, 0.25, macs=1, smooth=True).f1_term == pytest.approx(1 - 0.25 / 0.8366)

    @pytest.mark.parametrize("f1", [-0.1, 1.1, 61.5, float("nan"), np.array([0.5, 61.5])])
    def test_f1_is_a_share(self, f1):
        with pytest.raises(UsageError, match="macro F1 must be from 0 to 1"):
            score(P4, f1, macs=1)

    @pytest.mark.parametrize("cost", [0, -1, float("nan"), float("inf")])
    def test_cost_is_positive(self, cost):
        with pytest.raises(UsageError, match="MACs must be more than 0"):
            score(P4, 0.6, macs=cost)
        with pytest.raises(UsageError, match="seconds must be more than 0"):
            score(LEVEL3, 0.6, seconds=cost)

    def test_what_is_needed_must_be_given(self):
        with pytest.raises(UsageError, match="p4-2021 needs MACs"):
            score(P4, 0.6, seconds=60)
        with pytest.raises(UsageError, match="level3-2021 needs seconds"):
            score(LEVEL3, 0.6, macs=1)


class TestPresets:
    def test_shipped(self):
        assert preset_names() == ("level3-2021", "p4-2021", "p4-2021-seed", "p4-2021-teams")
        for name in preset_names():
            preset = load_preset(name)
            assert preset.name == name
            assert preset.kind == ("f1_time" if name == "level3-2021" else "f1_macs")
            assert preset.cliff == (0 if name == "level3-2021" else 0.5)
            assert preset.source
            assert "\n" not in preset.source

    def test_own_file(self, tmp_path):
        preset = load_preset(own_preset(tmp_path))
        assert preset.name == str(tmp_path / "own.yaml")
        assert score(preset, 0.6, macs=500).total == pytest.approx(0.75)

    def test_no_cliff(self, tmp_path):
        preset = load_preset(own_preset(tmp_path, cliff=0))
        assert score(preset, 0.1, macs=1).f1_term == pytest.approx(0.875)

    def test_unknown_name(self):
        with pytest.raises(UsageError, match=r"did you mean p4-2021-seed\?.*there are level3-2021, p4-2021"):
            load_preset("p4-2021-sed")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kind": "f1_watts"}, "kind must be f1_macs or f1_time"),
            ({"kind": "[]"}, "kind must be f1_macs or f1_time"),
            ({"kind": None}, "kind must be f1_macs or f1_time"),
            ({"clif": 0.4}, "unknown key 'clif'; did you mean cliff?"),
            ({"seconds_ref": 3}, "unknown key 'seconds_ref'"),
            ({"macs_ref": None}, "macs_ref is missing"),
            ({"source": None}, "source is missing"),
            ({"source": 7}, "source must be one line"),
            ({"macs_ref": "'1000'"}, "macs_ref must be a number, got '1000'"),
            ({"macs_ref": "1e7"}, r"macs_ref must be a number, got '1e7'.*1\.0e\+7"),
            ({"macs_ref": "true"}, "macs_ref must be a number, got True"),
            ({"macs_ref": 0}, "macs_ref must be a finite number, more than 0, got 0"),
            ({"macs_ref": -5}, "macs_ref must be a finite number, more than 0, got -5"),
            ({"macs_ref": ".inf"}, "macs_ref must be a finite number"),
            ({"macs_ref": ".nan"}, "macs_ref must be a finite number"),
            ({"macs_ref": "9" * 400}, "macs_ref must be a finite number"),
            ({"f1_ref": 83.66}, "f1_ref must be a finite number, more than 0, at most 1"),
            ({"cliff": -0.5}, "cliff must be a finite number, 0 or more, at most 1"),
            ({"slope_above": -0.5}, "slope_above must be a finite number, 0 or more, got"),
        ],
    )
    def test_wrong_files_name_file_key_and_cure(self, tmp_path, changes, message):
        path = own_preset(tmp_path, **changes)
        with pytest.raises(UsageError, match=message) as caught:
            load_preset(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("text", ["", "- a", "a: [", "kind: f1_macs\nkind: f1_macs", "!!python/object:os.system"])
    def test_no_preset_at_all(self, tmp_path, text):
        path = tmp_path / "own.yaml"
        path.write_text(text)
        with pytest.raises(UsageError, match=r"own\.yaml"):
            load_preset(path)
