"""Networks for tests of presses: the list of architectures, with statistics as if they had been trained."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

MODELS = (
    "shufflenet_g3_wd4",
    "shufflenetv2_wd2",
    "mobilenetv3_small_050",
    "mobilenetv3_large",
    "resnet18",
    "lcnet_050",
    "mobilenetv2_035",
    "tf_efficientnet_lite0",
    "ghostnet_100",
    "regnetx_002",
    "mobileone_s0",
    "mobilenetv4_conv_small_050",
    "convnext_atto",
    "starnet_s1",
    "repghostnet_050",
    "tinynet_e",
    "mixnet_s",
    "nf_regnet_b0",
    "fastvit_t8",
    "sum:shufflenet_g3_x025_2_5_2+shufflenet_g3_x025_1_1_1",
)


def with_random_statistics(model, seed=0):
    """In evaluation mode, every number that training would have changed drawn anew."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor, low, high):
        with torch.no_grad():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, _BatchNorm):
            draw(module.running_mean, -0.5, 0.5)
            draw(module.running_var, 0.5, 2.0)
            if module.weight is not None:
                draw(module.weight, 0.5, 1.5)
                draw(module.bias, -0.5, 0.5)
        elif isinstance(module, nn.Linear):
            draw(module.weight, -0.5, 0.5)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("gamma", "gain", "skipinit_gain"):  # start near zero: a branch would say nothing
            draw(parameter, 0.5, 1.5)
    return model.eval()


def silenced(model, channels, kept):
    """The whole network, run so that channels that go are zero wherever a layer reads them: by hooks, not weights."""
    alive = channels.alive(kept)
    twin = copy.deepcopy(model)
    for path, layer in channels.layers.items():
        if layer.kind not in ("convolution", "linear"):
            continue
        heard = torch.from_numpy(np.isin(layer.inputs, alive)).double()

        def silence(module, inputs, heard=heard):
            shape = (1, -1) + (1,) * (inputs[0].ndim - 2)
            return (inputs[0] * heard.reshape(shape),)

        twin.get_submodule(path).register_forward_pre_hook(silence)
    return twin
