# Single layers: for each line "INPUT_SHAPE | torch.nn expression", its initial state at a seed, a state, an input, the
# output and the gradient.
import sys

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import DropBlock2d, Permute, StochasticDepth


def standard(x, weight, gain=None):
    filters = nn.functional.batch_norm(weight.reshape(1, len(weight), -1), None, None, gain, None, True, 0.0, 1e-6)
    return filters.reshape_as(weight)


class StdConv2d(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, standard(x, self.weight), self.bias)


class ScaledStdConv2d(nn.Conv2d):
    def __init__(self, *args, gamma=1.0, gain_init=1.0, **options):
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), gain_init))
        self.scale = gamma * self.weight[0].numel() ** -0.5

    def forward(self, x):
        return self._conv_forward(x, standard(x, self.weight, (self.gain * self.scale).view(-1)), self.bias)


class Scale(nn.Module):
    def __init__(self, name, shape, init):
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.ones(shape) * init))

    def forward(self, x):
        return x * getattr(self, self.name)


class Interpolate(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return nn.functional.interpolate(x, **self.options)


class Chunk(nn.Module):
    def __init__(self, chunks, index, dim=1):
        super().__init__()
        self.chunks, self.index, self.dim = chunks, index, dim

    def forward(self, x):
        return x.chunk(self.chunks, self.dim)[self.index]


class Times(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x * self.value


torch.set_num_threads(1)
folder = sys.argv[1]
for index, line in enumerate(open(f"{folder}/cases.txt")):
    shape, expression = line.strip().split(" | ")
    torch.manual_seed(index)
    net = eval(expression)
    arrays = {f"initial.{key}": value.numpy().copy() for key, value in net.state_dict().items()}
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point() and value.dim() == 1:
                value.uniform_(0.5, 1.5)
    arrays |= {f"state.{key}": value.numpy().copy() for key, value in net.state_dict().items()}
    x = torch.randn(3, *map(int, shape.split(",")), requires_grad=True)
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    arrays |= {"x": x.detach().numpy(), "y": y.detach().numpy(), "grad": x.grad.numpy()}
    np.savez(f"{folder}/{index}.npz", **arrays)
