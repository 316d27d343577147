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


class SRCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 9, padding=4)
        self.conv2 = nn.Conv2d(64, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 1, 5, padding=2)

    def forward(self, x):
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


class ESPCN(nn.Module):
    def __init__(self):
        super().__init__()
        first = [nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh()]
        self.first_part = nn.Sequential(*first)
        self.last_part = nn.Sequential(nn.Conv2d(32, 9, 3, padding=1), nn.PixelShuffle(3))

    def forward(self, x):
        return self.last_part(self.first_part(x))


class ConvReLU(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x):
        return F.relu(self.conv(x))


class VDSR(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.input = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.residual_layer = nn.Sequential(*(ConvReLU(width) for _ in range(18)))
        self.output = nn.Conv2d(width, 1, 3, padding=1, bias=False)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        return self.output(self.residual_layer(F.relu(self.input(x)))) + x


class FFDNet(nn.Module):
    def __init__(self, blind):
        super().__init__()
        self.blind, depth = blind, 10 if blind else 15
        layers = [nn.Conv2d(4 if blind else 5, 64, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            norm = [nn.BatchNorm2d(64)] if blind else []
            layers += [nn.Conv2d(64, 64, 3, padding=1, bias=not blind), *norm, nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv2d(64, 4, 3, padding=1))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight)

    def forward(self, x):
        half = F.pixel_unshuffle(x[:, :1], 2)
        if not self.blind:
            half = torch.cat([half, F.avg_pool2d(x[:, 1:], 2)], 1)
        return F.pixel_shuffle(self.model(half), 2)


class ResBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.res = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1))

    def forward(self, x):
        return self.res(x) + x


class ResUNet(nn.Module):
    def __init__(self):
        super().__init__()
        block = lambda c: nn.Sequential(ResBlock(c))
        self.head = nn.Conv2d(4, 48, 3, padding=1)
        self.enc1 = block(48)
        self.down1 = nn.Conv2d(48, 96, 2, 2)
        self.enc2 = block(96)
        self.down2 = nn.Conv2d(96, 192, 2, 2)
        self.body1, self.body2 = block(192), block(192)
        self.up2 = nn.ConvTranspose2d(192, 96, 2, 2)
        self.dec2 = block(96)
        self.up1 = nn.ConvTranspose2d(96, 48, 2, 2)
        self.dec1 = block(48)
        self.tail = nn.Conv2d(48, 4, 3, padding=1)

    def forward(self, x):
        one = self.enc1(self.head(F.pixel_unshuffle(x, 2)))
        two = self.enc2(self.down1(one))
        two = self.dec2(self.up2(self.body2(self.body1(self.down2(two)))) + two)
        return F.pixel_shuffle(self.tail(self.dec1(self.up1(two) + one)), 2) + x


def double(i, o, k=3, bias=True):
    conv = lambda i: [nn.Conv2d(i, o, k, padding=k // 2, bias=bias), nn.BatchNorm2d(o), nn.ReLU()]
    return [*conv(i), *conv(o)]


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        down = lambda i, o, k=3: nn.Sequential(*double(i, o, k), nn.MaxPool2d(3, 2, 1))
        up = lambda i, o: nn.Sequential(*double(i, o), nn.ConvTranspose2d(o, o, 3, 2, 1, 1))
        self.conv1, self.conv2, self.conv3 = down(1, 32, 7), down(32, 64), down(64, 128)
        self.upconv3, self.upconv2, self.upconv1 = up(128, 64), up(128, 32), up(64, 2)

    def forward(self, x):
        a = self.conv1(x)
        b = self.conv2(a)
        c = self.upconv3(self.conv3(b))
        return self.upconv1(torch.cat([self.upconv2(torch.cat([c, b], 1)), a], 1))


class DoubleConv(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.double_conv = nn.Sequential(*double(i, o, bias=False))

    def forward(self, x):
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(i, o))

    def forward(self, x):
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.up = nn.ConvTranspose2d(i, i // 2, 2, 2)
        self.conv = DoubleConv(i, o)

    def forward(self, below, skip):
        return self.conv(torch.cat([skip, self.up(below)], 1))


class OutConv(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.conv = nn.Conv2d(i, o, 1)

    def forward(self, x):
        return self.conv(x)


class MilesialUNet(nn.Module):
    def __init__(self, w=32):
        super().__init__()
        self.inc = DoubleConv(1, w)
        self.down1, self.down2, self.down3, self.down4 = (Down(w * k, w * k * 2) for k in (1, 2, 4, 8))
        self.up1, self.up2, self.up3, self.up4 = (Up(w * k, w * k // 2) for k in (16, 8, 4, 2))
        self.outc = OutConv(w, 2)

    def forward(self, x):
        a = self.inc(x)
        b = self.down1(a)
        c = self.down2(b)
        d = self.down3(c)
        return self.outc(self.up4(self.up3(self.up2(self.up1(self.down4(d), d), c), b), a))


class Autoencoder(nn.Module):
    def __init__(self, w=64, code=16):
        super().__init__()
        down = lambda i, o: nn.Conv2d(i, o, 5, 2, 2)
        up = lambda i, o: nn.ConvTranspose2d(i, o, 5, 2, 2, 1)
        self.encoder = nn.Sequential(down(3, w), nn.ReLU(), down(w, w), nn.ReLU(), down(w, code))
        self.decoder = nn.Sequential(up(code, w), nn.ReLU(), up(w, w), nn.ReLU(), up(w, 3))
        for m in self.modules():
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(m.weight)

    def forward(self, x):
        code = self.encoder(x)
        code = code + (torch.rand_like(code) - 0.5) if self.training else code.round().clamp(-128, 127)
        return self.decoder(code)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 400)
        self.fc21 = nn.Linear(400, 20)
        self.fc22 = nn.Linear(400, 20)
        self.fc3 = nn.Linear(20, 400)
        self.fc4 = nn.Linear(400, 784)

    def forward(self, x):
        h = F.relu(self.fc1(x.flatten(1)))
        z, log_var = self.fc21(h), self.fc22(h)
        if self.training:
            z = z + torch.exp(0.5 * log_var) * torch.randn_like(z)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))).view(x.shape)


TWINS = {
    "linear": (Linear, [1]),
    "mlp": (MLP, [1, 28, 28]),
    "lenet": (LeNet, [1, 28, 28]),
    "small-cnn": (SmallCNN, [1, 28, 28]),
    "resnet18": (lambda: CifarResNet(64, [64, 128, 256, 512], 2, "shortcut"), [3, 32, 32]),
    "resnet20": (resnet20, [3, 32, 32]),
    "resnet18-imagenet": (ImageNetResNet, [3, 64, 64]),
    "dncnn": (DnCNN, [1, 24, 31]),
    "srcnn": (SRCNN, [1, 24, 31]),
    "espcn": (ESPCN, [1, 17, 14]),
    "vdsr": (VDSR, [1, 24, 31]),
    "ffdnet": (lambda: FFDNet(False), [2, 24, 30]),
    "ffdnet-blind": (lambda: FFDNet(True), [1, 24, 30]),
    "resunet": (ResUNet, [1, 32, 40]),
    "unet": (UNet, [1, 32, 40]),
    "unet-milesial": (MilesialUNet, [1, 32, 48]),
    "autoencoder": (Autoencoder, [3, 32, 40]),
    "vae": (VAE, [1, 28, 28]),
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
        # For those that draw in training.
        torch.manual_seed(9)
        trained = net(x)
        trained.square().mean().backward()
        first = next(net.parameters()).grad
        io = {"x": x, "eval": evaluated, "train": trained, "grad": first}
        np.savez(f"{folder}/{name}-io.npz", **{key: value.detach().numpy() for key, value in io.items()})
        np.savez(f"{folder}/{name}-after.npz", **arrays(net))


main(sys.argv[1])
