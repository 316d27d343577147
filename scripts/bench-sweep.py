#!/usr/bin/env python3
"""A sweep of 9 penalties x 3 seeds, by tikhonov and by a loop in one Python process, and the ratio of their wall times.

    python scripts/bench-sweep.py DATA [--binary target/release/tikhonov] [--images 6000] [--epochs 2] [--width 8]

DATA holds Fashion-MNIST's four .gz files. Both sides train the same network (small-cnn) on the same first images of
the training set with the same batch size, optimiser and number of epochs, judge it by a tenth of them after every epoch,
and use the whole machine: tikhonov as many trials at a time as there are cores, Python all cores for each run, as one
writes it: the data read once, a Dataset that gives normalised tensors, a DataLoader with two workers, model.train(),
model.eval(). A second Python loop does without Dataset and DataLoader: the pictures are one normalised tensor, a batch is
a selection of its rows. Torch's own start (3 s) counts, once. Run it on a machine that does nothing else.
"""
import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time

CONFIG = """
device: cpu
model: {{name: small-cnn, args: {{channels: 1, size: 28, classes: 10, width: {width}}}}}
task: classification
data:
  train: {{idx: {{images: {data}/train-images-idx3-ubyte.gz, labels: {data}/train-labels-idx1-ubyte.gz, limit: {images}}}}}
  validation: {{fraction: 0.1}}
  batch_size: 128
optimizer: {{sgd: {{lr: 0.05, momentum: 0.9}}}}
train: {{epochs: {epochs}}}
"""


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--binary", default="target/release/tikhonov")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--points", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--loop", choices=["loader", "tensors"], help="one of the Python sides alone, in this process")
    return parser.parse_args()


def loop(options):
    import numpy as np
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset, random_split

    def idx(name, offset):
        with gzip.open(os.path.join(options.data, name)) as file:
            return np.frombuffer(bytearray(file.read()), np.uint8, offset=offset)

    images = idx("train-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[: options.images]
    labels = idx("train-labels-idx1-ubyte.gz", 8)[: options.images].astype(np.int64)
    mean, std = images.mean() / 255, images.std() / 255

    class Pictures(Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return (torch.from_numpy(images[index]).float() / 255 - mean) / std, labels[index]

    class Rows:
        """Batches as selections from one tensor."""

        def __init__(self, indices, shuffle):
            self.indices, self.shuffle = torch.tensor(indices), shuffle

        def __iter__(self):
            order = self.indices[torch.randperm(len(self.indices))] if self.shuffle else self.indices
            return ((everything[part], answers[part]) for part in order.split(128))

    if options.loop == "tensors":
        everything, answers = (torch.from_numpy(images).float() / 255 - mean) / std, torch.from_numpy(labels)

    def unit(channels_in, channels):
        conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(channels), nn.ReLU()]

    def small_cnn(width):
        return nn.Sequential(
            *unit(1, width), *unit(width, width), nn.MaxPool2d(2),
            *unit(width, 2 * width), *unit(2 * width, 2 * width), nn.MaxPool2d(2),
            *unit(2 * width, 4 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
        )

    for decay in np.logspace(-6, -1, options.points):
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            held_out = options.images // 10
            train, validation = random_split(Pictures(), [options.images - held_out, held_out])
            if options.loop == "tensors":
                batches, judged = Rows(train.indices, True), Rows(validation.indices, False)
            else:
                batches = DataLoader(train, batch_size=128, shuffle=True, num_workers=2)
                judged = DataLoader(validation, batch_size=128, num_workers=2)
            model = small_cnn(options.width)
            weights = [p for p in model.parameters() if p.dim() > 1]
            others = [p for p in model.parameters() if p.dim() == 1]
            groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
            optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
            for _ in range(options.epochs):
                model.train()
                for xs, ys in batches:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(xs), ys).backward()
                    optimizer.step()
                model.eval()
                right = 0
                with torch.no_grad():
                    for xs, ys in judged:
                        right += (model(xs).argmax(1) == ys).sum().item()
            print(f"decay {decay:.1e} seed {seed}: accuracy {right / held_out:.4f}", file=sys.stderr)


def timed(command):
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main():
    options = arguments()
    if options.loop:
        return loop(options)
    with tempfile.TemporaryDirectory() as home:
        config = os.path.join(home, "bench.yaml")
        with open(config, "w") as file:
            file.write(CONFIG.format(**vars(options) | {"data": os.path.abspath(options.data)}))
        over = f"penalty.l2=1e-6:1e-1:log:{options.points}"
        ours = timed([options.binary, "sweep", config, "--over", over, "--seeds", str(options.seeds),
                      "--output", os.path.join(home, "sweep")])
    print(f"tikhonov {ours:.1f} s")
    for kind in ["loader", "tensors"]:
        theirs = timed([sys.executable, *sys.argv, "--loop", kind])
        print(f"Python ({kind}) {theirs:.1f} s, ratio {theirs / ours:.2f}")


main()
