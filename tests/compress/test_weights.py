"""The weights job: unstructured and 2:4 pruning."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.press.contract import NoEffectError, ProofError, open_subject
from compress.sparse import magnitude
from compress.sparse.magnitude import compressed_bytes, masked, prune_weights
from compress.weights import NOTE, WeightsConfig, table, weights
from pipelines.errors import UsageError
from training.engine.sparsity import groups_of, grow
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.edits.apply import apply_edits
from training.model.edits.remove import removed
from training.model.edits.sparse import Rule, prunable, sparse, sparse_weights
from training.model.model_file import load_model, read_card, save_model

NAME = "test_efficientnet"
CARD = ModelCard(architecture=NAME, classes=("a", "b"), size=32, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "best.safetensors", create_model(NAME, 2), CARD)
    return folder


def ordinary(weight):
    """No pruned weight has an equal."""
    return torch.unique(weight.abs()).numel() == weight.numel()


def zeros_of(path):
    model, _ = load_model(path)
    return {name: int((value == 0).sum()) for name, value in model.state_dict().items() if value.ndim >= 2}


def none_pruned(values):
    return {name: torch.zeros_like(value, dtype=torch.bool) for name, value in values.items()}


BY_HAND = {
    "small": torch.tensor([[0.1, -0.2, 0.3, -0.4], [0.5, -0.6, 0.7, -0.8]]),
    "large": torch.tensor([[1.0, -2.0, 0.35, 4.0]]),
}


def test_global_and_layer_counts_by_hand():
    """Of 12 weights the 6 smallest: five of the first layer and one of the second; or half of each."""
    found = grow(BY_HAND, none_pruned(BY_HAND), 0.5, Rule(scope="global"))
    assert found["small"].tolist() == [[True, True, True, True], [True, False, False, False]]
    assert found["large"].tolist() == [[False, False, True, False]]
    found = grow(BY_HAND, none_pruned(BY_HAND), 0.5, Rule(scope="layer"))
    assert found["small"].tolist() == [[True, True, True, True], [False] * 4]
    assert found["large"].tolist() == [[True, False, True, False]]


def test_two_of_four_by_hand():
    """The second row of `small` and the row of `large` lose more than the first row of `small`."""
    found = grow(BY_HAND, none_pruned(BY_HAND), 0.5, Rule(pattern="2:4"))
    assert found["small"].tolist() == [[True, True, False, False], [True, True, False, False]]
    assert found["large"].tolist() == [[True, False, True, False]]
    third = grow(BY_HAND, none_pruned(BY_HAND), 0.5 / 3, Rule(pattern="2:4"))
    assert {name: int(mask.sum()) for name, mask in third.items()} == {"small": 2, "large": 0}
    assert third["small"][0].tolist() == [True, True, False, False]


def test_of_equal_weights_the_first_go_and_what_is_pruned_stays_pruned():
    weight = {"a": torch.ones(1, 6)}
    first = grow(weight, none_pruned(weight), 0.5, Rule())
    assert first["a"].tolist() == [[True, True, True, False, False, False]]
    before = {"a": torch.tensor([[False, False, False, False, False, True]])}
    assert grow(weight, before, 0.5, Rule())["a"].tolist() == [[True, True, False, False, False, True]]
    assert grow(weight, before, 0.0, Rule())["a"].equal(before["a"])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3).map(lambda n: 4 * n), st.integers(1, 3), st.integers(1, 3)),
    linear=st.booleans(),
    seed=st.integers(0, 2**31),
    equal=st.booleans(),
)
def test_of_each_four_input_channels_the_two_smaller_are_zero(shape, linear, seed, equal):
    weight = torch.randn(shape[:2] if linear else shape, generator=torch.Generator().manual_seed(seed))
    weight = weight.sign() if equal else weight
    found = grow({"a": weight}, none_pruned({"a": weight}), 0.5, Rule(pattern="2:4"))["a"]
    outs, ins = weight.shape[:2]
    for out in range(outs):
        for four in range(0, ins, 4):
            group = weight[out, four : four + 4].flatten(1) if weight.ndim == 4 else weight[out, four : four + 4, None]
            gone = found[out, four : four + 4].reshape(4, -1)
            assert gone.sum(0).eq(2).all()
            for place in range(group.shape[1]):
                pruned, left = group[gone[:, place], place].abs(), group[~gone[:, place], place].abs()
                assert pruned.max() <= left.min()


@settings(max_examples=60, deadline=None)
@given(
    share=st.floats(0, 0.99),
    more=st.floats(0, 0.99),
    scope=st.sampled_from(["global", "layer"]),
    seed=st.integers(0, 2**31),
)
def test_exact_counts_and_nothing_comes_back(share, more, scope, seed):
    generator = torch.Generator().manual_seed(seed)
    layers = {"a": torch.randn(3, 5, generator=generator), "b": torch.randn(4, 2, 3, 3, generator=generator) * 3}
    low, high = sorted((share, more))
    rule = Rule(scope=scope)
    first = grow(layers, none_pruned(layers), low, rule)
    second = grow(layers, first, high, rule)
    at_once = grow(layers, none_pruned(layers), high, rule)
    for name in layers:
        assert second[name][first[name]].all()
        assert second[name].equal(at_once[name])
    sizes = {name: weight.numel() for name, weight in layers.items()}
    counts = {name: int(mask.sum()) for name, mask in second.items()}
    if scope == "layer":
        assert counts == {name: round(high * size) for name, size in sizes.items()}
    else:
        assert sum(counts.values()) == round(high * sum(sizes.values()))


def test_the_memory_format_of_a_weight_changes_nothing():
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)).sign()
    for rule in (Rule(), Rule(pattern="2:4")):
        plain, last = (
            grow({"a": given}, none_pruned({"a": given}), 0.5, rule)["a"]
            for given in (weight, weight.to(memory_format=torch.channels_last))
        )
        assert plain.equal(last)


def test_which_layers_may_go():
    model = create_model(NAME, 2)
    chosen, skipped = prunable(model, Rule())
    depthwise = {path for path, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert skipped == dict.fromkeys(depthwise, "depthwise: few weights, most of them needed") | {
        "classifier": "the classifier"
    }
    assert depthwise
    every, left = prunable(model, Rule(depthwise=True, classifier=True))
    assert set(every) == set(chosen) | set(skipped)
    assert left == {}
    some, left = prunable(model, Rule(layers="blocks.1.*, conv_head"))
    assert "conv_head" in some
    assert all(path == "conv_head" or path.startswith("blocks.1.") for path in some)
    assert left["conv_stem"] == "no pattern of layers names it"
    _, left = prunable(model, Rule(pattern="2:4"))
    assert left["conv_stem"] == "2:4 needs a multiple of 4 inputs, it has 3"


def test_layers_whose_zeros_would_not_stay_are_left_alone():
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    tied = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.Embedding(4, 4), "b": normed, "c": tied, "d": nn.Linear(4, 4)})
    model["d"].weight = tied.weight
    chosen, skipped = prunable(model, Rule())
    assert list(chosen) == ["c"]
    assert skipped == {
        "a": "Embedding is neither convolution nor linear",
        "b": "its weights are computed from others",
        "d": "its weights are those of a layer before it",
    }
    chosen, skipped = prunable(create_model("test_nfnet", 2), Rule())
    assert "it standardises its weights, so zeros would not stay zero" in skipped.values()
    assert not any("conv" in path for path in chosen)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_report(run, tmp_path, scope):
    out = tmp_path / "pruned.safetensors"
    report = weights(WeightsConfig(model=run, out=out, sparsity=0.75, scope=scope))
    chosen, skipped = prunable(load_model(run / "best.safetensors")[0], Rule())
    sizes = {path: weight.numel() for path, weight in chosen.items()}
    zeros = zeros_of(out)
    assert sum(zeros.values()) == report["after"]["zeros"]
    assert report["before"]["zeros"] == 0
    if scope == "layer":
        assert {path: zeros[f"{path}.weight"] for path in sizes} == {p: round(0.75 * n) for p, n in sizes.items()}
        assert set(report["changed"]) == set(sizes)
    else:
        assert sum(zeros.values()) == round(0.75 * sum(sizes.values()))
    assert report["skipped"].items() >= skipped.items()
    assert report["sparsity"] == pytest.approx(0.75, abs=1e-3)
    assert report["layers"] == {p: pytest.approx(zeros[f"{p}.weight"] / n, abs=1e-6) for p, n in sizes.items()}
    for same in ("macs", "parameters"):
        assert report["after"][same] == report["before"][same]
    assert report["after"]["compressed_bytes"] < 0.75 * report["before"]["compressed_bytes"]
    assert report["note"] == NOTE
    assert report["proof"]["claim"] == "pruned == masked"
    card = read_card(out)
    assert card.edits == (
        {"kind": "sparse", "pattern": "unstructured", "sparsity": 0.75, "modules": list(report["changed"])},
    )
    shown = table(report)
    assert "zeros save no multiply-accumulates" in shown
    assert "compressed_bytes" in shown


def test_what_is_left_is_what_it_was(run, tmp_path):
    out = tmp_path / "pruned.safetensors"
    weights(WeightsConfig(model=run, out=out, sparsity=0.5))
    before, after = (load_model(path)[0].state_dict() for path in (run / "best.safetensors", out))
    assert before.keys() == after.keys()
    gone, left = [], []
    for name, value in before.items():
        zero = (after[name] == 0) & (value != 0)
        assert torch.equal(after[name], value.masked_fill(zero, 0))
        if zero.any() or name == "conv_head.weight":
            gone, left = [*gone, value[zero].abs()], [*left, value[~zero].abs()]
    assert torch.cat(gone).max() <= torch.cat(left).min()


def test_two_of_four_in_a_model(run, tmp_path):
    out = tmp_path / "half.safetensors"
    report = weights(WeightsConfig(model=run, out=out, pattern="2:4"))
    model, card = load_model(out)
    assert card.edits[0]["pattern"] == "2:4"
    assert "TensorRT" in report["note"]
    for path in report["changed"]:
        groups = groups_of(model.get_submodule(path).weight == 0)
        assert groups.sum(1).eq(2).all()
    assert report["skipped"]["conv_stem"] == "2:4 needs a multiple of 4 inputs, it has 3"
    with pytest.raises(NoEffectError):
        weights(WeightsConfig(model=out, out=tmp_path / "again.safetensors", pattern="2:4"))


def test_pressed_twice_is_pressed_once(run, tmp_path):
    first, second, once = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "once"))
    weights(WeightsConfig(model=run, out=first, sparsity=0.3))
    report = weights(WeightsConfig(model=first, out=second, sparsity=0.8))
    weights(WeightsConfig(model=run, out=once, sparsity=0.8))
    assert report["before"]["zeros"] > 0
    (twice, card), (at_once, _) = load_model(second), load_model(once)
    assert all(torch.equal(value, at_once.state_dict()[name]) for name, value in twice.state_dict().items())
    assert [edit["sparsity"] for edit in card.edits] == [0.3, 0.8]
    assert [told["press"] for told in card.provenance["presses"]] == ["weights", "weights"]
    with pytest.raises(NoEffectError, match="weights changes nothing"):
        weights(WeightsConfig(model=second, out=tmp_path / "third.safetensors", sparsity=0.5))


def test_a_sparse_model_is_cut_further_and_loads(run, tmp_path):
    """Another press may take away what this one pruned."""
    out, cut = tmp_path / "pruned.safetensors", tmp_path / "cut.safetensors"
    weights(WeightsConfig(model=run, out=out, sparsity=0.6))
    model, card = load_model(out)
    gone = "blocks.3.0.se"
    assert f"{gone}.conv_reduce" in card.edits[0]["modules"]
    edit = removed(gone)
    apply_edits(model, (edit,), "test")
    values = {name: getattr(card, name) for name in card.__dataclass_fields__}
    save_model(cut, model, ModelCard(**values | {"edits": (*card.edits, edit)}))
    assert list(sparse_weights(load_model(cut)[0], card.edits)) == [
        path for path in card.edits[0]["modules"] if not path.startswith(gone)
    ]
    report = weights(WeightsConfig(model=cut, out=tmp_path / "more.safetensors", sparsity=0.9))
    assert report["sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_in_another_process(run, tmp_path):
    out = tmp_path / "pruned.safetensors"
    words = ["--model", run, "--out", out, "--sparsity", "0.5", "--layers", "blocks.*", "--json"]
    done = subprocess.run([sys.executable, "-m", "compress.weights", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(path.startswith("blocks.") for path in report["changed"])
    model, _ = load_model(out)
    here = prune_weights(open_subject(run), 0.5, Rule(layers="blocks.*")).model
    assert all(torch.equal(value, here.state_dict()[name]) for name, value in model.state_dict().items())
    assert report["after"]["compressed_bytes"] == compressed_bytes(here)


def test_compressed_bytes_are_those_of_the_tensors_alone():
    model = nn.Linear(300, 10, bias=False)
    nn.init.zeros_(model.weight)
    assert compressed_bytes(model) == len(zlib.compress(bytes(4 * 3000), 6))


def test_the_proof_finds_a_weight_that_is_not_what_it_was(run, tmp_path, monkeypatch):
    twin = magnitude.masked

    def wrong(model, zeros):
        made = twin(model, zeros)
        made.conv_stem.weight.data[0] *= 1.01
        return made

    monkeypatch.setattr(magnitude, "masked", wrong)
    with pytest.raises(ProofError, match="pruned == masked does not hold"):
        weights(WeightsConfig(model=run, out=tmp_path / "pruned.safetensors", sparsity=0.5))
    assert not (tmp_path / "pruned.safetensors").exists()


def test_the_masked_twin_has_the_masks_of_torch():
    model = nn.Sequential(nn.Linear(4, 2))
    zeros = {"0": torch.tensor([[True, False, False, True]] * 2)}
    twin = masked(model, zeros)
    x = torch.randn(3, 4)
    expected = x[:, 1:3] @ model[0].weight[:, 1:3].T + model[0].bias
    torch.testing.assert_close(twin(x), expected)
    assert not (model[0].weight == 0).any()


# Once a bug: EdgeNeXt asks for the dtype of a weight, which torch's masks leave as it was until the layer runs.
def test_a_network_that_asks_for_the_dtype_of_a_weight(tmp_path):
    torch.manual_seed(0)
    card = ModelCard(
        architecture="edgenext_xx_small", classes=("a", "b"), size=64, fit="pad", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    save_model(tmp_path / "whole.safetensors", create_model("edgenext_xx_small", 2), card)
    report = weights(
        WeightsConfig(model=tmp_path / "whole.safetensors", out=tmp_path / "thin.safetensors", sparsity=0.5)
    )
    assert report["proof"]["error"] <= report["proof"]["limit"]


def test_a_layer_without_anything_left_is_named(run, tmp_path):
    model, card = load_model(run / "best.safetensors")
    with torch.no_grad():
        model.conv_head.weight.mul_(1e-6)
    weak, out = tmp_path / "weak.safetensors", tmp_path / "pruned.safetensors"
    save_model(weak, model, card)
    report = weights(WeightsConfig(model=weak, out=out, sparsity=0.3))
    assert report["emptied"] == ["conv_head"]
    assert "nothing but zeros is left of conv_head" in table(report)


@pytest.mark.parametrize("sparsity", [0.0, 1e-9])
def test_nothing_to_prune(run, tmp_path, sparsity):
    with pytest.raises(NoEffectError):
        weights(WeightsConfig(model=run, out=tmp_path / "pruned.safetensors", sparsity=sparsity))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "--sparsity is missing"),
        ({"sparsity": 1.0}, "at least 0 and below 1"),
        ({"sparsity": -0.1}, "at least 0 and below 1"),
        ({"sparsity": float("nan")}, "at least 0 and below 1"),
        ({"sparsity": 0.8, "pattern": "2:4"}, "2:4 is half of the weights"),
        ({"sparsity": 0.8, "pattern": "1:2"}, "--pattern must be unstructured or 2:4"),
        ({"sparsity": 0.8, "scope": "all"}, "--scope must be global or layer"),
        ({"sparsity": 0.8, "layers": "nosuch.*"}, "names no layer; the network has conv_stem"),
        ({"sparsity": 0.8, "model": "nosuch"}, "does not exist"),
        ({"sparsity": 0.8, "out": "pruned.pt"}, "must end in .safetensors"),
    ],
)
def test_what_makes_no_sense(run, tmp_path, options, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"model": run, "out": tmp_path / "pruned.safetensors"} | options
    with pytest.raises(UsageError, match=words):
        weights(WeightsConfig(**paths | {name: Path(paths[name]) for name in ("model", "out")}))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (sparse(["nosuch"], "unstructured", 0.5), "there is no module nosuch"),
        (sparse(["bn1"], "unstructured", 0.5), "bn1 has no weight of two or more dimensions"),
        (sparse(["conv_stem"], "1:8", 0.5), "there is no pattern '1:8'"),
    ],
)
def test_an_edit_that_does_not_fit(edit, words):
    with pytest.raises(UsageError, match=words):
        apply_edits(create_model(NAME, 2), (edit,), "file")
