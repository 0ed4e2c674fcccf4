"""Mixup and CutMix: the same for any number of ranks, with targets that say what is to be seen."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from timm.data.mixup import rand_bbox

from pipelines.engines.base import RenderSpec
from pipelines.engines.cpu import CpuEngine
from pipelines.mix import NO_MIX, STEPS, Mix, MixOptions, beta_quantile, cut_box, draw_mix, mixed, partners_of
from tests.pipelines.small_sources import MemorySource, loaders, pixels_by_row, same, steps

SIZE = 13
BOTH = MixOptions(mixup=0.8, cutmix=1.0)
quick = settings(deadline=None, max_examples=100)
seeds, epochs, numbers = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 10**9)
alphas = st.floats(0.01, 100.0)


def drawn(options, count, *, size=64, seed=0, epoch=0, places=4):
    return [
        draw_mix(options, np.arange(places), size, seed=seed, epoch=epoch, number=number) for number in range(count)
    ]


# --- what is drawn


@quick
@given(st.sampled_from([BOTH, MixOptions(mixup=0.2), MixOptions(cutmix=1.0, probability=0.5)]), seeds, epochs, numbers)
def test_it_is_a_pure_function_of_seed_epoch_and_batch(options, seed, epoch, number):
    one, again, part = (
        draw_mix(options, places, 32, seed=seed, epoch=epoch, number=number)
        for places in (np.arange(8), np.arange(8), np.array([0, 3]))
    )
    assert one[0] == again[0] == part[0]
    assert one[2] == again[2] == part[2]
    assert one.partners.tolist() == again.partners.tolist()
    assert part.partners.tolist() == [0, 1], "partners that were left out mix with nobody"


def test_seed_epoch_and_batch_all_matter():
    one = [mix.share for mix in drawn(BOTH, 50)]
    for other in (drawn(BOTH, 50, seed=1), drawn(BOTH, 50, epoch=1), drawn(BOTH, 51)[1:]):
        assert np.mean([a == b.share for a, b in zip(one, other, strict=True)]) < 0.2


@pytest.mark.parametrize("where", range(3))
def test_the_mix_is_the_same_everywhere_and_for_ever(where):
    (seed, epoch, number), share, box = GOLDEN[where]
    mix = draw_mix(BOTH, np.arange(4), 64, seed=seed, epoch=epoch, number=number)
    assert (mix.share, mix.box) == (share, box)
    assert mix.partners.tolist() == [1, 0, 3, 2]


GOLDEN = (
    ((0, 0, 0), 0.953125, (0, 0, 16, 12)),
    ((7, 3, 128), 0.83056640625, None),
    ((18446744073709551615, 4294967295, 1000000000), 0.5224609375, None),
)


@quick
@given(st.lists(st.integers(0, 60), unique=True))
def test_partners_are_symmetric_neighbours_of_the_whole_batch(places):
    partners = partners_of(np.array(places, np.int64))
    assert partners.dtype == np.int64
    for place, partner in enumerate(partners.tolist()):
        assert partners[partner] == place
        assert places[partner] == (places[place] ^ 1 if places[place] ^ 1 in places else places[place])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_spread_as_beta_says(alpha):
    shares = np.array([mix.share for mix in drawn(MixOptions(mixup=alpha), 4000)])
    spread = 1 / (4 * (2 * alpha + 1))
    assert shares.mean() == pytest.approx(0.5, abs=5 * np.sqrt(spread / 4000))
    assert shares.var() == pytest.approx(spread, rel=0.08)
    for share in np.arange(1, 16) / 16 + 0.5 / STEPS:
        assert np.mean(shares < share) == pytest.approx(beta.cdf(share, alpha, alpha), abs=0.04)
    assert (shares * STEPS == np.rint(shares * STEPS)).all()


@quick
@given(alphas, st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1])))
def test_the_quantile_is_that_of_beta(alpha, word):
    probability = word * 2.0**-32  # what `philox.uniform` gives
    found = beta_quantile(alpha, probability)
    assert 0.0 <= found <= 1.0
    assert found == pytest.approx(beta.ppf(probability, alpha, alpha), abs=1 / STEPS)


@pytest.mark.parametrize("alpha", [1e-300, 1e-12, 1e-6, 1e-3, 100.0])
def test_an_extreme_alpha_is_still_a_share(alpha):
    for mix in drawn(MixOptions(mixup=alpha), 30) + drawn(MixOptions(cutmix=alpha), 30):
        assert 0.0 <= mix.share <= 1.0


def test_how_often_and_which_of_the_two():
    found = drawn(MixOptions(mixup=1.0, cutmix=1.0, probability=0.6, switch=0.25), 4000)
    cut = np.array([mix.box is not None for mix in found])
    untouched = np.array([mix.box is None and mix.partners.tolist() == [0, 1, 2, 3] for mix in found])
    assert untouched.mean() == pytest.approx(0.4, abs=0.04)
    assert cut.mean() == pytest.approx(0.15, abs=0.03)
    assert all(mix.share == 1.0 for mix, nothing in zip(found, untouched, strict=True) if nothing)
    assert all(mix.box is None for mix in drawn(MixOptions(mixup=1.0, switch=1.0), 200))
    assert all(mix.box is not None for mix in drawn(MixOptions(cutmix=1.0, switch=0.0), 200))


def test_nothing_is_mixed_where_nothing_is_to_be():
    assert not NO_MIX.active
    assert not MixOptions(mixup=1.0, cutmix=1.0, probability=0.0).active
    assert MixOptions(cutmix=0.1).active
    images = torch.rand(4, 3, 8, 8)
    for mix in drawn(MixOptions(mixup=1.0, cutmix=1.0, probability=0.0), 100):
        assert mix.share == 1.0
        assert mixed(images, mix) is images


@pytest.mark.parametrize(
    "options",
    [{"mixup": -0.1}, {"cutmix": 101.0}, {"mixup": float("nan")}, {"probability": 1.1}, {"switch": -0.5}],
    ids=str,
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MixOptions(**options)


# --- what is to be seen


@quick
@given(seeds, epochs, numbers, st.integers(4, 70), st.integers(1, 9))
def test_the_target_is_the_area_that_is_to_be_seen(seed, epoch, number, size, count):
    mix = draw_mix(MixOptions(cutmix=1.0), np.arange(count), size, seed=seed, epoch=epoch, number=number)
    images = torch.arange(1, count + 1, dtype=torch.float32).view(-1, 1, 1, 1).expand(count, 3, size, size).clone()
    before = images.clone()
    result = mixed(images, mix)
    assert torch.equal(images, before), "the images themselves stay"
    for place, partner in enumerate(mix.partners.tolist()):
        for plane in result[place]:
            own = int((plane == place + 1).sum())
            foreign = int((plane == partner + 1).sum())
            if partner != place:
                assert own + foreign == size * size
                assert mix.share == 1.0 - foreign / size**2, "exactly"
            else:
                assert own == size * size


places_in_image = st.floats(0, 1, exclude_max=True)


@quick
@given(st.floats(0.0, 1.0), places_in_image, places_in_image, st.integers(4, 300))
def test_the_box_is_that_of_timm(share, x, y, size):
    """For even sides; versions of timm differ in what they do with an odd one."""
    assume(int(size * (1.0 - share) ** 0.5) % 2 == 0)
    left, top, right, bottom = cut_box(share, (x, y), size)
    assert 0 <= left <= right <= size
    assert 0 <= top <= bottom <= size
    centres = iter((int(y * size), int(x * size)))  # timm draws the row first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.data.mixup.np.random.randint", lambda *_, size=None: next(centres))
        yl, yh, xl, xh = rand_bbox((1, 3, size, size), share)
    assert (top, bottom, left, right) == (yl, yh, xl, xh)


@pytest.mark.parametrize(
    ("size", "share", "side"),
    [(64, 0.9, 20), (224, 0.5, 158), (5, 0.0, 5), (64, 0.89, 21)],
)
def test_the_box_is_as_large_as_its_share(size, share, side):
    """In the middle of the image, where nothing is clipped."""
    left, top, right, bottom = cut_box(share, (0.5, 0.5), size)
    assert (right - left, bottom - top) == (side, side)


@quick
@given(st.integers(0, STEPS), st.integers(1, 9), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_mixup_is_what_timm_calculates(share, count, dtype):
    images = torch.linspace(-2, 2, count * 3 * 5 * 7).view(count, 3, 5, 7).to(dtype)
    mix = Mix(share / STEPS, partners_of(np.arange(count)), None)
    result = mixed(images, mix)
    exact = images.double() * mix.share + images.double()[mix.partners.tolist()] * (1 - mix.share)
    tolerance = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    assert result.dtype == dtype
    assert (result.double() - exact).abs().max() <= tolerance
    if count % 2:
        assert torch.equal(result[-1], images[-1]), "who has no partner stays as it is"


# --- in a loader


@pytest.fixture(scope="module")
def engine():
    made = CpuEngine(RenderSpec(SIZE), threads=2)
    yield made
    made.close()


SOURCE = MemorySource(37)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_all_numbers_of_ranks_see_the_same_mix(engine, data):
    world, train = data.draw(st.sampled_from([2, 3, 8])), data.draw(st.booleans())
    options = {
        "batch_size": data.draw(st.integers(2 * world, 37) if train else st.integers(1, 40)),
        "train": train,
        "seed": data.draw(seeds),
        "epoch": data.draw(epochs),
        "dtype": "float32",
        "mix": MixOptions(
            mixup=data.draw(st.sampled_from([0.0, 0.3])),
            cutmix=data.draw(st.sampled_from([0.4, 1.0])),
            probability=data.draw(st.sampled_from([0.5, 1.0])),
        ),
    }
    alone = steps(loaders(SOURCE, engine, 1, **options))
    assert same(steps(loaders(SOURCE, engine, world, **options)), alone)
    for rows, _, _, partners, share, _ in alone:
        assert share == 1.0 or partners == [rows[place ^ 1] if place ^ 1 < len(rows) else rows[place]
                                            for place in range(len(rows))]  # fmt: skip


def test_images_and_partners_belong_together(engine):
    """What a batch says about its mix is what was done to the images of an epoch without one."""
    options = {"batch_size": 9, "train": False, "dtype": "float32"}
    plain = pixels_by_row(steps(loaders(SOURCE, engine, 1, **options)))
    for epoch in range(6):
        for rows, images, labels, partners, share, box in steps(
            loaders(SOURCE, engine, 2, **options, mix=BOTH, epoch=epoch)
        ):
            assert labels.tolist() == SOURCE.labels[rows].tolist()
            for row, partner, image in zip(rows, partners, images, strict=True):
                if box is None:
                    expected = share * plain[row] + (1 - share) * plain[partner]
                else:
                    left, top, right, bottom = box
                    expected = plain[row].clone()
                    expected[:, top:bottom, left:right] = plain[partner][:, top:bottom, left:right]
                torch.testing.assert_close(image, expected, rtol=0, atol=2e-6)


def test_an_epoch_mixes_other_pairs(engine):
    options = {"batch_size": 8, "train": True, "mix": BOTH, "dtype": "float32"}
    one, other = (steps(loaders(SOURCE, engine, 1, epoch=epoch, **options)) for epoch in (0, 1))
    assert [step[4:] for step in one] != [step[4:] for step in other]
    assert len({step[4] for step in one}) > 1, "batches of an epoch differ too"


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_levels_cannot_be_mixed(engine, probability):
    options = {"batch_size": 8, "train": True, "mix": MixOptions(mixup=1.0, probability=probability)}
    if probability:
        with pytest.raises(ValueError, match="need a float format"):
            loaders(SOURCE, engine, 1, **options)
    else:
        assert next(iter(loaders(SOURCE, engine, 1, **options)[0])).mix is None
