"""The latency job: every model in every runtime, compared with the reference; refusals say what to do. No times."""

import json

import numpy as np
import onnx
import pytest
import torch

from pipelines.console.parser import make_parser, parse
from pipelines.errors import UsageError
from training.latency import LatencyConfig, latency, table
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.model_file import save_model
from training.model.onnx_file import export_onnx
from training.runtimes.int8 import quantize_file, scaling_nodes
from training.runtimes.onnx_runtime import OnnxRuntime

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

NAME = "test_efficientnet"
CARD = ModelCard(
    architecture=NAME, classes=("glass", "metal", "paper"), size=32, fit="pad", mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2), provenance={"run": "tests"},
)  # fmt: skip
FEW = {"rounds": 3, "warmup": 1}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = create_model(NAME, 3)
    for parameter in model.classifier.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        for _ in range(20):  # statistics of batch normalization
            model(torch.randn(32, 3, 32, 32))
    return model.eval()


@pytest.fixture(scope="module")
def onnx_file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(path, network, CARD)
    return path


@pytest.fixture(scope="module")
def run_folder(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "best.safetensors", network, CARD)
    return folder


def with_figures(report, **changes):
    """The report with figures that do not depend on the machine."""
    steady = {"median_ms": 1.25, "p95_ms": 1.5, "cpu_ms": 1.75, "ratio_median": 0.5, "ratio_low": 0.4, "complaint": ""}
    steady |= {"ratio_high": 0.6, "trusted": True, "ratio_trusted": True} | changes
    return report | {"subjects": [entry | steady for entry in report["subjects"]]}


@pytest.fixture(scope="module")
def report(onnx_file, run_folder):
    models = f"{run_folder},{onnx_file},lenet"
    runtimes = "torch-eager,onnxruntime,onnxruntime-int8"
    return latency(LatencyConfig(models=models, runtimes=runtimes, reference="lenet@onnxruntime", classes=4, **FEW))


class TestReport:
    def test_keys(self, report):
        assert list(report) == [
            "reference", "batch_size", "threads", "device", "rounds", "warmup", "seed", "subjects", "left_out",
            "circumstances",
        ]  # fmt: skip
        assert list(report["subjects"][0]) == [
            "model", "runtime", "label", "weights", "size", "classes", "median_ms", "p95_ms", "spread", "ratio_median",
            "ratio_low", "ratio_high", "cpu_ms", "rounds", "repeats", "trusted", "ratio_trusted", "complaint",
        ]  # fmt: skip
        assert {"cpu", "gpu", "cores", "load", "load_after", "versions"} <= set(report["circumstances"])
        assert {"torch", "onnxruntime"} <= set(report["circumstances"]["versions"])
        json.dumps(report)

    def test_every_model_in_every_runtime_that_can(self, report, run_folder, onnx_file):
        found = [
            (entry["label"], entry["runtime"], entry["weights"], entry["size"], entry["classes"])
            for entry in report["subjects"]
        ]
        assert found == [
            ("lenet@onnxruntime", "onnxruntime-fp32", "random", 64, 4),
            (f"{run_folder}@torch-eager", "torch-eager", "file", 32, 3),
            (f"{run_folder}@onnxruntime", "onnxruntime-fp32", "file", 32, 3),
            (f"{run_folder}@onnxruntime-int8", "onnxruntime-int8", "file", 32, 3),
            (f"{onnx_file}@onnxruntime", "onnxruntime-fp32", "file", 32, 3),
            ("lenet@torch-eager", "torch-eager", "random", 64, 4),
            ("lenet@onnxruntime-int8", "onnxruntime-int8", "random", 64, 4),
        ]
        left_out = [(pair["model"], pair["runtime"]) for pair in report["left_out"]]
        assert left_out == [(str(onnx_file), "torch-eager"), (str(onnx_file), "onnxruntime-int8")]

    def test_reference(self, report):
        first = report["subjects"][0]
        assert report["reference"] == first["label"]
        assert (first["ratio_low"], first["ratio_median"], first["ratio_high"]) == (1, 1, 1)
        assert all(entry["median_ms"] > 0 and entry["cpu_ms"] > 0 for entry in report["subjects"])

    def test_three_rounds_are_not_trusted(self, report):
        assert not any(entry["trusted"] or entry["ratio_trusted"] for entry in report["subjects"])
        shown = table(report)
        assert "lenet@onnxruntime: too few: 3 rounds; take 20 or more" in shown
        assert f"{report['subjects'][1]['median_ms']:.3f}" not in shown.split("Reference")[0]


class TestTable:
    def test_trusted(self, report):
        shown = table(with_figures(report))
        assert all(word in shown for word in ("1.250", "1.500", "1.750", "0.500 [0.400-0.600]"))
        assert "too" not in shown
        assert report["circumstances"]["cpu"] in shown
        assert "an .onnx file runs in onnxruntime as it is" in shown

    def test_long_paths_end_where_they_differ(self, report):
        entries = [
            entry | {"model": f"/home/somebody/with/many/folders/runs/{i}"}
            for i, entry in enumerate(report["subjects"])
        ]
        shown = table(with_figures(report | {"subjects": entries}))
        assert [f" runs/{i} " in f" {shown} " for i in range(len(entries))] == [True] * len(entries)
        assert max(map(len, shown.split("\n\n")[0].splitlines())) <= 120

    def test_a_time_that_is_too_noisy_shows_its_ratio_only(self, report):
        shown = table(with_figures(report, trusted=False, complaint="too noisy: 100 rounds, spread 0.40"))
        assert "0.500 [0.400-0.600]" in shown
        assert "lenet@onnxruntime: too noisy: 100 rounds, spread 0.40" in shown
        assert not any(word in shown for word in ("1.250", "1.500", "1.750"))

    def test_a_ratio_that_is_too_noisy_is_not_shown(self, report):
        shown = table(with_figures(report, ratio_trusted=False))
        assert "0.500" not in shown
        assert "1.250" in shown
        assert "too noisy" in shown


class TestInt8:
    @pytest.fixture(scope="class")
    def images(self):
        return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)

    @pytest.fixture(scope="class")
    def quantized(self, onnx_file, images, tmp_path_factory):
        path = tmp_path_factory.mktemp("int8") / "int8.onnx"
        quantize_file(onnx_file, path, [images[:4], images[4:]])
        return path

    def test_answers_like_the_source_and_carries_its_card(self, onnx_file, quantized, images):
        source, runtime = OnnxRuntime(onnx_file), OnnxRuntime(quantized)
        assert runtime.name == "onnxruntime-int8"
        assert runtime.card == CARD
        expected, logits = source.logits(images), runtime.logits(images)
        assert 0 < np.square(logits - expected).mean() < 0.05 * np.square(expected).mean()

    def test_same_images_same_bytes(self, onnx_file, quantized, images, tmp_path):
        quantize_file(onnx_file, tmp_path / "again.onnx", [images[:4], images[4:]])
        assert (tmp_path / "again.onnx").read_bytes() == quantized.read_bytes()
        assert [path.name for path in tmp_path.iterdir()] == ["again.onnx"]

    def test_weights_have_a_scale_per_channel_and_the_scaling_stays_float(self, quantized):
        graph = onnx.load(quantized).graph
        makers = {output: node for node in graph.node for output in node.output}
        shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        for node in convolutions:
            weight = makers[node.input[1]]
            assert weight.op_type == "DequantizeLinear"
            assert shapes[weight.input[1]] == (shapes[weight.input[0]][0],)
            assert makers[node.input[0]].op_type == "DequantizeLinear"
        path, name = [], convolutions[0].input[0]
        while name in makers:
            path.append(makers[name].op_type)
            name = makers[name].input[0] if makers[name].input[0] in makers else makers[name].input[-1]
            if name == "images":
                break
        assert path[:2] == ["DequantizeLinear", "QuantizeLinear"]
        assert not {"DequantizeLinear", "QuantizeLinear"} & set(path[2:])
        assert "Cast" in path

    def test_scaling_ends_at_the_first_layer_with_weights(self, onnx_file):
        model = onnx.load(onnx_file)
        names = scaling_nodes(model)
        kinds = [node.op_type for node in model.graph.node if node.name in names]
        assert {"Transpose", "Cast"} <= set(kinds)
        assert "Conv" not in kinds
        assert kinds.count("Mul") == 1


class TestReference:
    @pytest.mark.parametrize(
        ("wanted", "first"),
        [
            (None, "lenet@torch-eager"),
            (NAME, f"{NAME}@torch-eager"),
            ("torch-eager", "lenet@torch-eager"),
            (f"{NAME}@torch-eager", f"{NAME}@torch-eager"),
        ],
    )
    def test_by_model_runtime_or_both(self, wanted, first):
        options = {"models": f"lenet, {NAME},lenet", "runtimes": "torch-eager", "size": 32}
        found = latency(LatencyConfig(**options, reference=wanted, **FEW))
        assert found["reference"] == first
        assert len(found["subjects"]) == 2

    def test_unknown(self):
        with pytest.raises(UsageError, match=r"--reference resnet18 is not among .* lenet@torch-eager"):
            latency(LatencyConfig(models="lenet", runtimes="torch-eager", reference="resnet18", **FEW))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"models": "lenet", "runtimes": "torch-eager,tensorrt"}, "unknown runtime 'tensorrt'; .*onnxruntime-int8"),
            ({"models": " , "}, "--models is empty"),
            ({"models": "lenet", "runtimes": ""}, "--runtimes is empty"),
            ({"models": "lenet", "rounds": 0}, "--rounds must be at least 1"),
            ({"models": "lenet", "warmup": 0}, "--warmup must be at least 1"),
            ({"models": "lenet", "size": 2}, "--size must be from 4 to 4096"),
            ({"models": "lenet", "seed": -1}, "--seed must be at least 0"),
            ({"models": "lenet", "threads": 100_000}, "--threads 100000 is more than the .* cores"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(UsageError, match=message):
            LatencyConfig(**options)

    def test_no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UsageError, match="--device cuda: PyTorch sees no GPU"):
            LatencyConfig(models="lenet", device="cuda")

    def test_onnxruntime_without_a_gpu(self, onnx_file, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(UsageError, match="onnxruntime cannot use a GPU; install onnxruntime-gpu"):
            latency(LatencyConfig(models=str(onnx_file), runtimes="onnxruntime", device="cuda", **FEW))

    def test_a_model_that_cannot_take_the_size(self):
        with pytest.raises(UsageError, match="lenet cannot take images of 4 px"):
            latency(LatencyConfig(models="lenet", runtimes="torch-eager", size=4, **FEW))

    def test_a_size_for_files_only(self, run_folder):
        with pytest.raises(UsageError, match="--size is for models given by name"):
            latency(LatencyConfig(models=str(run_folder), runtimes="torch-eager", size=64, **FEW))

    def test_an_unknown_model(self):
        with pytest.raises(UsageError, match="unknown model 'resnet1888'"):
            latency(LatencyConfig(models="resnet1888", runtimes="torch-eager", **FEW))

    def test_damaged_onnx(self, onnx_file, tmp_path):
        path = tmp_path / "half.onnx"
        path.write_bytes(onnx_file.read_bytes()[:20_000])
        with pytest.raises(UsageError, match=r"half\.onnx is no ONNX file"):
            latency(LatencyConfig(models=str(path), runtimes="onnxruntime", **FEW))
        with pytest.raises(UsageError, match=r"none\.onnx does not exist"):
            latency(LatencyConfig(models=str(tmp_path / "none.onnx"), runtimes="onnxruntime", **FEW))

    def test_onnx_in_torch_only(self, onnx_file):
        with pytest.raises(UsageError, match="add onnxruntime to --runtimes"):
            latency(LatencyConfig(models=str(onnx_file), runtimes="torch-eager", **FEW))

    def test_a_compiler_that_fails(self, monkeypatch):
        def refuse(function):
            def run(images):
                raise RuntimeError("no working compiler\nlong story")

            return run

        monkeypatch.setattr(torch, "compile", refuse)
        with pytest.raises(UsageError, match=r"cannot compile lenet \(RuntimeError: no working compiler\); is there"):
            latency(LatencyConfig(models="lenet", runtimes="torch-compile", **FEW))


def test_command_line():
    parser = make_parser(LatencyConfig, name="training.latency", summary="", example="")
    config, _ = parse(parser, LatencyConfig, ["--models", "a,b.onnx", "--runtimes", "onnxruntime", "--batch-size", "8"])
    assert config == LatencyConfig(models="a,b.onnx", runtimes="onnxruntime", batch_size=8)
