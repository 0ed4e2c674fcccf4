"""Zeros that stay: training from a pruned file, and gradual pruning."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import nn
from torch.nn.utils import prune as torch_prune

from pipelines.errors import UsageError
from tests.training.runs import config, same_model, srun, stop_at, untimed, weights
from training.distill import distill
from training.distillation.options import DistillConfig, MethodConfig
from training.engine.checkpoint import Checkpoints
from training.engine.config import EmaConfig, ModelConfig, SaveConfig, StopConfig
from training.engine.optimization import OptimizerConfig, ScheduleConfig
from training.engine.preemption import PreemptedError
from training.engine.sparsity import Sparsity, SparsityConfig, cubic_sparsity, groups_of, grow, sparsity_of
from training.model.edits.sparse import Rule, prunable, sparse
from training.model.model_file import load_model, read_card, save_model
from training.train import train

SHORT = ScheduleConfig(epochs=2, warmup_epochs=0.5)
ONE = ScheduleConfig(epochs=1, warmup_epochs=0.5)
GRADUAL = SparsityConfig(final=0.8, begin=0.2, end=0.7, every=2)
"""Of 14 steps: after 3, 5, 7, 9 and 10."""


@pytest.fixture(scope="module")
def dense(cache, tmp_path_factory):
    """A run of one epoch."""
    out = tmp_path_factory.mktemp("dense") / "run"
    train(config(cache, out, schedule=ONE))
    return out


@pytest.fixture(scope="module")
def pruned(dense, tmp_path_factory):
    """Its model with 0.7 of the weights at zero; the classifier has zeros too, but the edit does not name it."""
    path = tmp_path_factory.mktemp("pruned") / "pruned.safetensors"
    model, card = load_model(dense / "last.safetensors")
    masks = masks_at(model, 0.7)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight.masked_fill_(mask, 0)
        model.classifier.weight[:, :7] = 0
    save_model(path, model, replace(card, edits=(sparse(list(masks), "unstructured", 0.7),)))
    return path


def masks_at(model, share):
    found, _ = prunable(model, Rule())
    return grow(found, {path: torch.zeros_like(w, dtype=torch.bool) for path, w in found.items()}, share, Rule())


def zeros(path):
    """Module path → which weights of a model file are zero."""
    model, _ = load_model(path)
    return {name: model.get_submodule(name).weight.detach() == 0 for name in prunable(model, Rule())[0]}


def total(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def size(masks):
    return sum(mask.numel() for mask in masks.values())


def from_file(cache, out, path, **changes):
    return config(cache, out, model=ModelConfig(name=str(path), drop_rate=0.2), **changes)


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.0), (9, 0.0), (10, 0.1), (35, 0.5625), (60, 0.8), (109, 0.8999992), (110, 0.9), (500, 0.9)],
)
def test_the_cubic_schedule(step, share):
    """0.9 + (0.1 - 0.9) (1 - t)^3 with t = 0.25, 0.5, 0.99."""
    assert cubic_sparsity(step, 10, 110, 0.1, 0.9) == pytest.approx(share, abs=1e-9)


VARIANTS = {
    "adamw, averaged": {"ema": EmaConfig(decay=0.9)},
    "momentum, bfloat16, accumulated": {
        "precision": "bf16",
        "accumulate": 2,
        "optimizer": OptimizerConfig(name="sgd", lr=0.05, weight_decay=0.1),
    },
    "lookahead": {"optimizer": OptimizerConfig(name="lookahead_adamw", lr=5e-3)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_zeros_of_a_pruned_file_stay(cache, pruned, tmp_path, variant):
    out = tmp_path / "run"
    train(from_file(cache, out, pruned, schedule=ONE, **VARIANTS[variant]))
    before, card = zeros(pruned), read_card(pruned)
    for name in ("last.safetensors", "best.safetensors"):
        after = zeros(out / name)
        assert all(torch.equal(after[path], mask) for path, mask in before.items())
        assert read_card(out / name).edits == card.edits
    old, new = weights(pruned), weights(out / "last.safetensors")
    moved = {path: old[f"{path}.weight"] != new[f"{path}.weight"] for path in before}
    assert all(torch.equal(changed, ~before[path]) for path, changed in moved.items())
    assert (new["classifier.weight"][:, :7] != 0).all()
    checkpoint = Checkpoints(out).load(pytest.fail)
    states = [checkpoint["model"], *([checkpoint["ema"]] if checkpoint["ema"] else [])]
    for path, mask in before.items():
        assert all((state[f"{path}.weight"][mask] == 0).all() for state in states)
        assert torch.equal(checkpoint["sparsity"][path], mask)


def test_an_edit_without_zeros_is_the_run_without_it(cache, dense, tmp_path):
    """The seam itself changes no bit."""
    model, card = load_model(dense / "last.safetensors")
    for name, edits in {"plain": (), "named": (sparse(["conv_head", "conv_stem"], "unstructured", 0.5),)}.items():
        save_model(tmp_path / f"{name}.safetensors", model, replace(card, edits=edits))
        changes = {"schedule": ONE, "ema": EmaConfig(decay=0.9)}
        train(from_file(cache, tmp_path / name, tmp_path / f"{name}.safetensors", **changes))
    assert same_model(tmp_path / "plain", tmp_path / "named")
    assert untimed(tmp_path / "plain") == untimed(tmp_path / "named")
    plain, named = (Checkpoints(tmp_path / name).load(pytest.fail) for name in ("plain", "named"))
    assert "sparsity" not in plain
    assert "sparsity" in named


def test_gradual_pruning_step_by_step(cache, tmp_path):
    """Exact counts after each step, nothing comes back, and the zeros stand still after the end."""
    out = tmp_path / "run"
    report = train(config(cache, out, schedule=SHORT, sparsity=GRADUAL, save=SaveConfig(steps=1, keep=99)))
    found = {int(path.name[5:13]): torch.load(path, weights_only=True) for path in Checkpoints(out).paths()}
    masks = {step: checkpoint["sparsity"] for step, checkpoint in found.items()}
    count = size(masks[0])
    expected = 0
    for step in range(15):
        if step in (3, 5, 7, 9, 10):
            expected = round(count * cubic_sparsity(step, 3, 10, 0.0, 0.8))
        assert total(masks[step]) == expected, step
        for path, mask in masks[step].items():
            assert (found[step]["model"][f"{path}.weight"][mask] == 0).all()
            assert step == 0 or mask[masks[step - 1][path]].all()
    assert expected == round(0.8 * count)
    assert all(torch.equal(mask, masks[14][path]) for path, mask in zeros(out / "last.safetensors").items())
    assert report["best_epoch"] == 2
    assert total(zeros(out / "best.safetensors")) == round(0.8 * count)
    (edit,) = read_card(out / "best.safetensors").edits
    assert edit == sparse(list(masks[0]), "unstructured", 0.8)
    assert "classifier" not in edit["modules"]


def test_going_on_from_the_file_of_a_gradual_run_keeps_its_zeros(cache, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train(config(cache, first, schedule=ONE, sparsity=replace(GRADUAL, every=1)))
    train(from_file(cache, second, first, schedule=ONE, sparsity=replace(GRADUAL, final=0.9, every=1)))
    one, two = zeros(first / "best.safetensors"), zeros(second / "last.safetensors")
    assert total(two) == round(0.9 * size(two)) > total(one) == round(0.8 * size(one))
    assert all(two[path][mask].all() for path, mask in one.items())
    assert [edit["sparsity"] for edit in read_card(second / "last.safetensors").edits] == [0.8, 0.9]
    third = tmp_path / "third"  # what is reached already is held
    train(from_file(cache, third, first, schedule=ONE, sparsity=replace(GRADUAL, final=0.5)))
    assert all(
        torch.equal(mask, zeros(first / "best.safetensors")[path])
        for path, mask in zeros(third / "last.safetensors").items()
    )


def test_the_best_epoch_has_all_zeros(cache, tmp_path):
    """Earlier ones score better, but are not what was asked for; and patience waits for the end."""
    sparsity = SparsityConfig(final=0.99, begin=0.0, end=0.7, every=1, scope="layer")
    options = config(cache, tmp_path, schedule=ScheduleConfig(epochs=4, warmup_epochs=0.5), sparsity=sparsity)
    report = train(replace(options, stop=StopConfig(patience=1, min_delta=1.0)))
    assert (report["best_epoch"], report["epochs"], report["stopped_early"]) == (3, 4, True)
    scores = [line["val_macro_f1"] for line in untimed(tmp_path)]
    assert report["val_macro_f1"] == scores[2]
    found = zeros(tmp_path / "best.safetensors")
    assert {path: int(mask.sum()) for path, mask in found.items()} == {
        path: round(0.99 * mask.numel()) for path, mask in found.items()
    }


FROM_PRUNED = ("kept", "reached")
"""Variants that begin with the pruned file."""

RESUMED = {
    "kept": {"ema": EmaConfig(decay=0.9)},
    "reached": {"sparsity": replace(GRADUAL, final=0.5)},
    "gradual": {"sparsity": GRADUAL, "ema": EmaConfig(decay=0.9)},
    "2:4": {
        "sparsity": replace(GRADUAL, final=0.5, pattern="2:4", scope="layer", every=3),
        "precision": "bf16",
        "accumulate": 2,
    },
}


@pytest.fixture(scope="module")
def straight(cache, pruned, tmp_path_factory):
    """Runs that nothing disturbed, by variant."""
    outs = {name: tmp_path_factory.mktemp("straight") / "run" for name in RESUMED}
    for name, out in outs.items():
        train(options_of(cache, out, pruned, name))
    return outs


def options_of(cache, out, pruned, variant):
    options = config(cache, out, schedule=SHORT, **RESUMED[variant])
    return replace(options, model=ModelConfig(name=str(pruned), drop_rate=0.2)) if variant in FROM_PRUNED else options


def stopped(options, step, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(PreemptedError):
            train(options)


@pytest.mark.parametrize("variant", RESUMED)
@pytest.mark.parametrize("step", [5, 11])
def test_a_run_with_zeros_goes_on_exactly(cache, pruned, straight, tmp_path, monkeypatch, variant, step):
    options = options_of(cache, tmp_path, pruned, variant)
    stopped(options, step, monkeypatch)
    assert train(options)["resumed_at"] == step + 1
    assert untimed(tmp_path) == untimed(straight[variant])
    assert same_model(tmp_path, straight[variant])
    assert same_model(tmp_path, straight[variant], "best.safetensors")
    assert read_card(tmp_path / "last.safetensors").edits == read_card(straight[variant] / "last.safetensors").edits


def test_two_of_four_in_the_end(straight):
    model, card = load_model(straight["2:4"] / "last.safetensors")
    assert card.edits[0]["modules"]
    for path in card.edits[0]["modules"]:
        assert groups_of(model.get_submodule(path).weight == 0).sum(1).eq(2).all()


def test_a_checkpoint_that_knows_no_zeros_finds_them_in_its_weights(cache, pruned, straight, tmp_path, monkeypatch):
    options = options_of(cache, tmp_path, pruned, "kept")
    stopped(options, 5, monkeypatch)
    checkpoints = Checkpoints(tmp_path)
    state = checkpoints.load(pytest.fail)
    del state["sparsity"], state["version"]
    checkpoints.save(6, state)
    assert train(options)["resumed_at"] == 6
    assert same_model(tmp_path, straight["kept"])


def test_a_run_without_zeros_may_not_become_one_with_them(cache, tmp_path, monkeypatch):
    options = config(cache, tmp_path, schedule=ONE)
    stopped(options, 3, monkeypatch)
    with pytest.raises(UsageError, match=r"sparsity\.final was 0\.0, now 0\.8"):
        train(replace(options, sparsity=SparsityConfig(final=0.8)))


def test_a_live_weight_that_is_zero_is_no_pruned_one():
    network = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight[0, 0] = 0
    edits = (sparse(["0"], "unstructured", 0.1),)
    first = Sparsity(network, None, edits, SparsityConfig())
    stored = copy.deepcopy(first.state_dict())
    with torch.no_grad():
        network[0].weight[1, 1] = 0
    second = Sparsity(network, None, edits, SparsityConfig())
    second.load_state_dict(stored)
    with torch.no_grad():
        network[0].weight.fill_(3.0)
    second.after_step(1)
    assert network[0].weight.tolist() == [[0, 3, 3, 3], [3, 3, 3, 3]]
    with pytest.raises(UsageError, match="zeros of other layers"):
        second.load_state_dict({"0": torch.zeros(2, 2, dtype=torch.bool)})


def test_training_is_that_of_the_masked_network():
    """Gradients of pruned weights count nowhere: not in clipping, not in the optimizer's averages."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    zero = {"0": torch.rand(8, 6) < 0.6, "2": torch.rand(3, 8) < 0.6}
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for path, mask in zero.items():
            network.get_submodule(path).weight.masked_fill_(mask, 0)
    sparsity = Sparsity(network, None, (sparse(list(zero), "unstructured", 0.6),), SparsityConfig())
    for path, mask in zero.items():
        torch_prune.custom_from_mask(twin.get_submodule(path), "weight", ~mask)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.05) for model in (network, twin)]
    for number in range(8):
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        for model, optimizer in zip((network, twin), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if model is network:
                sparsity.clear_gradients()
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
        sparsity.after_step(number + 1)
        torch.testing.assert_close(network(x), twin(x), rtol=0, atol=1e-6)


def test_networks_without_zeros_have_no_such_thing():
    network = nn.Sequential(nn.Linear(4, 2))
    assert sparsity_of(network, None, (), SparsityConfig()) is None
    assert sparsity_of(network, None, (sparse([], "unstructured", 0.1),), SparsityConfig()) is None


def test_frozen_layers_and_parts_of_training_are_left_alone(cache, tmp_path):
    options = DistillConfig(
        **{name: getattr(config(cache, tmp_path), name) for name in ("data", "optimizer", "trackers", "out")},
        model=ModelConfig(name="test_efficientnet", freeze="conv_stem,bn1"),
        method=MethodConfig(name="auxiliary", layers="blocks.1,blocks.2", alpha=0.5),
        schedule=ONE,
        ema=EmaConfig(decay=0.9),
        sparsity=replace(GRADUAL, layers="conv_stem,conv_head", every=1),
    )
    distill(options)
    found = zeros(tmp_path / "last.safetensors")
    assert read_card(tmp_path / "last.safetensors").edits[0]["modules"] == ["conv_head"]
    assert {path for path, mask in found.items() if mask.any()} == {"conv_head"}
    assert int(found["conv_head"].sum()) == round(0.8 * found["conv_head"].numel())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"final": 1.0}, r"--sparsity\.final must be 0 to 0\.999"),
        ({"initial": 0.1}, r"--sparsity\.initial must be 0 to 0\.0, got 0\.1"),
        ({"final": 0.5, "begin": 0.8}, r"--sparsity\.begin 0\.8 must be before --sparsity\.end 0\.8"),
        ({"final": 0.5, "end": 1.1}, r"--sparsity\.end"),
        ({"final": 0.5, "every": 0}, r"--sparsity\.every"),
        ({"final": 0.8, "pattern": "2:4"}, r"give --sparsity\.final 0\.5, not 0\.8"),
        ({"final": 0.5, "scope": "all"}, r"--sparsity\.scope must be global or layer"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(UsageError, match=words):
        SparsityConfig(**options)


def test_no_layer_to_prune(cache, tmp_path):
    with pytest.raises(UsageError, match=r"--sparsity\.final 0\.8 finds no layer to prune"):
        train(config(cache, tmp_path / "run", sparsity=replace(GRADUAL, layers="nosuch")))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_all_processes_prune_the_same(cache, tmp_path):
    """The program below compares the masks of the processes after each step."""
    out = tmp_path / "run"
    _, errors = srun(
        2,
        "tests.training.test_sparsity",
        *("--data.path", cache, "--data.engine", "cpu", "--data.batch_size", "16", "--out", out, "--trackers", ""),
        *(
            "--model.name",
            "test_efficientnet",
            "--optimizer.lr",
            "0.005",
            "--schedule.epochs",
            "2",
            "--ema.decay",
            "0.9",
        ),
        *("--schedule.warmup_epochs", "0.5", "--sparsity.final", "0.8", "--sparsity.begin", "0.2"),
        *("--sparsity.end", "0.7", "--sparsity.every", "2"),
    )
    assert "2 processes" in errors[0]
    found = zeros(out / "last.safetensors")
    assert total(found) == round(0.8 * size(found))


def _compared(self, done, after=Sparsity.after_step):
    """`Sparsity.after_step`, and a look at what the other processes have."""
    after(self, done)
    masks = self.state_dict()
    told = [(path, mask.nonzero().tolist()) for path, mask in masks.items()]
    weights = [(path, weight.detach().double().sum().item()) for path, weight in self._weights.items()]
    everybody = gather_object([(told, weights)])
    assert dist.get_world_size() == len(everybody) == 2
    assert all(one == other for one, other in itertools.pairwise(everybody))


if __name__ == "__main__":
    from training.train import main

    Sparsity.after_step = _compared
    main()
