# The PyTorch twins of the shipped models, written by hand in the order in which their modules are made.
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x):
        return self.linear(x)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class Unit(nn.Module):
    def __init__(self, inside, out):
        super().__init__()
        self.conv = nn.Conv2d(inside, out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class SmallCNN(nn.Module):
    def __init__(self, w=32):
        super().__init__()
        self.block1 = nn.Sequential(Unit(1, w), Unit(w, w))
        self.block2 = nn.Sequential(Unit(w, 2 * w), Unit(2 * w, 2 * w))
        self.block3 = nn.Sequential(Unit(2 * w, 4 * w))
        self.fc = nn.Linear(4 * w, 10)

    def forward(self, x):
        x = self.block2(F.max_pool2d(self.block1(x), 2))
        x = self.block3(F.max_pool2d(x, 2))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Basic(nn.Module):
    def __init__(self, inside, planes, stride, name, downsample=None):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut_name = name
        if downsample is not None:
            self.add_module(name, downsample)
        elif name == "shortcut" and stride != 1:
            conv = nn.Conv2d(inside, planes, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(planes))

    def short(self, x):
        if self.shortcut_name == "pad":
            planes = self.conv1.out_channels
            if self.conv1.stride == (1, 1):
                return x
            return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)
        module = getattr(self, self.shortcut_name, None)
        return x if module is None else module(x)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class CifarResNet(nn.Module):
    def __init__(self, first, stages, blocks, name):
        super().__init__()
        self.conv1 = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        inside = first
        for index, planes in enumerate(stages):
            layers = []
            for block in range(blocks):
                layers.append(Basic(inside, planes, 2 if index and not block else 1, name))
                inside = planes
            self.add_module(f"layer{index + 1}", nn.Sequential(*layers))
        self.stages = len(stages)
        self.linear = nn.Linear(inside, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet20():
    net = CifarResNet(16, [16, 32, 64], 3, "pad")

    def init(m):
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(m.weight)

    net.apply(init)
    return net


class ImageNetResNet(nn.Module):
    # As in torchvision: a block's downsample is made before the block.
    def __init__(self):
        super().__init__()
        self.inside = 64
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self.stage(64, 1)
        self.layer2 = self.stage(128, 2)
        self.layer3 = self.stage(256, 2)
        self.layer4 = self.stage(512, 2)
        self.fc = nn.Linear(512, 1000)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def stage(self, planes, stride):
        down = None
        if stride != 1:
            conv = nn.Conv2d(self.inside, planes, 1, stride, bias=False)
            down = nn.Sequential(conv, nn.BatchNorm2d(planes))
        first = Basic(self.inside, planes, stride, "downsample", down)
        self.inside = planes
        return nn.Sequential(first, Basic(planes, planes, 1, "downsample"))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DnCNN(nn.Module):
    def __init__(self, depth=17, width=64):
        super().__init__()
        layers = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.Conv2d(width, 1, 3, padding=1, bias=False))
        self.dncnn = nn.Sequential(*layers)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight)

    def forward(self, x):
        return self.dncnn(x)


TWINS = {
    "linear": (Linear, [1]),
    "mlp": (MLP, [1, 28, 28]),
    "lenet": (LeNet, [1, 28, 28]),
    "small-cnn": (SmallCNN, [1, 28, 28]),
    "resnet18": (lambda: CifarResNet(64, [64, 128, 256, 512], 2, "shortcut"), [3, 32, 32]),
    "resnet20": (resnet20, [3, 32, 32]),
    "resnet18-imagenet": (ImageNetResNet, [3, 64, 64]),
    "dncnn": (DnCNN, [1, 24, 31]),
}


def arrays(net):
    return {name: tensor.detach().numpy().copy() for name, tensor in net.state_dict().items()}


def channels_last(_, inputs):
    # As our convolutions in training on the CPU: another order of sums can flip a ReLU at zero, and its gradient.
    (x,) = inputs
    return (x if x.stride(1) == 1 else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),)


def main(folder):
    for name, (make, shape) in TWINS.items():
        torch.manual_seed(7)
        net = make()
        print(name, *[f"{key}:{','.join(map(str, value.shape))}" for key, value in net.state_dict().items()])
        np.savez(f"{folder}/{name}-initial.npz", **arrays(net))
        # Running statistics and norms away from their start.
        torch.manual_seed(8)
        with torch.no_grad():
            for key, value in net.state_dict().items():
                if value.is_floating_point() and value.dim() == 1:
                    value.uniform_(0.5, 1.5)
        np.savez(f"{folder}/{name}-state.npz", **arrays(net))
        x = torch.randn(3, *shape)
        net.eval()
        evaluated = net(x)
        net.train()
        for conv in net.modules():
            if isinstance(conv, nn.Conv2d):
                conv.register_forward_pre_hook(channels_last)
        trained = net(x)
        trained.square().mean().backward()
        first = next(net.parameters()).grad
        io = {"x": x, "eval": evaluated, "train": trained, "grad": first}
        np.savez(f"{folder}/{name}-io.npz", **{key: value.detach().numpy() for key, value in io.items()})
        np.savez(f"{folder}/{name}-after.npz", **arrays(net))


main(sys.argv[1])
