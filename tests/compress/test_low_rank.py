"""The low-rank press: ranks, weights, costs, the proof."""

import copy
import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import ScaledStdConv2d
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.nn import functional as F

from compress.factor import work
from compress.factor.cp import cp_als, cp_components
from compress.factor.evbmf import _threshold, evbmf_rank
from compress.factor.kernels import fill_factors, rebuilt_weight
from compress.factor.layers import Choice, choose_layers
from compress.factor.plan import Planned, by_energy, by_ratio, make_candidates, make_plan
from compress.factor.spectra import Spectrum, ranks_by_energy, ranks_by_ratio
from compress.factor.work import factored_macs, measure_work, own_macs
from compress.low_rank import LowRankConfig, carry_out, low_rank, table
from compress.press import contract
from compress.press.contract import NoEffectError, ProofError
from pipelines.errors import UsageError
from training.measure.macs import count_macs
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.edits.factor import factors, full_ranks
from training.model.model_file import load_model, read_card, save_model

CLASSES = ("a", "b", "c")


def model_file(path, name, size=32):
    """A network whose layers all matter, whatever its initialisation set to zero."""
    torch.manual_seed(0)
    model = create_model(name, len(CLASSES))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.running_var, 0.5, 2),
                (module.bias, -0.5, 0.5),
            ):
                nn.init.uniform_(tensor, low, high)
            nn.init.normal_(module.running_mean, std=0.3)
    card = ModelCard(architecture=name, classes=CLASSES, size=size, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3)
    save_model(path, model, card)
    return path


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return model_file(tmp_path_factory.mktemp("resnet") / "best.safetensors", "test_resnet")


def press(model, out, **options):
    return low_rank(LowRankConfig(model=model, out=out, **options))


def spectrum_of(layer, form):
    return Spectrum(layer=layer, form=form)


@st.composite
def convolutions(draw, form):
    """A convolution that a form suits, float64, and an image for it."""
    cls = draw(st.sampled_from([nn.Conv2d, Conv2dSame]))
    side = st.integers(2, 4) if form == "spatial" else st.integers(1, 4)
    kernel = (1, 1) if form == "svd" else draw(st.tuples(side, side).filter(lambda k: k != (1, 1)))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    inputs, outputs, groups = draw(st.integers(1, 5)), draw(st.integers(1, 6)), 1
    if form == "spatial":
        outputs, groups = inputs * draw(st.integers(1, 3)), inputs
    if form == "groups":
        groups = draw(st.integers(1, 3))
        inputs, outputs = 2 * groups * draw(st.integers(1, 2)), 2 * groups * draw(st.integers(1, 3))
    options = {"stride": draw(pair), "dilation": draw(pair), "padding": draw(st.tuples(*[st.integers(0, 2)] * 2))}
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = cls(inputs, outputs, kernel, groups=groups, bias=draw(st.booleans()), **options).double()
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, kernel, strict=True)]
    return layer, torch.randn(
        2, inputs, reach[0] + draw(st.integers(0, 5)), reach[1] + draw(st.integers(0, 5))
    ).double()


def filled(layer, form, ranks):
    made = factors(layer, form, ranks)
    fill_factors(made, layer, form, tuple(ranks))
    return made


def close(a, b, tolerance=1e-9):
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * float(b.abs().max()) + 1e-12


@pytest.mark.parametrize("form", ["svd", "tucker2", "cp", "separable", "spatial", "groups"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_full_rank_is_the_layer_itself(form, data):
    layer, image = data.draw(convolutions(form))
    ranks = [layer.groups] if form == "groups" else full_ranks(layer, form)
    if form == "spatial":  # which has rank 1 only
        tall, wide = torch.randn(layer.out_channels, 1, layer.kernel_size[0], 1), torch.randn(layer.kernel_size[1])
        layer.weight.data = tall.double() * wide.double()
    assert close(filled(layer, form, ranks)(image), layer(image))


@pytest.mark.parametrize("form", ["svd", "tucker2", "cp", "separable", "spatial", "groups"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_factors_are_the_layer_with_the_kernel_they_amount_to_and_cost_what_is_said(form, data):
    layer, image = data.draw(convolutions(form))
    ranks = [data.draw(st.integers(1, most)) for most in full_ranks(layer, form)]
    if form == "groups":
        ranks = [2 * layer.groups]
    made = filled(layer, form, ranks)
    twin = copy.deepcopy(layer)
    twin.weight.data = rebuilt_weight(made, layer, form)
    assert close(made(image), twin(image))

    size = image.shape[2:]
    (at,) = measured(layer, image.shape[1], size).values()
    assert factored_macs(layer, form, ranks, at) == count_macs(made, tuple(size), channels=image.shape[1]).macs


def measured(layer, channels, size):
    """`measure_work` for images that are not square RGB ones."""
    original = work.count_watched
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "count_watched", lambda m, _, watch: original(m, tuple(size), watch, channels=channels))
        return measure_work(nn.Sequential(layer), 0)[1]


def test_more_groups_keep_slices():
    layer = nn.Conv2d(4, 4, 1, groups=1, bias=False)
    layer.weight.data = torch.arange(16.0).reshape(4, 4, 1, 1)
    assert filled(layer, "groups", [2]).weight.flatten().tolist() == [0, 1, 4, 5, 10, 11, 14, 15]
    layer = nn.Conv2d(8, 4, 1, groups=2, bias=False)
    layer.weight.data = torch.arange(16.0).reshape(4, 4, 1, 1)
    assert filled(layer, "groups", [4]).weight.flatten().tolist() == [0, 1, 6, 7, 8, 9, 14, 15]


def test_svd_is_the_closest_there_is():
    torch.manual_seed(1)
    layer = nn.Conv2d(7, 12, 1).double()
    values = torch.linalg.svdvals(layer.weight.flatten(1))
    lost = (rebuilt_weight(filled(layer, "svd", [3]), layer, "svd") - layer.weight).square().sum()
    torch.testing.assert_close(lost, values[3:].square().sum())


def test_sweeps_bring_tucker2_and_cp_closer():
    torch.manual_seed(2)
    layer = nn.Conv2d(10, 12, 3).double()
    weight, total = layer.weight.detach(), layer.weight.detach().square().sum()

    def lost(form, ranks):
        return float((rebuilt_weight(filled(layer, form, ranks), layer, form) - weight).square().sum() / total)

    energies, start = cp_components(weight)
    torch.testing.assert_close(energies.sum(), total)
    products = torch.einsum("or,ir,hr,wr->roihw", *start)
    torch.testing.assert_close(products.flatten(1) @ products.flatten(1).T, torch.diag(energies), atol=1e-10, rtol=0)
    assert lost("cp", [20]) < 0.9 * float(energies[20:].sum() / total)
    inputs = torch.linalg.svd(weight.transpose(0, 1).flatten(1))[0][:, :4]
    outputs = torch.linalg.svd(weight.flatten(1))[0][:, :4]
    core = torch.einsum("oihw,ob,ia->bahw", weight, outputs, inputs)
    assert lost("tucker2", [4, 4]) < float(1 - core.square().sum() / total)
    assert lost("tucker2", [4, 4]) > 0.1


def test_cp_finds_what_was_made_of_few_products():
    torch.manual_seed(3)
    made = torch.einsum("or,ir,hr,wr->oihw", *(torch.randn(n, 2).double() for n in (8, 6, 3, 3)))
    found = torch.einsum("or,ir,hr,wr->oihw", *cp_als(made, 2, sweeps=300))
    assert close(found, made, 1e-2)
    again = torch.einsum("or,ir,hr,wr->oihw", *cp_als(made, 2, sweeps=300))
    assert torch.equal(found, again)


@pytest.mark.parametrize(("form", "layer"), [
    ("svd", nn.Conv2d(20, 30, 1)), ("svd", nn.Linear(20, 9)), ("tucker2", nn.Conv2d(12, 16, 3)),
    ("cp", nn.Conv2d(6, 8, 3)), ("separable", nn.Conv2d(6, 8, 3)), ("groups", nn.Conv2d(8, 8, 3)),
])  # fmt: skip
@pytest.mark.parametrize("energy", [0.2, 0.5, 0.9, 1.0])
def test_as_much_energy_is_kept_as_was_asked_for(form, layer, energy):
    spectrum = spectrum_of(layer, form)
    ranks = ranks_by_energy(spectrum, energy)
    if ranks is None:
        assert form == "groups"
        return
    made = filled(layer, form, list(ranks))
    kept = 1 - (rebuilt_weight(made, layer, form) - layer.weight.double()).square().sum() / layer.weight.square().sum()
    assert kept >= energy - 1e-6
    if form in ("svd", "separable") and ranks[0] > 1:
        assert np.cumsum(spectrum.energies[0])[ranks[0] - 2] < energy


def test_ranks_by_ratio():
    dense = nn.Conv2d(16, 12, 3)
    assert ranks_by_ratio(spectrum_of(dense, "tucker2"), 0.25) == (4, 3)
    assert ranks_by_ratio(spectrum_of(dense, "cp"), 0.5) == (6,)
    assert ranks_by_ratio(spectrum_of(dense, "separable"), 0.25) == (9,)
    assert ranks_by_ratio(spectrum_of(dense, "groups"), 0.5) == (2,)
    assert ranks_by_ratio(spectrum_of(dense, "groups"), 0.4) == (4,)
    assert ranks_by_ratio(spectrum_of(nn.Linear(16, 12), "svd"), 0.01) == (1,)


@pytest.mark.parametrize(
    ("shape", "rank"), [((60, 200), 7), ((200, 60), 7), ((100, 100), 12), ((40, 400), 0), ((64, 576), 20)]
)
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_evbmf_finds_the_true_rank(shape, rank, noise):
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.normal(size=(n, max(rank, 1))))[0][:, :rank] for n in shape)
    strength = noise * np.sqrt(max(shape)) * np.linspace(3, 6, rank)
    matrix = left * strength @ right.T + noise * random.normal(size=shape)
    assert evbmf_rank(np.linalg.svd(matrix, compute_uv=False) ** 2, shape) == rank


@pytest.mark.parametrize(("x", "rank"), [(4.6, 0), (5.2, 1)])
def test_evbmf_keeps_what_lies_above_the_threshold(x, rank):
    """The largest singular value of square noise has x = 4; by the paper's τ, 2.5129, one is kept from 4.91 on."""
    noise = np.linalg.svd(np.random.default_rng(0).normal(size=(300, 300)), compute_uv=False) ** 2
    assert evbmf_rank(np.append(noise[1:], 300 * x), (300, 300)) == rank
    assert _threshold(1.0) == pytest.approx((1 + 2.5129) * (1 + 1 / 2.5129), abs=1e-3)


def test_evbmf_without_noise_or_without_anything():
    random = np.random.default_rng(0)
    matrix = random.normal(size=(30, 5)) @ random.normal(size=(5, 50))
    assert evbmf_rank(np.linalg.svd(matrix, compute_uv=False) ** 2, (30, 50)) == 5
    assert evbmf_rank(np.zeros(30), (30, 50)) == 0
    with pytest.raises(ValueError, match="singular values"):
        evbmf_rank(np.ones(29), (30, 50))


def candidates_of(model, size, forms):
    report, positions = measure_work(model, size)
    layers, skipped = choose_layers(model.eval(), Choice(stem=True, classifier=True), positions, size)
    return make_candidates(layers, own_macs(report), positions, forms)[0], skipped


def test_break_even_is_exact():
    # 8 x 8 of rank 4 costs 4 * 16 = 64 at each position, as much as without.
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    candidates, _ = candidates_of(model, 4, ["svd"])
    planned, skipped = make_plan(candidates, by_ratio(4 / 8))
    assert [one.path for one in planned] == ["0"]
    assert skipped["1"] == "svd of rank 4 would cost 1,024 MACs instead of 1,024: take less rank"
    planned, _ = make_plan(candidates, by_ratio(3 / 8))
    assert [(one.path, one.before, one.after) for one in planned] == [("0", 384, 176), ("1", 1024, 768)]


def test_break_even_looks_at_strides():
    """Of 576 weights 420 are left, but the first factor runs at nine times as many positions as the convolution did."""
    for stride, saves in ((1, True), (3, False)):
        candidates, _ = candidates_of(
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, stride=stride)), 9, ["tucker2"]
        )
        planned, skipped = make_plan(candidates, by_ratio(6 / 8))
        assert bool(planned) == saves
    assert skipped["1"] == "tucker2 of rank 6 x 6 would cost 7,236 MACs instead of 5,184: take less rank"


def test_the_form_with_the_fewest_macs_is_taken():
    torch.manual_seed(0)
    candidates, _ = candidates_of(
        nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3)), 8, ["tucker2", "separable", "cp"]
    )
    (planned,), _ = make_plan(candidates[-1:], by_ratio(0.25))
    last = candidates[-1]
    ranks = {spectrum.form: ranks_by_ratio(spectrum, 0.25) for spectrum in last.spectra}
    cost = {form: factored_macs(last.layer, form, ranks[form], last.at) for form in ranks}
    assert planned.form == min(cost, key=cost.get) == "cp"
    assert planned.after == cost["cp"]
    planned, skipped = make_plan(candidates[-1:], by_energy(1.0))
    assert not planned
    assert skipped["1"].count("would cost") == 3


class Reading(nn.Module):
    """Looks at the layer besides calling it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(x) + self.conv.weight.mean()


class Using(nn.Module):
    """Does not call the layer at all."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return F.conv2d(x, self.conv.weight)


def test_layers_that_cannot_be_are_skipped_with_the_reason():
    shared, weight_sharing = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    hooked, zero, damaged = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    hooked.register_forward_hook(lambda *_: None)
    nn.init.zeros_(zero.weight)
    model = nn.ModuleDict({
        "stem": nn.Conv2d(3, 8, 1), "plain": nn.Conv2d(8, 8, 1), "std": ScaledStdConv2d(8, 8, 1),
        "reflect": nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "one": shared, "two": shared,
        "tied": weight_sharing, "with": nn.Conv2d(8, 8, 1), "hooked": hooked, "zero": zero, "reading": Reading(),
        "using": Using(), "damaged": damaged, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(),
        "fc": nn.Linear(8, 3),
    })  # fmt: skip
    weight_sharing.weight = model["with"].weight
    network = nn.Sequential(*model.values())
    network.num_classes = 3
    names = dict(zip(model, map(str, range(len(model))), strict=True))
    _, positions = measure_work(network, 8)
    nn.init.constant_(damaged.weight, float("nan"))
    layers, skipped = choose_layers(network.eval(), Choice(), positions, 8)
    nn.init.ones_(damaged.weight)
    assert list(layers) == [names["plain"]]
    found = {name: skipped.get(path) for name, path in names.items()}
    assert found["stem"] == "the first convolution; --stem takes it too"
    assert found["fc"] == "the classifier; --classifier takes it too"
    assert found["std"] == "a ScaledStdConv2d does more with its weight than a plain layer"
    assert found["reflect"] == "it pads with reflect, not with zeros"
    assert found["one"] == found["tied"] == found["with"] == "it stands in several places, or shares its weight"
    assert found["hooked"] == "it has hooks"
    assert found["zero"] == "its weight is zero"
    assert found["damaged"] == "its weight holds values that are no numbers"
    assert skipped[f"{names['using']}.conv"] == "it does not run by itself: its parent uses its weight, or nobody does"


def test_a_layer_whose_parent_reads_its_weight_is_noticed():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Reading(), nn.Conv2d(8, 8, 1)).eval()
    layers, skipped = choose_layers(model, Choice(), measure_work(model, 8)[1], 8)
    assert list(layers) == ["2"]
    assert skipped["1.conv"] == "its parent reads more of it than its answer"


def test_pressed_by_the_default(resnet, tmp_path):
    before = load_model(resnet)[0]
    report = press(resnet, tmp_path / "thin.safetensors", energy=0.5)
    model, card = load_model(tmp_path / "thin.safetensors")
    assert report["after"]["macs"] == count_macs(model, 32).macs < report["before"]["macs"]
    assert report["proof"]["error"] <= 1e-5
    assert report["energy"] == 0.5
    saved = 0
    for told in report["layers"]:
        assert told["kept"] >= 0.5
        assert told["error"] == pytest.approx((1 - told["kept"]) ** 0.5)
        assert told["macs_after"] < told["macs_before"]
        assert told["path"] in report["changed"]
        saved += told["macs_before"] - told["macs_after"]
    assert report["before"]["macs"] - saved == report["after"]["macs"]
    paths = {path for path, module in before.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert set(report["changed"]) | set(report["skipped"]) == paths
    assert report["skipped"]["fc"].startswith("the classifier")
    assert "low_rank" in table(report)
    assert [edit["kind"] for edit in card.edits] == ["factor"] * len(report["changed"])


def answers(path):
    model, card = load_model(path)
    with torch.inference_mode():
        return model(torch.randn(2, 3, card.size, card.size, generator=torch.Generator().manual_seed(5)))


def test_pressed_twice_and_opened_by_a_fresh_process(resnet, tmp_path):
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    first = press(resnet, once, rank_by="ratio", ratio=0.5, forms="tucker2,svd,separable,cp")
    second = press(once, twice, rank_by="ratio", ratio=0.25, forms="svd,tucker2,groups,spatial")
    assert second["before"]["macs"] == first["after"]["macs"] > second["after"]["macs"]
    assert len(read_card(twice).edits) == len(first["changed"]) + len(second["changed"])
    assert any(path.rpartition(".")[0] in first["changed"] for path in second["changed"])
    code = f"""
import sys, torch, safetensors.torch
from pathlib import Path
from training.model.model_file import load_model
torch.set_num_threads(1)
{inspect.getsource(answers)}
safetensors.torch.save_file({{"y": answers(Path(sys.argv[1]))}}, sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", code, str(twice), str(tmp_path / "y")], check=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(safetensors.torch.load_file(tmp_path / "y")["y"], answers(twice))
    finally:
        torch.set_num_threads(threads)


def test_same_model_same_bytes(resnet, tmp_path):
    press(resnet, tmp_path / "a.safetensors", rank_by="ratio", forms="cp,tucker2,svd")
    press(resnet, tmp_path / "b.safetensors", rank_by="ratio", forms="cp,tucker2,svd")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_target_of_macs_is_met_closely(resnet, tmp_path, share):
    total = count_macs(load_model(resnet)[0], 32).macs
    report = press(
        resnet, tmp_path / "m.safetensors", rank_by="macs", target_macs=int(total * share), stem=True, classifier=True
    )
    assert 0.95 * share * total < report["after"]["macs"] <= share * total
    assert 0 < report["energy"] < 1
    with pytest.raises(NoEffectError, match="no more than --target_macs"):
        press(resnet, tmp_path / "m.safetensors", rank_by="macs", target_macs=total)
    with pytest.raises(UsageError, match="out of reach: rank 1 everywhere costs"):
        press(resnet, tmp_path / "m.safetensors", rank_by="macs", target_macs=1000)


def test_evbmf_needs_no_number(resnet, tmp_path):
    model, card = load_model(resnet)
    layer = model.get_submodule("layer4.0.conv2")
    torch.manual_seed(0)
    strong = torch.einsum("oa,abhw,ib->oihw", *(torch.randn(*shape) for shape in ((96, 5), (5, 4, 3, 3), (96, 4))))[
        : layer.out_channels, : layer.in_channels
    ]
    layer.weight.data = strong / strong.std() + 0.05 * torch.randn(layer.weight.shape)
    save_model(tmp_path / "noisy.safetensors", model, card)
    report = press(tmp_path / "noisy.safetensors", tmp_path / "m.safetensors", rank_by="evbmf")
    told = {one["path"]: one for one in report["layers"]}
    assert told["layer4.0.conv2"]["ranks"] == [4, 5]
    assert told["layer4.0.conv2"]["kept"] > 0.99
    assert "evbmf takes all of it for noise" in report["skipped"]["layer3.0.conv2"]


def test_nothing_to_gain_is_an_error(tmp_path):
    path = model_file(tmp_path / "m.safetensors", "mobilenetv3_small_050")
    with pytest.raises(NoEffectError, match="would cost"):
        press(path, tmp_path / "out.safetensors", rank_by="ratio", ratio=1.0)
    assert not (tmp_path / "out.safetensors").exists()


FORMS_OF = {"shufflenet_g3_wd4": "svd,groups,spatial", "tf_efficientnet_lite0": "svd,tucker2,spatial"}


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "shufflenet_g3_wd4", "tf_efficientnet_lite0"])
def test_the_proof_holds_on(name, tmp_path):
    path = model_file(tmp_path / "m.safetensors", name)
    options = {
        "rank_by": "ratio",
        "ratio": 0.25,
        "forms": FORMS_OF.get(name, "svd,tucker2"),
        "stem": True,
        "classifier": True,
    }
    report = press(path, tmp_path / "out.safetensors", **options)
    assert report["proof"]["error"] < 1e-9
    assert report["after"]["macs"] < 0.75 * report["before"]["macs"]
    assert len(report["changed"]) > 15
    assert answers(tmp_path / "out.safetensors").isfinite().all()


def test_wrong_factors_are_not_written(resnet, tmp_path, monkeypatch):
    def careless(made, layer, form, ranks):
        fill_factors(made, layer, form, ranks)
        made[-1].bias = None if made[-1].bias is not None else nn.Parameter(torch.ones(len(made[-1].weight)))

    monkeypatch.setattr("compress.low_rank.fill_factors", careless)
    with pytest.raises(ProofError, match="does not hold"):
        press(resnet, tmp_path / "m.safetensors", rank_by="ratio")
    monkeypatch.undo()
    monkeypatch.setattr("compress.low_rank.planned_macs", lambda *_: 7)
    with pytest.raises(ProofError, match="where 7 were planned"):
        press(resnet, tmp_path / "m.safetensors", rank_by="ratio")
    assert not (tmp_path / "m.safetensors").exists()


def test_a_network_that_reads_its_factors_does_not_pass_the_proof():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Reading()

        def forward(self, x):
            return self.block(x.repeat(1, 3, 1, 1)[:, :8]).mean((2, 3))

    subject = contract.Subject(
        model=Net().eval(),
        card=ModelCard(architecture="toy", classes=CLASSES, size=8, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3),
        path=None,
    )
    one = Planned(path="block.conv", form="svd", ranks=(2,), before=64 * 64, after=64 * 32)
    with pytest.raises(ProofError, match="does not run"):
        carry_out(subject, ((one,), {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forms": "svd,magic"}, "--forms 'svd,magic': forms are svd, tucker2"),
        ({"forms": ","}, "--forms"),
        ({"rank_by": "evbmf", "forms": "svd,spatial"}, "spatial has none"),
        ({"layers": " "}, "--layers is empty"),
        ({"ratio": 0.5}, "--ratio needs --rank_by ratio; it is energy"),
        ({"rank_by": "ratio", "energy": 0.5}, "--energy needs --rank_by energy"),
        ({"target_macs": 5}, "--target_macs needs --rank_by macs"),
        ({"energy": 0.0}, "--energy 0.0 must be above 0"),
        ({"rank_by": "ratio", "ratio": 1.5}, "--ratio 1.5 must be above 0"),
        ({"energy": float("nan")}, "--energy nan must be"),
        ({"rank_by": "macs"}, "needs --target_macs"),
        ({"rank_by": "macs", "target_macs": 0}, "needs --target_macs"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        LowRankConfig(model=tmp_path, out=tmp_path / "m.safetensors", **options)


def test_layers_are_chosen_by_their_paths(resnet, tmp_path):
    report = press(resnet, tmp_path / "m.safetensors", rank_by="ratio", layers="layer4.*, *.0.conv3")
    assert report["changed"]
    assert all(path.startswith("layer4.") or path.endswith(".0.conv3") for path in report["changed"])
    assert report["skipped"]["layer2.0.conv2"] == "--layers leaves it out"
    with pytest.raises(UsageError, match=r"--layers blocks\.\* is no layer of test_resnet; it has conv1"):
        press(resnet, tmp_path / "m.safetensors", layers="blocks.*")


def test_the_command(resnet, tmp_path):
    words = ["--model", resnet, "--out", tmp_path / "m.safetensors", "--rank_by", "ratio", "--ratio", "0.3", "--json"]
    done = subprocess.run([sys.executable, "-m", "compress.low_rank", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["press"], report["ratio"]) == ("low_rank", 0.3)
    assert read_card(tmp_path / "m.safetensors").provenance["presses"][-1]["ratio"] == 0.3
