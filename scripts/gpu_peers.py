"""A training step in PyTorch, for scripts/gpu-check: a line {"variant": …, "steps_per_s": …} for each variant.

Batches are in the GPU's memory already, normalised: what is compared is the step, against a program that also loads and
augments. Variants: eager; compile (`mode="reduce-overhead"`); graph, the step recorded by hand as PyTorch's documentation
has it. bf16 cases are channels-last under autocast. `jpeg` is torchvision's ImageFolder with 8 workers into ResNet-18.
"""

import json, sys, time

import torch
from torch import nn


def network(case, tiny):
    width = 2 if tiny else 24
    if case == "small-cnn":
        return small_cnn(width), (1, 16, 16) if tiny else (1, 28, 28)
    if case == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(inplace=True), nn.Linear(256, 256), nn.ReLU(inplace=True),
                             nn.Linear(256, 10)), (1, 28, 28)
    if case == "dncnn":
        width, size, depth = (4, 16, 4) if tiny else (64, 40, 17)
        layers = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1, bias=False)), (1, size, size)
    return resnet18(stem=7 if case == "jpeg" else 3), (3, 224, 224) if case == "jpeg" else (3, 32, 32)


def small_cnn(w):
    def unit(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
    return nn.Sequential(unit(1, w), unit(w, w), nn.MaxPool2d(2), unit(w, 2 * w), unit(2 * w, 2 * w), nn.MaxPool2d(2),
                         unit(2 * w, 4 * w), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10))


class Block(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def resnet18(stem):
    first = [nn.Conv2d(3, 64, stem, 1 if stem == 3 else 2, stem // 2, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    first += [] if stem == 3 else [nn.MaxPool2d(3, 2, 1)]
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    return nn.Sequential(*first, *[Block(*each) for each in widths], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def jpegs(o):
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms as t
    crop = t.Compose([t.RandomResizedCrop(224), t.RandomHorizontalFlip(), t.ToTensor(),
                      t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    loader = DataLoader(datasets.ImageFolder(o["jpegs"], crop), o["batch"], shuffle=True, drop_last=True, num_workers=8,
                        persistent_workers=True, pin_memory=True)
    while True:
        yield from loader


def measure(o, variant, device):
    """Steps per second."""
    batch, bf16 = o["batch"], o["bf16"]
    torch.manual_seed(0)
    net, shape = network(o["case"], o["tiny"])
    net.to(device).train()
    x = torch.randn(batch, *shape, device=device)
    if bf16:
        net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    is_image = o["case"] == "dncnn"
    y = torch.randn_like(x) if is_image else torch.randint(0, 10, (batch,), device=device)
    loss_of = nn.MSELoss() if is_image else nn.CrossEntropyLoss()
    if is_image:
        optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True, capturable=device.type == "cuda")
    else:
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, fused=True)
    model = torch.compile(net, mode="reduce-overhead") if variant == "compile" else net

    def step(x, y):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()

    settle = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if o["case"] == "jpeg":
        batches = jpegs(o)

        def once():
            xs, ys = next(batches)
            step(xs.to(device, non_blocking=True, memory_format=torch.channels_last), ys.to(device, non_blocking=True) % 10)
    elif variant == "graph":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(5):
                step(x, y)
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            step(x, y)
        fresh, labels = x.clone(), y.clone()

        def once():
            # As a new batch would be.
            x.copy_(fresh)
            y.copy_(labels)
            recorded.replay()
    else:
        def once():
            step(x, y)

    for _ in range(2 if o["tiny"] else 20):
        once()
    rates = []
    for _ in range(3):
        settle()
        began = time.perf_counter()
        for _ in range(o["steps"]):
            once()
        settle()
        rates.append(o["steps"] / (time.perf_counter() - began))
    return round(sorted(rates)[1], 2)


def main():
    o = json.loads(sys.argv[1])
    device = torch.device(o["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    for variant in o["variants"]:
        try:
            answer = {"steps_per_s": measure(o, variant, device)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:160]}
        print(json.dumps({"variant": variant, **answer}), flush=True)


if __name__ == "__main__":
    main()
