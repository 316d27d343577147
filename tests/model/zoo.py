# The networks of torchvision, efficientnet-lite-pytorch, spandrel and KAIR's papers that the shipped models are held against.
# Reads commands from standard input, one a line, and answers each with one line of JSON: `open NAME STEPS`, `step`, `script FILE`.
import json
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)
folder = sys.argv[1]
NO_DROPOUT = {"dropout": 0}


class Around(nn.Module):
    """A network, and what is made of its input and answer."""

    def __init__(self, net, through):
        super().__init__()
        self.net, self.through = net, through

    def forward(self, x):
        return self.through(self.net, x)


def rgb(net):
    """Images between 0 and 1 for a network of values between 0 and 255."""
    return Around(net, lambda net, x: net(x * 255) / 255)


def first(net):
    """The answer alone of a network that has more."""

    def through(net, x):
        y = net(x)
        return y["out"] if isinstance(y, dict) else getattr(y, "logits", y)

    return Around(net, through)


class Shortcut(nn.Module):
    def __init__(self, sub):
        super().__init__()
        self.sub = sub

    def forward(self, x):
        return x + self.sub(x)


def conv(inside, out, bias=True, **kwargs):
    return nn.Conv2d(inside, out, 3, padding=kwargs.pop("padding", 1), bias=bias, **kwargs)


class Res(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.res = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x):
        return x + self.res(x)


class Model(nn.Module):
    """A network whose layers are called `model`."""

    def __init__(self, *layers, subtract=False):
        super().__init__()
        self.model, self.subtract = nn.Sequential(*layers), subtract

    def forward(self, x):
        return x - self.model(x) if self.subtract else self.model(x)


def ircnn():
    layers = [conv(1, 64), nn.ReLU()]
    for dilation in (2, 3, 4, 3, 2):
        layers += [conv(64, 64, padding=dilation, dilation=dilation), nn.ReLU()]
    return Model(*layers, conv(64, 1), subtract=True)


def srmd():
    layers = [conv(19, 128), nn.ReLU()]
    for _ in range(10):
        layers += [conv(128, 128), nn.ReLU()]
    return Model(*layers, conv(128, 12), nn.PixelShuffle(2))


def msrresnet(inside, width):
    head = conv(inside, width)
    sub = nn.Sequential(*(Res(width) for _ in range(16)), conv(width, width))
    up = [layer for _ in range(2) for layer in (nn.Upsample(scale_factor=2), conv(width, width), nn.ReLU())]
    return Model(head, Shortcut(sub), *up, conv(width, width), nn.ReLU(), conv(width, 3, bias=False))


class EdsrBlock(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.body, self.scale = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width)), scale

    def forward(self, x):
        return x + self.body(x) * self.scale


class Edsr(nn.Module):
    def __init__(self, width, blocks, scale):
        super().__init__()
        mean = torch.tensor([0.4488, 0.4371, 0.4040])
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.head = nn.Sequential(conv(3, width))
        self.body = nn.Sequential(*(EdsrBlock(width, scale) for _ in range(blocks)), conv(width, width))
        self.tail = nn.Sequential(nn.Sequential(conv(width, 4 * width), nn.PixelShuffle(2)), conv(width, 3))
        for shift, sign in ((self.sub_mean, -1), (self.add_mean, 1)):
            shift.weight.data = torch.eye(3).view(3, 3, 1, 1)
            shift.bias.data = sign * 255 * mean

    def forward(self, x):
        x = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(x + self.body(x)))


class Rdb(nn.Module):
    def __init__(self, width, growth):
        super().__init__()
        for n in range(1, 6):
            setattr(self, f"conv{n}", conv(width + (n - 1) * growth, width if n == 5 else growth))

    def forward(self, x):
        parts = [x]
        for n in range(1, 5):
            parts.append(F.leaky_relu(getattr(self, f"conv{n}")(torch.cat(parts, 1)), 0.2))
        return x + 0.2 * self.conv5(torch.cat(parts, 1))


class Rrdb(nn.Module):
    def __init__(self, name, width, growth):
        super().__init__()
        self.parts = [f"{name}{n}" for n in (1, 2, 3)]
        for part in self.parts:
            setattr(self, part, Rdb(width, growth))

    def forward(self, x):
        y = x
        for part in self.parts:
            y = getattr(self, part)(y)
        return x + 0.2 * y


class RrdbNet(nn.Module):
    def __init__(self, body, rdb, conv_body, up, hr, blocks=23, width=64, growth=32):
        super().__init__()
        self.names = (body, conv_body, up, hr)
        self.conv_first = conv(3, width)
        setattr(self, body, nn.Sequential(*(Rrdb(rdb, width, growth) for _ in range(blocks))))
        setattr(self, conv_body, conv(width, width))
        for n in (1, 2):
            setattr(self, f"{up}{n}", conv(width, width))
        setattr(self, hr, conv(width, width))
        self.conv_last = conv(width, 3)

    def forward(self, x):
        body, conv_body, up, hr = self.names
        x = self.conv_first(x)
        x = x + getattr(self, conv_body)(getattr(self, body)(x))
        for n in (1, 2):
            x = F.leaky_relu(getattr(self, f"{up}{n}")(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(getattr(self, hr)(x), 0.2))


def torchvision(name, **kwargs):
    import torchvision.models as models

    if name in ("googlenet", "inception_v3"):
        kwargs["init_weights"] = True
    return models.get_model(name, weights=None, **kwargs)


def segmentation(name, aux):
    import torchvision.models.segmentation as models

    kwargs = {} if name.startswith("lraspp") else {"aux_loss": aux}
    return first(getattr(models, name)(weights=None, weights_backbone=None, **kwargs))


def lite(name):
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name(name)


def drunet():
    from spandrel.architectures.DRUNet.__arch.network_unet import DRUNet

    return DRUNet(in_nc=4, out_nc=3)


def rcan():
    from spandrel.architectures.RCAN import RCAN

    # It multiplies its input in place.
    return Around(RCAN(scale=2, n_resgroups=2, n_resblocks=3), lambda net, x: net(x.clone()))


def nafnet():
    from spandrel.architectures.NAFNet import NAFNet

    return NAFNet(width=32, middle_blk_num=12, enc_blk_nums=[2, 2, 4, 8], dec_blk_nums=[2, 2, 2, 2])


def dncnn():
    from spandrel.architectures.DnCNN import DnCNN

    # It takes the noise from the image, which is the task's part here.
    return Around(DnCNN(in_nc=1, out_nc=1, nc=64, nb=17, act_mode="R"), lambda net, x: net.model(x))


def case(name):
    """The network, the shipped model's arguments, the shape of a batch, the dtype's package."""
    aux = name.endswith("+aux")
    plain = name.removesuffix("+aux")
    args = {"aux": True} if aux else {}
    if plain.startswith(("fcn_", "deeplabv3_", "lraspp_")):
        dropouts = [] if plain.startswith("lraspp") else ["dropout"] + ["aux_dropout"] * plain.startswith("deeplab")
        args |= {name: 0 for name in dropouts}
        return segmentation(plain, aux), {**args, "size": 65}, (2, 3, 65, 65)
    if plain.startswith("efficientnet-lite"):
        net = lite(plain)
        size = net.input_image_size
        size = size if isinstance(size, int) else size[0]
        return net, {**NO_DROPOUT, "stochastic_depth": 0}, (1, 3, size, size)
    others = {
        "drunet": lambda: (drunet(), {}, (1, 4, 32, 32)),
        "ircnn": lambda: (ircnn(), {}, (1, 1, 32, 32)),
        "srmd": lambda: (srmd(), {}, (1, 19, 24, 24)),
        "msrresnet": lambda: (msrresnet(3, 64), {}, (1, 3, 24, 24)),
        "dpsr": lambda: (msrresnet(4, 96), {}, (1, 4, 24, 24)),
        "edsr-baseline": lambda: (rgb(Edsr(64, 16, 1)), {}, (1, 3, 24, 24)),
        "edsr": lambda: (rgb(Edsr(256, 32, 0.1)), {}, (1, 3, 16, 16)),
        "rrdbnet": lambda: (RrdbNet("body", "rdb", "conv_body", "conv_up", "conv_hr"), {}, (1, 3, 16, 16)),
        "rrdbnet-esrgan": lambda: (RrdbNet("RRDB_trunk", "RDB", "trunk_conv", "upconv", "HRconv"), {}, (1, 3, 16, 16)),
        "rcan": lambda: (rcan(), {"scale": 2, "groups": 2, "blocks": 3}, (1, 3, 24, 24)),
        "nafnet": lambda: (nafnet(), {}, (1, 3, 32, 32)),
        "dncnn-kair": lambda: (dncnn(), {}, (1, 1, 32, 32)),
    }
    if plain in others:
        return others[plain]()
    size = {"alexnet": 64, "inception_v3": 160 if aux else 80}.get(plain, 64)
    kwargs = {"aux_logits": aux} if plain in ("googlenet", "inception_v3") else {}
    net = torchvision(plain.removesuffix("-imagenet"), **kwargs)
    if plain.startswith(("convnext", "efficientnet")):
        args["stochastic_depth"] = 0
    if not plain.startswith(("resn", "wide", "shuffle", "regnet", "convnext")):
        args["dropout"] = 0
    if plain == "googlenet":
        args["aux_dropout"] = 0
    return first(net), {**args, "size": size}, (2, 3, size, size)


def save(part, tensors):
    np.savez(os.path.join(folder, f"{part}.npz"), **{name: value.detach().numpy() for name, value in tensors.items()})


def still(net):
    """Nothing is drawn."""
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    for inner in net.modules():
        if hasattr(inner, "_global_params"):
            inner._global_params = inner._global_params._replace(drop_connect_rate=0)


class Held:
    """The network in work."""

    def __init__(self, name, steps):
        torch.manual_seed(7)
        self.net, self.args, shape = case(name)
        self.inner = self.net.net if isinstance(self.net, Around) else self.net
        still(self.net)
        state = {key: value.clone() for key, value in self.inner.state_dict().items()}
        self.count = sum(value.numel() for value in self.inner.parameters())
        self.keys = [[key, list(value.shape)] for key, value in state.items()]
        self.large = self.count > 200_000_000
        if self.large:
            return
        save("initial", state)
        torch.manual_seed(8)
        self.x = torch.rand(shape)
        with torch.no_grad():
            for key, value in state.items():
                if key.endswith("running_mean"):
                    value.normal_(0, 0.1)
                elif key.endswith("running_var"):
                    value.uniform_(0.7, 1.3)
                elif key.endswith(("layer_scale", "beta", "gamma")):
                    value.uniform_(0.1, 0.5)
            for key, value in self.inner.state_dict().items():
                value.copy_(state[key])
        save("state", state)
        self.net.eval()
        with torch.no_grad():
            self.y = self.net(self.x)
        save("io", {"x": self.x, "eval": self.y})
        # In double precision: batch norms over a few values make a rounding of single precision large.
        self.net.double().train()
        single, self.x = self.x, self.x.double()
        loss = self.loss()
        loss.backward()
        grads = {key: value.grad for key, value in self.inner.named_parameters() if value.grad is not None}
        save("grads", grads)
        self.losses = [loss.item()]
        for _ in range(steps):
            self.step()
        self.x = single
        self.net.float()

    def loss(self):
        return self.net(self.x).square().mean()

    def step(self, lr=1e-4):
        self.inner.zero_grad()
        loss = self.loss()
        loss.backward()
        with torch.no_grad():
            for value in self.inner.parameters():
                if value.grad is not None:
                    value -= lr * value.grad
        self.losses.append(loss.item())

    def answer(self):
        found = {"args": self.args, "count": self.count, "keys": self.keys, "large": self.large}
        return found if self.large else {**found, "losses": self.losses}


held = None
for line in sys.stdin:
    command, _, rest = line.strip().partition(" ")
    if command == "open":
        try:
            held = None
            name, steps = rest.split()
            held = Held(name, int(steps))
            answer = held.answer()
        except ImportError as error:
            answer = {"missing": str(error)}
    elif command == "step":
        start = time.perf_counter()
        held.step(0)
        answer = {"seconds": time.perf_counter() - start}
    else:
        net = torch.jit.load(rest)
        net.eval()
        state = dict(np.load(os.path.join(folder, "state.npz")))
        # Auxiliary heads are of training alone.
        names = [key for key in state if not key.lower().startswith("aux")]
        same = sorted(net.state_dict()) == sorted(names)
        equal = same and all(np.array_equal(value.numpy(), state[key]) for key, value in net.state_dict().items())
        with torch.no_grad():
            y = net(held.x)
        apart = ((y - held.y).abs().max() / held.y.abs().max()).item()
        answer = {"names": same, "equal": equal, "apart": apart}
    print(json.dumps(answer), flush=True)
