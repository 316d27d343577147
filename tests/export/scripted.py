# `write`: a network with what people write in Python, scripted. `read`: its ONNX file beside it.
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=2, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Hardsigmoid())

    def forward(self, x):
        y = self.relu(self.norm(self.conv(x)))
        y *= self.gate(y)
        return y


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.GELU(), nn.Dropout2d(0.2))
        self.fine, self.coarse, self.fc = Block(8, 1), Block(8, 2), nn.Linear(18, 4)

    def forward(self, x):
        x = self.stem(x)
        y = F.interpolate(self.coarse(x), size=x.shape[-2:], mode="bilinear")
        z = torch.cat([self.fine(x) + y, F.avg_pool2d(x, 3, 1, 1), F.pad(y[:, :2], (1, -1, 0, 0))], 1)
        a, b = z.chunk(2, 1)
        z = torch.cat([a, b], 1).permute(0, 2, 3, 1)
        z = z.view(x.size(0), -1, z.size(3)).transpose(1, 2)
        return self.fc(z.mean(dim=[2]).flatten(1)).clamp(min=-3.0)


step, name = sys.argv[1:]
if step == "write":
    torch.manual_seed(0)
    net = Net().eval()
    torch.jit.script(net).save(name + ".pt")
    torch.save(net.state_dict(), name + ".pth")
else:
    import onnx
    import onnxruntime

    onnx.checker.check_model(name + ".onnx", full_check=True)
    net, session = torch.jit.load(name + ".pt").eval(), onnxruntime.InferenceSession(name + ".onnx")
    for batch in [1, 4]:
        x = torch.randn(batch, 3, 16, 12)
        with torch.no_grad():
            expected = net(x).numpy()
        (answer,) = session.run(None, {"input": x.numpy()})
        assert answer.shape == expected.shape and np.abs(answer - expected).max() < 1e-5 * np.abs(expected).max()
    print("good")
