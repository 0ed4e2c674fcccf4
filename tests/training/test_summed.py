"""Two networks as one: what it costs, what it says, and that it lives like any other."""

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.errors import UsageError
from training.measure.macs import count_macs
from training.model.card import ModelCard
from training.model.classifier import classifier_names
from training.model.create import create_model, preprocessing
from training.model.model_file import load_model, save_model
from training.model.names import definition_of, resolve
from training.model.onnx_file import export_onnx
from training.model.start import start_from
from training.model.summed import SummedModel
from training.runtimes.onnx_runtime import OnnxRuntime

STUDENT, ASSISTANT = "shufflenet_g3_x025_2_5_2", "shufflenet_g3_x025_1_1_1"
SEEDS = f"sum:{STUDENT}+{ASSISTANT}"
TIMM = "sum:test_efficientnet+test_efficientnet"
GOLDEN = ((937_830, 34_422), (506_070, 10_527))
"""MACs and parameters of the two at 80 px with 9 classes, with a convolution for a classifier."""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def card(name, classes=("a", "b", "c"), size=40):
    mean, std = preprocessing(create_model(name, len(classes)))
    return ModelCard(architecture=name, classes=classes, size=size, fit="pad", mean=mean, std=std)


def unlike(model):
    """The model with statistics and classifiers that are not those of a fresh one."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif any(name.startswith(head) for head in classifier_names(model)):
                tensor.normal_(0, 0.2)
    return model.eval()


@pytest.mark.parametrize("names", [(STUDENT, ASSISTANT), ("test_efficientnet", "pytorchcv:" + ASSISTANT)])
def test_says_the_sum_of_what_the_two_say(names):
    parts = [unlike(create_model(name, 4)) for name in names]
    model = create_model(f"sum:{'+'.join(names)}", 4).eval()
    model.student.load_state_dict(parts[0].state_dict())
    model.assistant.load_state_dict(parts[1].state_dict())
    images = torch.randn(3, 3, 40, 40)
    said = model(images)
    assert said.shape == (3, 4)
    assert torch.equal(said, parts[0](images) + parts[1](images))
    for part in parts:
        assert not torch.allclose(said, part(images))


def test_costs_the_sum_of_what_the_two_cost():
    """And fits into the budget of the seed network, which residual distillation carves it from."""
    report = count_macs(create_model(SEEDS, 9).to("meta"), 80)
    budget = count_macs(create_model("shufflenet_g3_wd4", 9).to("meta"), 80)
    biases = 2 * 9  # a linear classifier has as many more than a convolution
    assert (report.macs, report.parameters) == (
        sum(macs for macs, _ in GOLDEN),
        sum(parameters for _, parameters in GOLDEN) + biases,
    )
    assert report.macs <= budget.macs
    assert report.parameters <= budget.parameters
    convolutions = count_macs(create_model(f"sum:{STUDENT}_conv+{ASSISTANT}_conv", 9).to("meta"), 80)
    assert (convolutions.macs, convolutions.parameters) == (report.macs, report.parameters - biases)


@pytest.mark.parametrize("name", [SEEDS, TIMM])
def test_comes_back_from_its_file_by_name(tmp_path, name):
    model, about = unlike(create_model(name, 3)), card(name)
    save_model(tmp_path / "model.safetensors", model, about)
    loaded, read = load_model(tmp_path / "model.safetensors")
    assert read == about
    assert read.definition is definition_of(name) is None
    assert isinstance(loaded, SummedModel)
    images = torch.randn(2, 3, 40, 40)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(
    ("name", "head"), [(SEEDS, "output"), (TIMM, "classifier"), (f"sum:{STUDENT}_conv+{ASSISTANT}_conv", "output")]
)
def test_both_classifiers_are_found_and_start_near_zero(name, head):
    model = create_model(name, 6)
    heads = classifier_names(model)
    assert heads == (f"student.{head}", f"assistant.{head}")
    for path in heads:
        layer = model.get_submodule(path)
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.15)
        assert layer.bias is None or not layer.bias.any()
    logits = model(torch.randn(16, 3, 64, 64))
    assert nn.functional.cross_entropy(logits, torch.arange(16) % 6) < 2.0


@pytest.mark.parametrize("name", [SEEDS, TIMM])
@pytest.mark.parametrize("classes", [("a", "b", "c", "d"), ("x", "y", "z")])
def test_keeps_both_classifiers_where_it_starts_from_other_classes(tmp_path, name, classes):
    donor = unlike(create_model(name, 3))
    save_model(tmp_path / "donor.safetensors", donor, card(name))
    model = create_model(name, len(classes))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    start_from(model, name, str(tmp_path / "donor.safetensors"), classes)
    heads = tuple(f"{head}." for head in classifier_names(model))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith(heads) else donor.state_dict()[key]), key


def test_takes_both_classifiers_where_it_starts_from_the_same_classes(tmp_path):
    donor = unlike(create_model(SEEDS, 3))
    save_model(tmp_path / "donor.safetensors", donor, card(SEEDS))
    model = create_model(SEEDS, 3).eval()
    start_from(model, SEEDS, str(tmp_path / "donor.safetensors"), ("a", "b", "c"))
    images = torch.randn(2, 3, 40, 40)
    assert torch.equal(model(images), donor(images))


def test_answers_the_same_as_an_onnx_file(tmp_path):
    name = f"sum:{ASSISTANT}+{ASSISTANT}_conv"
    model, about = unlike(create_model(name, 3)), card(name)
    export_onnx(tmp_path / "model.onnx", model, about)
    levels = np.random.default_rng(1).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (about.mean, about.std))
    with torch.inference_mode():
        expected = model((torch.from_numpy(levels).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    runtime = OnnxRuntime(tmp_path / "model.onnx")
    assert runtime.card == about
    np.testing.assert_allclose(runtime.logits(levels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "mean"), [(SEEDS, 0.485), (TIMM, 0.485), ("sum:test_vit+test_convnext", 0.5)])
def test_expects_images_as_the_two_do(name, mean):
    found = preprocessing(create_model(name, 3))
    assert found == preprocessing(create_model(resolve(name)[1].partition("+")[0], 3))
    assert found[0][0] == mean


def test_drops_in_both():
    model = create_model(SEEDS, 3, drop_rate=0.3)
    assert [part.features.dropout.p for part in (model.student, model.assistant)] == [0.3, 0.3]
    with pytest.raises(UsageError, match=f"{STUDENT} has no stochastic depth"):
        create_model(SEEDS, 3, drop_path=0.1)


HOW = rf"name two networks of timm or pytorchcv with a \+ between, for example {SEEDS}".replace("2+s", r"2\+s")
UNKNOWN = r"unknown model '{}'.*; python -m training\.models lists what can be named"
WRONG = {
    "one name": (f"sum:{STUDENT}", HOW),
    "no name": ("sum:", HOW),
    "three names": (f"sum:{STUDENT}+{ASSISTANT}+{ASSISTANT}", HOW),
    "a YAML path first": (f"sum:mine.yaml+{ASSISTANT}", HOW),
    "a YAML path last": (f"sum:{STUDENT}+mine.yaml", HOW),
    "a YAML path of the other ending": (f"sum:{STUDENT}+mine.yml", HOW),
    "a shipped YAML name": (f"sum:mobilenetv3_large+{ASSISTANT}", HOW),
    "a shipped YAML name last": (f"sum:{STUDENT}+yaml:mobilenetv3_large", HOW),
    "a sum first": (f"sum:{SEEDS}", HOW),
    "a sum of one": (f"sum:sum:{STUDENT}+{ASSISTANT}", HOW),
    "a sum last": (f"sum:{STUDENT}+sum:{ASSISTANT}", HOW),
    "an unknown name": (f"sum:nobody+{ASSISTANT}", UNKNOWN.format("nobody")),
    "an unknown name last": (f"sum:{STUDENT}+shufflenet_g3_wd5", r"did you mean .*shufflenet_g3_wd4"),
    "an empty name": (f"sum:{STUDENT}+", UNKNOWN.format("")),
    "other normalisation": (f"sum:{STUDENT}+test_vit", "normalised in different ways; name others"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_sum_is_refused_with_what_to_write(case):
    name, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        create_model(name, 3)
