"""The models job: lists, descriptions that add up, and the image sizes right before a step."""

import json
import subprocess
import sys
from io import BytesIO

import pytest
import torch
from PIL import Image
from torch import nn

from pipelines.console.parser import make_parser, parse
from pipelines.errors import UsageError
from training.measure.macs import UncountableError, count_macs
from training.model.card import ModelCard
from training.model.create import create_model
from training.model.model_file import save_model
from training.model.staircase import make_steps, staircase
from training.model.staircase_plot import draw_staircase
from training.model.trace import trace_blocks
from training.models import EXAMPLE, ModelsConfig, _subject, models, table


class TestList:
    def test_families(self):
        report = models(ModelsConfig())
        assert report["kind"] == "list"
        assert report["timm"]["mobilenetv3"] > 10
        assert report["pytorchcv"]["shufflenet"] == 11
        assert "mobilenetv3_large" in report["yaml"]
        shown = table(report)
        assert "shufflenet 11" in shown
        assert "shufflenet_g3_x025" in shown
        assert max(map(len, shown.splitlines())) <= 120

    def test_filter(self):
        report = models(ModelsConfig(filter="mobilenetv3_*"))
        assert report["names"]["yaml"] == ["mobilenetv3_large"]
        assert "mobilenetv3_small_050" in report["names"]["timm"]
        assert "mobilenetv3_small_w1" in report["names"]["pytorchcv"]
        assert "mobilenetv3_small_w1" in table(report)
        assert table(models(ModelsConfig(filter="nothing*"))) == "no name matches nothing*"


class TestBlocks:
    def test_seed_network(self):
        report = models(ModelsConfig(model="shufflenet_g3_wd4", size=80, classes=9))
        assert list(report) == [
            "kind", "model", "input_size", "classes", "note",
            "macs", "competition_macs", "competition_note", "parameters", "float32_bytes", "file_bytes", "blocks",
        ]  # fmt: skip
        assert (report["competition_macs"], report["competition_note"]) == (1_688_949, None)
        assert (report["macs"], report["parameters"], report["float32_bytes"]) == (1_467_600, 67_071, 4 * 67_071)
        blocks = {block["path"]: block for block in report["blocks"]}
        assert blocks["features.stage3"]["output"] == [240, 3, 3]
        assert blocks["features.stage2"]["macs"] == 549_000
        assert blocks["output"] == {
            "path": "output", "type_name": "Linear", "output": [9], "macs": 2160, "parameters": 2169,
            "competition_macs": 2169,
        }  # fmt: skip
        assert blocks["features.final_pool"]["macs"] == 0
        assert blocks["features.final_pool"]["competition_macs"] == 2160
        json.dumps(report)
        shown = table(report)
        assert "240x3x3" in shown
        assert "1,467,600 MACs · 1,688,949 competition MACs · 67,071 parameters · 262.0 KiB in float32" in shown
        assert next(line for line in shown.splitlines() if line.startswith(" output")).split() == [
            "output", "Linear", "9", "2,160", "2,169", "2,169",
        ]  # fmt: skip
        assert "competition MACs" in next(line for line in shown.splitlines() if line.startswith(" block"))

    @pytest.mark.parametrize("name", ["mobilenetv3_small_050", "lenet", "shufflenet_g3_wd4", "test_vit", "resnet10t"])
    @pytest.mark.parametrize("depth", [None, 1, 2, 9])
    def test_blocks_add_up(self, name, depth):
        model = create_model(name, 6)
        size = 160 if name == "test_vit" else 64
        trace = trace_blocks(model, size, depth)
        assert sum(block.macs for block in trace.blocks) == trace.cost.macs
        assert sum(block.parameters for block in trace.blocks) == trace.cost.parameters
        if name == "test_vit":
            assert trace.competition is None
            assert {block.competition_macs for block in trace.blocks} == {None}
        else:
            assert trace.refusal is None
            assert sum(block.competition_macs for block in trace.blocks) == trace.competition.macs
            assert trace.competition.macs > trace.cost.macs
        assert model.training
        assert not any(module._forward_hooks for module in model.modules())

    def test_depth(self):
        assert len(models(ModelsConfig(model="shufflenet_g3_wd4", size=64, depth=1))["blocks"]) == 2
        assert len(models(ModelsConfig(model="shufflenet_g3_wd4", size=64, depth=3))["blocks"]) > 16

    def test_what_the_model_does_itself_is_a_row(self):
        class Root(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(4, 3, 1, 1))
                self.head = nn.Conv2d(4, 2, 1)

            def forward(self, x):
                return self.head(nn.functional.conv2d(x, self.weight)).mean((2, 3))

        trace = trace_blocks(Root(), 8, 1)
        rows = [(block.path, block.macs, block.parameters) for block in trace.blocks]
        assert rows == [("head", 512, 10), ("", 768, 12)]
        assert trace.cost.macs == 1280
        assert trace.refusal.startswith("the model itself (Root) multiplies 768 times itself")

    def test_a_model_without_competition_macs_says_why(self):
        report = models(ModelsConfig(model="test_vit", size=160))
        assert report["macs"] == 37_571_712
        assert report["competition_macs"] is None
        assert {block["competition_macs"] for block in report["blocks"]} == {None}
        assert report["competition_note"].startswith("blocks.0.attn (Attention) multiplies 1,305,728 times itself")
        assert "\n" not in report["competition_note"]
        shown = table(report).splitlines()
        assert shown[-1] == f"no competition MACs: {report['competition_note']}"
        whole = next(line for line in shown if line.startswith(" whole model"))
        assert whole.split() == ["whole", "model", "37,571,712", "-", "306,630"]

    @pytest.mark.parametrize("sizes", [False, True])
    def test_heads_that_only_training_uses_are_left_out(self, monkeypatch, sizes):
        class Marked(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Conv2d(3, 4, 1), nn.Linear(7, 7)
                self.head.training_only = True

            def forward(self, x):
                return self.body(x).mean((2, 3))

        monkeypatch.setattr("training.models.create_model", lambda name, classes: Marked())
        subject = _subject(ModelsConfig(model="marked", sizes=sizes), "marked")
        assert sum(parameter.numel() for parameter in subject.model.parameters()) == 16
        assert models(ModelsConfig(model="marked", size=8))["parameters"] == 16

    def test_note_says_which_classes_win(self):
        assert models(ModelsConfig(model="lenet", size=32))["note"] is None
        report = models(ModelsConfig(model="lenet", size=32, classes=9))
        assert report["note"] == "the definition names 6 outputs; it was built with 9, one per class"
        assert report["note"] in table(report)

    def test_size_of_the_definition(self, tmp_path):
        path = tmp_path / "sized.yaml"
        path.write_text("INPUT_SIZE: 48\nbackbone: [[1, Conv, [8, 3]], [1, GlobalAvgPool, []], [1, FixedConv, [6, 1]]]")
        assert models(ModelsConfig(model=str(path)))["input_size"] == 48
        assert models(ModelsConfig(model=str(path), size=64))["input_size"] == 64

    def test_model_file_and_run_folder(self, tmp_path):
        card = ModelCard(
            architecture="lenet",
            classes=("a", "b"),
            size=40,
            fit="pad",
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            definition=None,
        )
        file = tmp_path / "best.safetensors"
        save_model(file, create_model("lenet", 2), card)
        for model in (tmp_path, file):
            report = models(ModelsConfig(model=str(model)))
            assert (report["classes"], report["input_size"]) == (2, 40)
            assert report["file_bytes"] == file.stat().st_size
            assert "on disk" in table(report)
        with pytest.raises(UsageError, match="has 2 classes"):
            models(ModelsConfig(model=str(file), classes=3))

    def test_too_small(self):
        with pytest.raises(UsageError, match="lenet cannot take images of 8 px"):
            models(ModelsConfig(model="lenet", size=8))


class TestSizes:
    def test_seed_network(self, tmp_path, monkeypatch):
        counted = []

        def counting(model, size):
            counted.append((size, next(model.parameters()).device.type))
            return count_macs(model, size)

        monkeypatch.setattr("training.model.staircase.count_macs", counting)
        config = ModelsConfig(
            model="shufflenet_g3_wd4", classes=9, sizes=True, smallest=62, largest=114, plot=tmp_path / "steps.png"
        )
        report = models(config)
        # The first two try out the twin without weights; then each size is counted once, and nothing computed.
        assert counted == [(114, "meta"), (114, "cpu"), *((size, "meta") for size in range(62, 116))]
        assert report["best_sizes"] == [64, 80, 96, 112]
        sizes = {step["size"]: step for step in report["sizes"]}
        assert list(sizes) == list(range(62, 115))
        assert sizes[80]["macs"] == 1_467_600
        assert sizes[80]["growth"] == pytest.approx(0.222, abs=1e-3)
        assert sizes[79]["macs"] == sizes[80]["macs"]
        for size in (63, 80, 81, 113):
            assert sizes[size]["macs"] == count_macs(create_model("shufflenet_g3_wd4", 9).to("meta"), size).macs
        shown = table(report)
        assert "Best sizes: 64, 80, 96, 112" in shown
        assert [line.split()[0] for line in shown.splitlines() if "◀ best" in line] == ["64", "80", "96", "112"]
        image = Image.open(BytesIO((tmp_path / "steps.png").read_bytes()))
        assert image.format == "PNG"

    def test_sizes_that_are_too_small(self):
        report = models(ModelsConfig(model="lenet", sizes=True, smallest=8, largest=20))
        sizes = {step["size"]: step["macs"] for step in report["sizes"]}
        assert sizes[8] is None
        assert sizes[15] is None
        assert sizes[16] > 0
        assert [line.split()[0] for line in table(report).splitlines() if "cannot take it" in line] == ["8"]
        assert report["plot"] is None

    def test_no_size_at_all(self):
        with pytest.raises((UsageError, UncountableError), match="failed on an input of 1x3x9x9"):
            staircase(create_model("lenet", 6), range(8, 10), 0.1)

    def test_model_is_left_alone(self):
        model = create_model("shufflenet_g3_x025_1_1_1", 6)
        before = str(model)
        staircase(model, range(64, 66), 0.1)
        assert str(model) == before
        assert not next(model.parameters()).is_meta
        assert model.training

    def test_make_steps(self):
        steps = make_steps([3, 4, 5, 6], [None, 100, 100, 130, 131], 0.1)
        assert [step.growth for step in steps] == [None, 0.0, pytest.approx(0.3), pytest.approx(1 / 130)]
        assert [step.size for step in steps if step.best] == [5]
        assert not any(step.best for step in make_steps([3], [100, None], 0.1))

    def test_same_picture_same_bytes(self):
        steps = make_steps([3, 4, 5], [None, 100, 100, 130], 0.1)
        assert draw_staircase(steps, "a") == draw_staircase(steps, "a")


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sizes": True}, "name it with --model"),
            ({"size": 80}, "name it with --model"),
            ({"model": "a", "filter": "b"}, "give one of them"),
            ({"model": "a", "plot": "x.png"}, "give --sizes too"),
            ({"model": "a", "size": 0}, "--size must be at least 1"),
            ({"model": "a", "smallest": 9, "largest": 8}, "--largest must be"),
            ({"model": "a", "threshold": 0.0}, "--threshold must be above 0"),
        ],
    )
    def test_wrong_use(self, options, message):
        with pytest.raises(UsageError, match=message):
            ModelsConfig(**options)

    def test_command_line(self):
        parser = make_parser(ModelsConfig, name="training.models", summary="", example="")
        words = ["--model", "lenet", "--sizes", "--smallest", "48", "--plot", "a.png"]
        config, as_json = parse(parser, ModelsConfig, words)
        assert (config.model, config.sizes, config.smallest, str(config.plot)) == ("lenet", True, 48, "a.png")
        assert not as_json

    def test_help_explains_both_conventions(self):
        shown = make_parser(ModelsConfig, name="training.models", summary="", example=EXAMPLE).format_help()
        assert "  MACs              exact: the multiply-accumulates of" in shown
        assert "  competition MACs  what the scores of the 2021 competition are made of" in shown

    def test_job(self):
        words = [sys.executable, "-m", "training.models", "--model", "lenet", "--size", "32", "--json"]
        report = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        assert report["kind"] == "blocks"
        # 8 x 3 x 25 weights on 28 x 28 px, 16 x 8 x 25 on 10 x 10 px, then 16-120-84-6.
        assert report["macs"] == 600 * 784 + 3200 * 100 + 16 * 120 + 120 * 84 + 84 * 6
