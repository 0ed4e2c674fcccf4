"""The networks of the CIFAR-10 tables, put together from blocks of torchvision and timm; 32 px, 10 classes."""

from timm.models.byobnet import LayerFn, RepVggBlock
from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import BasicBlock
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.models.vgg import cfgs, make_layers

CLASSES = 10
MOBILE_STAGES = [
    [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1],
]  # fmt: skip


def resnet(depth):
    """He et al. 2015, section 4.2, with convolutions where a shortcut changes its width."""
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for width in (16, 32, 64):
        for unit in range((depth - 2) // 6):
            stride = 2 if width > before else 1
            shorter = nn.Conv2d(before, width, 1, stride, bias=False)
            shortcut = nn.Sequential(shorter, nn.BatchNorm2d(width)) if unit == 0 and stride == 2 else None
            layers.append(BasicBlock(before, width, stride, shortcut))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def vgg(letter):
    head = [nn.Linear(512, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 512), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(make_layers(cfgs[letter], batch_norm=True), nn.Flatten(), *head, nn.Linear(512, CLASSES))


def mobilenetv2(width):
    model = MobileNetV2(CLASSES, width, MOBILE_STAGES)
    model.features[0][0].stride = (1, 1)
    return model


def shufflenetv2(*widths):
    model = ShuffleNetV2([4, 8, 4], [24, *widths], CLASSES)
    model.conv1[0].stride, model.maxpool = (1, 1), nn.Identity()
    return model


def repvgg(narrow, wide):
    """Ding et al. 2021, as it is trained: three branches a block."""
    widths = [int(64 * narrow), int(128 * narrow), int(256 * narrow), int(512 * wide)]
    before = min(64, widths[0])
    layers = [RepVggBlock(3, before, stride=1, layers=LayerFn())]
    for width, units, first in zip(widths, (2, 4, 14, 1), (1, 2, 2, 2), strict=True):
        for unit in range(units):
            layers.append(RepVggBlock(before, width, stride=1 if unit else first, layers=LayerFn()))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


NETS = {
    "resnet20": (lambda: resnet(20), 40813184, 272474),
    "resnet32": (lambda: resnet(32), 69124736, 466906),
    "resnet44": (lambda: resnet(44), 97436288, 661338),
    "resnet56": (lambda: resnet(56), 125747840, 855770),
    "vgg11_bn": (lambda: vgg("A"), 153293824, 9756426),
    "vgg13_bn": (lambda: vgg("B"), 228791296, 9941322),
    "vgg16_bn": (lambda: vgg("D"), 313725952, 15253578),
    "vgg19_bn": (lambda: vgg("E"), 398660608, 20565834),
    "mobilenetv2_x0_5": (lambda: mobilenetv2(0.5), 27969024, 700490),
    "mobilenetv2_x0_75": (lambda: mobilenetv2(0.75), 59310080, 1368234),
    "mobilenetv2_x1_0": (lambda: mobilenetv2(1.0), 87976448, 2236682),
    "mobilenetv2_x1_4": (lambda: mobilenetv2(1.4), 170073344, 4333706),
    "shufflenetv2_x0_5": (lambda: shufflenetv2(48, 96, 192, 1024), 10902016, 352042),
    "shufflenetv2_x1_0": (lambda: shufflenetv2(116, 232, 464, 1024), 45002112, 1263854),
    "shufflenetv2_x1_5": (lambda: shufflenetv2(176, 352, 704, 1024), 94259712, 2488874),
    "shufflenetv2_x2_0": (lambda: shufflenetv2(244, 488, 976, 2048), 187811200, 5365486),
    "repvgg_a0": (lambda: repvgg(0.75, 2.5), 489075200, 7840874),
    "repvgg_a1": (lambda: repvgg(1, 2.5), 851325440, 12824202),
    "repvgg_a2": (lambda: repvgg(1.5, 2.75), 1850095360, 26815690),
}
"""Name → how it is made, its MACs and parameters, as published with the weights of these nets."""
