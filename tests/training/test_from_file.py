"""Training that starts from a model file: its architecture, what was done to it, and its weights."""

from dataclasses import replace

import pytest
import torch

from augment_cache.build import BuildConfig, build
from augment_cache.building.state import read_splits
from pipelines.errors import UsageError
from pipelines.opening import OpenOptions
from tests.training.runs import config, same_model, stop_at, weights
from training.engine.config import ModelConfig
from training.engine.data import open_data, trained_split, training_sources
from training.engine.optimization import OptimizerConfig, ScheduleConfig
from training.engine.preemption import PreemptedError
from training.model.edits.apply import apply_edits
from training.model.edits.remove import removed
from training.model.model_file import load_model, save_model
from training.train import make_network, train

GONE = "blocks.3.0.se"


@pytest.fixture(scope="module")
def pressed(cache, tmp_path_factory):
    """A run, and its model without a block."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(config(cache, out, schedule=ScheduleConfig(epochs=1, warmup_epochs=0)))
    model, card = load_model(out / "best.safetensors")
    apply_edits(model, [removed(GONE)], "test")
    path = out.parent / "pressed.safetensors"
    save_model(path, model, replace(card, edits=(removed(GONE),), provenance={"presses": [{"press": "layers"}]}))
    return path


def from_file(cache, out, name, weights=None, **changes):
    return config(cache, out, model=ModelConfig(name=str(name), weights=weights), **changes)


def test_it_goes_on_from_the_weights_of_the_file(cache, pressed, tmp_path):
    still = OptimizerConfig(name="sgd", lr=1e-12, weight_decay=0.0)
    changes = {"optimizer": still, "schedule": ScheduleConfig(epochs=1, warmup_epochs=0)}
    train(from_file(cache, tmp_path / "run", pressed, **changes))
    model, card = load_model(tmp_path / "run" / "last.safetensors")
    before = load_model(pressed)[0]
    assert card.edits == (removed(GONE),)
    assert card.architecture == "test_efficientnet"
    assert card.provenance["presses"] == [{"press": "layers"}]
    assert card.provenance["learned_from"] == "train"
    assert not list(model.get_submodule(GONE).parameters())
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, before.get_parameter(name), atol=1e-6), name


# Once a bug: the card forgot what the network had learned, and from whom, before this run.
def test_the_card_says_what_it_started_from(cache, pressed, tmp_path):
    short = {"schedule": ScheduleConfig(epochs=1, warmup_epochs=0)}
    model, card = load_model(pressed)
    taught = {"learned_from": "train", "weights": "x.pth", "teachers": [{"name": "big", "learned_from": "all"}]}
    save_model(tmp_path / "taught.safetensors", model, replace(card, provenance=taught))
    train(from_file(cache, tmp_path / "one", tmp_path / "taught.safetensors", **short))
    train(from_file(cache, tmp_path / "two", tmp_path / "one", **short))
    told = load_model(tmp_path / "two" / "last.safetensors")[1].provenance
    (one,) = told["starts"]
    (start,) = one["starts"]
    assert (one["name"], one["weights"]) == (str(tmp_path / "one"), None)
    assert {key: start[key] for key in taught} == taught


# Once a bug: the card spoke of options that a cache does not ask for, and images that were learned from became a test.
def test_the_card_says_how_the_cache_was_cut(photos, tmp_path):
    build(BuildConfig(data=photos, out=tmp_path / "cache", size=16, copies=0, engine="cpu", split_seed=7, test=0.2))
    data = config(tmp_path / "cache", tmp_path / "run")
    card = make_network(data, training_sources(data.data)[0]).card
    assert card.provenance["split"] == {"val": 0.15, "test": 0.2, "split_seed": 7}
    cut = read_splits(tmp_path / "cache")
    for split in ("val", "test"):
        (source,) = open_data(photos, (split,), OpenOptions(split=trained_split(card)))
        assert set(source.files) == {name for name, where in cut.items() if where == split}


# Once a bug: a run that was resumed after its weights had gone had learned from nothing.
def test_a_resumed_run_knows_what_it_started_from(cache, tmp_path, monkeypatch):
    everything = config(cache, tmp_path / "all", schedule=ScheduleConfig(epochs=1, warmup_epochs=0))
    train(replace(everything, data=replace(everything.data, train_on="all")))
    found = from_file(cache, tmp_path / "run", "test_efficientnet", str(tmp_path / "all"))
    with monkeypatch.context() as patched:
        stop_at(patched, 9)
        with pytest.raises(PreemptedError):
            train(found)
    (tmp_path / "all").rename(tmp_path / "elsewhere")
    train(found)
    for name in ("best.safetensors", "last.safetensors"):
        told = load_model(tmp_path / "run" / name)[1].provenance
        assert told["learned_from"] == "all"
        assert told["starts"][0]["learned_from"] == "all"


# Once a bug: without --data.size a pressed model was trained, and left, at the size of the cache.
def test_a_model_file_keeps_its_size(cache, pressed, tmp_path, capfd):
    model, card = load_model(pressed)
    short = {"schedule": ScheduleConfig(epochs=1, warmup_epochs=0)}
    for size, told in ((24, False), (40, True)):
        save_model(tmp_path / "file.safetensors", model, replace(card, size=size))
        train(from_file(cache, tmp_path / f"run{size}", tmp_path / "file.safetensors", **short))
        assert load_model(tmp_path / f"run{size}" / "last.safetensors")[1].size == size
        assert ("holds images of 32 px, enlarged to 40" in capfd.readouterr().err) == told


def test_a_run_folder_means_its_best_model(cache, pressed, tmp_path):
    train(
        from_file(cache, tmp_path / "run", pressed.parent / "whole", schedule=ScheduleConfig(epochs=1, warmup_epochs=0))
    )
    assert load_model(tmp_path / "run" / "last.safetensors")[1].edits == ()


def test_random_weights_in_the_architecture_of_a_file(cache, pressed, tmp_path):
    one = {"schedule": ScheduleConfig(epochs=1, warmup_epochs=0)}
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(from_file(cache, tmp_path / out, pressed, weights="random", seed=seed, **one))
    train(from_file(cache, tmp_path / "own", pressed, **one))
    assert same_model(tmp_path / "a", tmp_path / "b")
    assert not same_model(tmp_path / "a", tmp_path / "c")
    assert weights(tmp_path / "a" / "last.safetensors").keys() == weights(pressed).keys()
    own, drawn = (weights(tmp_path / out / "last.safetensors") for out in ("own", "a"))
    name, start = next((n, v) for n, v in weights(pressed).items() if v.ndim == 4)
    assert (own[name] - start).norm() < (drawn[name] - start).norm()


def test_a_stopped_run_ends_with_the_same_weights(cache, pressed, tmp_path, monkeypatch):
    whole, cut = (from_file(cache, tmp_path / name, pressed) for name in ("whole", "cut"))
    train(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(PreemptedError):
            train(cut)
    assert train(cut)["resumed_at"] > 0
    assert same_model(tmp_path / "whole", tmp_path / "cut")


def test_what_does_not_go(cache, pressed, tmp_path):
    model, card = load_model(pressed)
    other = tmp_path / "other.safetensors"
    save_model(other, model, replace(card, classes=("x", "y", "z")))
    with pytest.raises(UsageError, match="tells x, y, z apart, the data has blue, green, red"):
        train(from_file(cache, tmp_path / "run", other))
    with pytest.raises(UsageError, match="does not exist"):
        train(from_file(cache, tmp_path / "run", tmp_path / "nosuch.safetensors"))
    inside = tmp_path / "run" / "mine.safetensors"
    inside.parent.mkdir(exist_ok=True)
    inside.write_bytes(pressed.read_bytes())
    with pytest.raises(UsageError, match=r"--model\.name .* lies in --out"):
        train(from_file(cache, tmp_path / "run", inside))
    assert inside.is_file()
