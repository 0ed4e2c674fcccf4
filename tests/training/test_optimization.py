"""Optimizers, frozen parts, and the learning rate of each step."""

import json
import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler, TanhLRScheduler
from torch import nn

from pipelines.console.parser import make_parser, parse
from pipelines.errors import UsageError
from training.engine.optimization import (
    ALL_BUT_CLASSIFIER,
    OptimizerConfig,
    Schedule,
    ScheduleConfig,
    freeze,
    keep_frozen_in_eval,
    layer_depths,
    make_optimizer,
)
from training.model.create import create_model

NAMES = ["cosine", "onecycle", "plateau", "step", "multistep", "poly", "tanh", "constant"]
STEPS = 7
PEAK = 0.02


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


@pytest.fixture(scope="module")
def efficientnet():
    return timm.create_model("test_efficientnet", num_classes=3)


@pytest.fixture(scope="module")
def vit():
    return timm.create_model("test_vit", num_classes=3)


def groups_of(model, optimizer):
    """What the optimizer does with each parameter, by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def single(lr=PEAK):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(config, steps=STEPS, peak=PEAK):
    schedule = Schedule(single(), config, peak, steps)
    result = []
    for step in range(config.epochs * steps):
        schedule.set(step)
        assert schedule.optimizer.param_groups[0]["lr"] == schedule.rate
        result.append(schedule.rate)
    return result


# ---- optimizers


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "AdamW", "lookahead_adamw", "muon"])
def test_optimizers_of_timm_learn(name):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = make_optimizer(model, OptimizerConfig(name=name, lr=0.05))
    images, labels = torch.randn(32, 4), torch.arange(32) % 2
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(images + labels[:, None]), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("layer_decay", [None, 0.7])
@pytest.mark.parametrize("model_name", ["efficientnet", "vit"])
def test_groups_of_timm_models_are_those_of_timm(model_name, layer_decay, name, request):
    model = request.getfixturevalue(model_name)
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.3, momentum=0.8, layer_decay=layer_decay)
    ours = make_optimizer(model, config)
    theirs = create_optimizer_v2(model, name, lr=0.1, weight_decay=0.3, momentum=0.8, layer_decay=layer_decay)
    assert groups_of(model, ours) == groups_of(model, theirs)
    assert {type(ours)} == {type(theirs)}
    assert ours.defaults | {"weight_decay": 0} == theirs.defaults | {"weight_decay": 0}
    assert len(groups_of(model, ours)) == len(list(model.parameters()))


def test_without_layer_decay_groups_come_in_timms_order(efficientnet):
    ours = make_optimizer(efficientnet, OptimizerConfig())
    theirs = create_optimizer_v2(efficientnet, "adamw", lr=2e-3, weight_decay=0.05)
    assert [group["params"] for group in ours.param_groups] == [group["params"] for group in theirs.param_groups]


def test_biases_and_normalisation_are_not_decayed():
    model = network()
    groups = groups_of(model, make_optimizer(model, OptimizerConfig(weight_decay=0.3)))
    assert {name for name, (decay, _) in groups.items() if decay == 0.3} == {"0.weight", "2.0.weight", "4.weight"}
    assert {decay for decay, _ in groups.values()} == {0.0, 0.3}


def test_layer_decay_of_any_network():
    model = network()
    depths = layer_depths(model)
    assert depths["0.weight"] == depths["0.bias"] == depths["1.weight"] == 0  # a norm goes with its convolution
    assert depths["2.0.weight"] == depths["2.1.bias"] == 1  # chains are looked into
    assert depths["4.weight"] == 2
    groups = groups_of(model, make_optimizer(model, OptimizerConfig(layer_decay=0.5)))
    assert {name: scale for name, (_, scale) in groups.items() if name.endswith("weight")} == {
        "0.weight": 0.25,
        "1.weight": 0.25,
        "2.0.weight": 0.5,
        "2.1.weight": 0.5,
        "4.weight": 1.0,
    }


def test_a_network_inside_another_has_layers_too():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 3))
            self.body = network()

    depths = layer_depths(Wrapper())
    assert (depths["token"], depths["body.0.weight"], depths["body.4.weight"]) == (0, 0, 2)
    nested = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert [layer_depths(nested)[f"{path}.weight"] for path in ("0", "1.0", "1.1")] == [0, 1, 2]
    assert layer_depths(nn.Linear(2, 2)) == {"weight": 0, "bias": 0}


def test_frozen_parameters_are_left_out(efficientnet):
    model = network()
    freeze(model, ["0", "2"])
    assert set(groups_of(model, make_optimizer(model, OptimizerConfig()))) == {
        "1.weight", "1.bias", "4.weight", "4.bias",
    }  # fmt: skip
    freeze(model, ["1", "4"])
    with pytest.raises(UsageError, match="no parameter left to train"):
        make_optimizer(model, OptimizerConfig())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "adamv"}, r"--optimizer\.name adamv is unknown; did you mean .*adamw"),
        ({"name": "foo"}, r"--optimizer\.name foo is unknown"),
        ({"name": "foo_adamw"}, r"--optimizer\.name foo_adamw is unknown"),  # timm would take it
        ({"name": "adahessian"}, "second derivatives"),
        ({"name": "fusedadam"}, r"--optimizer\.name fusedadam cannot be"),
        ({"name": "fusedadam", "options": {"eps": 1e-6}}, r"--optimizer\.name fusedadam cannot be"),
        ({"options": {"beta": 0.9}}, r"--optimizer\.options has beta, which adamw does not take; it takes .*betas"),
        ({"name": "sgd", "options": {"eps": 1e-6}}, "has eps, which sgd does not take"),  # timm would drop it
        ({"name": "lion", "options": {"eps": 1e-6}}, "has eps, which lion does not take"),
        ({"options": {"maximize": True}}, "has maximize, which adamw does not take"),  # it does, but nobody can want it
        ({"options": {"lr": 0.1}}, r"give it as --optimizer\.lr"),
        ({"options": {"betas": [2.0, 0.9]}}, r"--optimizer\.options \{'betas': \(2\.0, 0\.9\)\} cannot be made"),
        ({"options": {"betas": "much"}}, "cannot be made"),
    ],
)
def test_optimizers_that_cannot_be_made(changes, words):
    with pytest.raises(UsageError, match=words):
        make_optimizer(nn.Linear(2, 2), OptimizerConfig(**changes))


def test_options_reach_the_optimizer():
    config = OptimizerConfig(options={"betas": [0.8, 0.95], "eps": 1e-5, "amsgrad": True})
    defaults = make_optimizer(nn.Linear(2, 2), config).defaults
    assert (defaults["betas"], defaults["eps"], defaults["amsgrad"]) == ((0.8, 0.95), 1e-5, True)
    lookahead = OptimizerConfig(name="lookahead_sgd", momentum=0.7, options={"nesterov": False})
    group = make_optimizer(nn.Linear(2, 2), lookahead).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.7, False)


def test_options_keep_their_types_on_the_command_line():
    parser = make_parser(OptimizerConfig, name="x", summary="", example="")
    given = '{"betas": [0.8, 0.95], "eps": 1e-5, "amsgrad": true, "ns_steps": 5, "adjust_lr_fn": "original"}'
    config, _ = parse(parser, OptimizerConfig, ["--options", given])
    assert config.options == json.loads(given)
    assert [type(value) for value in config.options.values()] == [list, float, bool, int, str]
    config, _ = parse(make_parser(ScheduleConfig, name="x", summary="", example=""), ScheduleConfig,
                      ["--name", "multistep", "--milestones", "[10, 20.5]"])  # fmt: skip
    assert config.milestones == (10, 20.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.0}, r"--optimizer\.lr must be above 0, got 0\.0"),
        ({"lr": float("nan")}, r"--optimizer\.lr"),
        ({"weight_decay": -1.0}, r"--optimizer\.weight_decay must be at least 0, got -1\.0"),
        ({"momentum": 1.0}, r"--optimizer\.momentum must be at least 0 and below 1, got 1\.0"),
        ({"clip_norm": -1.0}, r"--optimizer\.clip_norm must be 0 to 1e9, got -1\.0"),
        ({"layer_decay": 0.0}, r"--optimizer\.layer_decay must be above 0 and at most 1, got 0\.0"),
    ],
)
def test_optimizer_options_out_of_range_name_themselves(changes, words):
    with pytest.raises(UsageError, match=words):
        OptimizerConfig(**changes)


# ---- freezing


def test_freezing_goes_by_whole_components():
    model = nn.Module()
    model.blocks = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    model.token = nn.Parameter(torch.zeros(1))
    modules = freeze(model, ["blocks.1", "token", "blocks.3.bias"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"blocks.1.weight", "blocks.1.bias", "token", "blocks.3.bias"}
    assert modules == [model.blocks[1]]


@pytest.mark.parametrize("prefix", ["block", "", "stem.", "blocks.99"])
def test_freezing_what_is_not_there_lists_what_is(efficientnet, prefix):
    with pytest.raises(UsageError, match=r"its parts are conv_stem, bn1, blocks, .*classifier"):
        freeze(efficientnet, [prefix])
    assert all(parameter.requires_grad for parameter in efficientnet.parameters())


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("test_efficientnet", {"classifier"}),
        ("shufflenet_g3_x025_conv", {"output"}),
        ("sum:test_efficientnet+test_efficientnet", {"student.classifier", "assistant.classifier"}),
    ],
)
def test_everything_but_the_classifier_stands_still(name, heads):
    """Its statistics, too."""
    model = create_model(name, 4)
    modules = freeze(model, [ALL_BUT_CLASSIFIER])
    moving = {path.rpartition(".")[0] for path, value in model.named_parameters() if value.requires_grad}
    assert moving == heads
    model.train()
    keep_frozen_in_eval(modules)
    assert not [
        path for path, module in model.named_modules() if module.training and isinstance(module, nn.BatchNorm2d)
    ]


def test_a_network_without_a_known_classifier_cannot_be_frozen_up_to_it():
    with pytest.raises(UsageError, match="the classifier of the network cannot be found"):
        freeze(network(), [ALL_BUT_CLASSIFIER])


def test_statistics_of_frozen_normalisation_stand_still():
    model = network()
    modules = freeze(model, ["0", "1"])
    before = model[1].running_mean.clone(), model[2][1].running_mean.clone()
    model.train()
    keep_frozen_in_eval(modules)
    model[:3](torch.randn(4, 3, 8, 8))
    assert torch.equal(model[1].running_mean, before[0])
    assert not torch.equal(model[2][1].running_mean, before[1])


# ---- schedules


@pytest.mark.parametrize(("epochs", "warmup"), [(30, 2.0), (4, 0.5), (1, 0), (3, 2.99), (2, 0.01)])
def test_cosine_is_what_it_always_was(epochs, warmup):
    config = ScheduleConfig(epochs=epochs, warmup_epochs=warmup)
    steps_of_warmup, optimizer = round(warmup * STEPS), single()
    old = CosineLRScheduler(
        optimizer,
        t_initial=max(epochs * STEPS - steps_of_warmup, 1),
        lr_min=PEAK * config.min_lr,
        warmup_t=steps_of_warmup,
        warmup_lr_init=PEAK * 0.01,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    expected = []
    for step in range(epochs * STEPS):
        old.step_update(step)
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(config) == expected


@pytest.mark.parametrize(
    ("name", "scheduler", "extra"),
    [("cosine", CosineLRScheduler, {}), ("poly", PolyLRScheduler, {"power": 0.9}), ("tanh", TanhLRScheduler, {})],
)
@pytest.mark.parametrize("mul", [1.0, 2.0])
def test_cycles_are_those_of_timm(name, scheduler, extra, mul):
    config = ScheduleConfig(name=name, epochs=10, warmup_epochs=1, cycles=2, cycle_mul=mul, cycle_decay=0.5, power=0.9)
    first = 9 * STEPS / (1 + mul)
    optimizer = single()
    theirs = scheduler(optimizer, t_initial=first, lr_min=PEAK * 0.01, cycle_mul=mul, cycle_decay=0.5, cycle_limit=2,
                       warmup_t=STEPS, warmup_lr_init=PEAK * 0.01, warmup_prefix=True, t_in_epochs=False,
                       **extra)  # fmt: skip
    ours = rates(config)
    for step, rate in enumerate(ours):
        theirs.step_update(step)
        assert rate == optimizer.param_groups[0]["lr"]
    assert ours[STEPS] == pytest.approx(PEAK, rel=1e-5)
    restart = STEPS + math.ceil(first)
    assert ours[restart - 1] < 0.1 * PEAK
    assert ours[restart] == pytest.approx(PEAK / 2, rel=0.1)


def test_one_cycle_is_that_of_torch():
    for epochs, warmup, min_lr in [(10, 3.0, 0.01), (4, 0.5, 0.001), (3, 0, 0.1), (10, 0.7, 0.04)]:
        optimizer = single()
        theirs = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=PEAK, total_steps=epochs * STEPS, pct_start=warmup / epochs, div_factor=25,
            final_div_factor=1 / (25 * min_lr), cycle_momentum=False, anneal_strategy="cos",
        )  # fmt: skip
        for rate in rates(ScheduleConfig(name="onecycle", epochs=epochs, warmup_epochs=warmup, min_lr=min_lr)):
            assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
            optimizer.step()
            if theirs.last_epoch < epochs * STEPS - 1:
                theirs.step()


def test_a_rise_of_one_step_is_none():
    ours = rates(ScheduleConfig(name="onecycle", epochs=2, warmup_epochs=1 / 8), steps=8)
    assert ours[0] == PEAK
    assert ours == sorted(ours, reverse=True)


def test_steps_are_those_of_timm_and_torch():
    config = ScheduleConfig(name="step", epochs=6, warmup_epochs=0.5, decay_epochs=2, decay_rate=0.5)
    optimizer = single()
    theirs = StepLRScheduler(
        optimizer, 2 * STEPS, 0.5, warmup_t=4, warmup_lr_init=PEAK * 0.01, warmup_prefix=False, t_in_epochs=False
    )
    for step, rate in enumerate(rates(config)):
        theirs.step_update(step)
        assert rate == optimizer.param_groups[0]["lr"]
    config = ScheduleConfig(name="multistep", epochs=6, warmup_epochs=0, milestones=(2, 3.5, 50), decay_rate=0.5)
    optimizer = single()
    milestones = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * STEPS, 24], 0.5)
    for rate in rates(config):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        milestones.step()


def test_falling_rates_stop_at_min_lr():
    ours = rates(ScheduleConfig(name="step", epochs=6, warmup_epochs=0, decay_epochs=1, decay_rate=0.1, min_lr=0.05))
    assert ours[::STEPS] == pytest.approx([PEAK, 0.1 * PEAK, *[0.05 * PEAK] * 4])


def test_constant_only_warms_up():
    ours = rates(ScheduleConfig(name="constant", epochs=3, warmup_epochs=1))
    assert ours[0] == pytest.approx(0.01 * PEAK)
    assert ours[STEPS:] == [PEAK] * 2 * STEPS
    assert ours[:STEPS] == sorted(set(ours[:STEPS]))


@settings(max_examples=30, deadline=None)
@given(scores=st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.50002, 0.5003, 0.9]), max_size=30), patience=st.integers(0, 4))
def test_plateau_is_that_of_torch_and_can_be_stored_anywhere(scores, patience):
    config = ScheduleConfig(name="plateau", epochs=40, warmup_epochs=0, decay_rate=0.5, patience=patience)
    optimizer = single()
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=patience, min_lr=PEAK * 0.01
    )
    schedule = Schedule(single(), config, PEAK, STEPS)
    for epoch, score in enumerate(scores):
        schedule.set(epoch * STEPS)
        assert schedule.rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        theirs.step(score)
        schedule.observe(score)
        state = json.loads(json.dumps(schedule.state_dict(), allow_nan=False))
        schedule = Schedule(schedule.optimizer, config, PEAK, STEPS)
        schedule.load_state_dict(state)
        assert schedule.state_dict() == state


def test_a_score_that_is_hardly_better_is_not():
    schedule = Schedule(single(), ScheduleConfig(name="plateau", patience=1, warmup_epochs=0), PEAK, STEPS)
    for score in (0.5, 0.50002, 0.50004):
        schedule.observe(score)
    schedule.set(STEPS)
    assert schedule.rate == pytest.approx(PEAK / 10)


def test_a_foreign_state_is_refused():
    with pytest.raises(UsageError, match="stored schedule"):
        Schedule(single(), ScheduleConfig(), PEAK, STEPS).load_state_dict({"last_epoch": 3})


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    epochs=st.integers(1, 6),
    warmup=st.sampled_from([0.0, 0.3, 0.99]),
    cycles=st.integers(1, 3),
    mul=st.sampled_from([0.5, 1.0, 1.7]),
    order=st.randoms(use_true_random=False),
)
def test_jumping_gives_the_rates_of_walking(name, epochs, warmup, cycles, mul, order):
    config = ScheduleConfig(
        name=name,
        epochs=epochs,
        warmup_epochs=warmup,
        cycles=cycles,
        cycle_mul=mul,
        milestones=(0.5, 2),
        decay_rate=0.5,
    )
    walked = rates(config)
    assert all(math.isfinite(rate) and 0 < rate <= PEAK * (1 + 1e-12) for rate in walked)
    assert all(rate >= PEAK * config.min_lr * (1 - 1e-9) for rate in walked)
    schedule = Schedule(single(lr=123.0), config, PEAK, STEPS)  # whatever a loaded state has put there
    steps = list(range(len(walked)))
    order.shuffle(steps)
    for step in steps:
        schedule.observe(0.5) if name != "plateau" else None
        schedule.set(step)
        assert schedule.rate == walked[step]
    schedule.set(100 * len(walked))  # steps too far do no harm
    assert PEAK * config.min_lr * (1 - 1e-9) <= schedule.rate <= PEAK
    assert schedule.rate == walked[-1] or name != "onecycle"


@pytest.mark.parametrize("name", NAMES)
def test_every_group_gets_its_share(name):
    model = network()
    optimizer = make_optimizer(model, OptimizerConfig(lr=PEAK, layer_decay=0.5))
    schedule = Schedule(optimizer, ScheduleConfig(name=name, milestones=(1,)), PEAK, STEPS)
    for step in (0, 20, 100):
        schedule.set(step)
        assert {group["lr"] / schedule.rate for group in optimizer.param_groups} == {0.25, 0.5, 1.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "linear"}, r"--schedule\.name must be one of cosine.*got linear"),
        ({"epochs": 0}, r"--schedule\.epochs must be above 0, got 0"),
        ({"warmup_epochs": 30}, r"--schedule\.warmup_epochs 30 must be shorter than --schedule\.epochs 30"),
        ({"warmup_epochs": -1}, r"--schedule\.warmup_epochs -1"),
        ({"min_lr": 1.5}, r"--schedule\.min_lr must be 0 to 1, got 1\.5"),
        ({"cycles": 0}, r"--schedule\.cycles must be 1 to 1000, got 0"),
        ({"cycle_mul": 0.0}, r"--schedule\.cycle_mul must be 0\.1 to 10"),
        ({"cycle_decay": 0.0}, r"--schedule\.cycle_decay must be above 0"),
        ({"cycle_decay": 0.1, "cycles": 4}, r"--schedule\.cycle_decay 0\.1 puts the peak of cycle 4 below"),
        ({"decay_epochs": 0.0}, r"--schedule\.decay_epochs must be above 0"),
        ({"name": "multistep"}, r"needs --schedule\.milestones"),
        ({"milestones": (5.0, 3.0)}, r"--schedule\.milestones must be above 0, ascending, .*got \(5\.0, 3\.0\)"),
        ({"milestones": (0.0,)}, r"--schedule\.milestones"),
        ({"milestones": (1.0, float("inf"))}, r"--schedule\.milestones must be above 0, ascending, and at most"),
        ({"milestones": (float("nan"),)}, r"--schedule\.milestones"),
        ({"decay_epochs": float("inf")}, r"--schedule\.decay_epochs must be above 0 and at most 1,000,000, got inf"),
        ({"cycles": 1000, "cycle_mul": 10.0}, r"--schedule\.cycle_mul 10\.0 makes one of 1000 cycles more than"),
        ({"decay_rate": 0.0}, r"--schedule\.decay_rate must be above 0 and at most 1, got 0\.0"),
        ({"patience": -1}, r"--schedule\.patience must be at least 0, got -1"),
        ({"power": 0.0}, r"--schedule\.power must be above 0"),
    ],
)
def test_schedule_options_out_of_range_name_themselves(changes, words):
    with pytest.raises(UsageError, match=words):
        ScheduleConfig(**changes)
