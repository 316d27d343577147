"""The same work in tikhonov and in PyTorch, in one run, in turn, with equal threads: medians as Markdown and JSON.

Run it through scripts/bench, which finds the binary and a Python that has torch. A worker process per Python variant is
started, compiled and warmed up once and then asked again and again, so that only steps are compared.
"""

import argparse, gzip, itertools, json, os, pathlib, platform, shutil, statistics, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve()
DATA = pathlib.Path(os.environ.get("TIKHONOV_DATA", HERE.parent.parent / "data"))
FASHION = DATA / "fashion-mnist"
SGD = {"sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": True}}
WARMUP = 10


# The cases: what tikhonov is told; Python's twins stand below.

def idx(split):
    return {"idx": {kind: f"{FASHION}/{split}-{kind}-idx{n}-ubyte.gz" for kind, n in (("images", 3), ("labels", 1))}}


def classification(model, train, batch, **more):
    return {
        "model": model, "task": {"classification": {"label_smoothing": 0.1}},
        "data": {"train": train, "batch_size": batch, **more}, "penalty": {"l2": 5e-4}, "optimizer": SGD,
        "train": {"epochs": 100, "log_every": 100},
    }


def config(case, o):
    if case in ("a", "f"):
        model = {"name": "small-cnn", "args": {"channels": 1, "size": 28, "classes": 10, "width": 24}}
        return classification(model, idx("train"), o.batch or 128, augment=[{"flip": {"horizontal": True}}, {"crop": {"padding": 2}}])
    if case in ("b", "g"):
        train = {"cifar10": {"files": [f"{DATA}/cifar-10/data_batch_1.bin"]}}
        batch = 512 if o.device == "cuda" else 64
        return classification("resnet18", train, batch, augment=[{"flip": {"horizontal": True}}, {"crop": {"padding": 4}}])
    if case == "c":
        train = {"images": {"root": f"{DATA}/denoise/Train400", "mode": "grey", "patch": 64, "per_image": 80}}
        return {
            "model": {"name": "dncnn", "args": {"size": 64}},
            "task": {"reconstruction": {"degrade": {"gaussian": {"sigma": 25}}, "residual": True}},
            "data": {"train": train, "batch_size": 16, "normalize": "none"},
            "penalty": {}, "optimizer": {"adam": {"lr": 1e-4}}, "train": {"epochs": 100, "log_every": 100},
        }
    if case == "d":
        model = {"layers": {"_pool": {"adaptive_avg_pool2d": {"output_size": 1}}, "_flatten": "flatten",
                            "fc": {"linear": {"out_features": 5}}}, "input": [3, 224, 224]}
        train = {"folder": {"root": f"{DATA}/photos/flowers/train", "size": 224}}
        augment = [{"random_resized_crop": {"size": 224}}, {"flip": {"horizontal": True}}]
        return classification(model, train, 32, augment=augment, memory_gib=0, workers=o.workers)
    if case == "e-mlp":
        return classification({"name": "mlp", "args": {"hidden": 256}}, idx("train"), 16)
    if case == "e-linear":
        return {
            "model": {"name": "linear", "args": {"features": 32, "outputs": 1}}, "task": {"regression": {"loss": "half_mse"}},
            "data": {"train": {"linear": {"features": 32, "informative": 8, "noise": 0.1, "count": 10000}},
                     "batch_size": 16, "normalize": "none"},
            "penalty": {"l2": 5e-4}, "optimizer": {"sgd": {"lr": 0.01, "momentum": 0.9}},
            "train": {"epochs": 100, "log_every": 100},
        }
    raise KeyError(case)


TRAINING = ("dataloader", "eager", "compile", "max-autotune")
# case: (what it is, Python's variants, steps at --share 1, what it needs)
CASES = {
    "a": ("Fashion-MNIST small-cnn, batch 128, an epoch with augmentation", TRAINING, 469, FASHION),
    "b": ("ResNet-18 (CIFAR form), batch 64 (CUDA: 512), augmentation", TRAINING, 40, DATA / "cifar-10"),
    "c": ("DnCNN-17, 16 patches of 64x64, noise on the fly", TRAINING, 20, DATA / "denoise"),
    "d": ("folder of JPEGs, random resized crop to 224: loader alone", ("dataloader",), 60, DATA / "photos/flowers"),
    "e-mlp": ("MLP 784-256-256-10, batch 16", TRAINING, 3000, FASHION),
    "e-linear": ("linear model, 32 features, batch 16", TRAINING, 3000, None),
    "f": ("start of the process to the end of the first step of (a), seconds", ("script",), 1, FASHION),
    "g-save": ("ResNet-18 with momentum: checkpoint saved, seconds", ("torch.save", "torch.save, fsync"), 1, DATA / "cifar-10"),
    "g-load": ("ResNet-18 with momentum: checkpoint loaded, seconds", ("torch.load",), 1, DATA / "cifar-10"),
    "h": ("inference, small-cnn, batch 128, in memory", ("dataloader", "eager", "compile", "torchscript", "torchscript, frozen"), 78, FASHION),
    "h-predict": ("predict on PNG files, whole process", ("script",), 1, FASHION),
}
SECONDS = ("f", "g-save", "g-load")


# Python's side: from here to `work`, torch is imported, in the workers only.

def small_cnn(nn, channels=1, width=24):
    def unit(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
    w = width
    return nn.Sequential(unit(channels, w), unit(w, w), nn.MaxPool2d(2), unit(w, 2 * w), unit(2 * w, 2 * w), nn.MaxPool2d(2),
                         unit(2 * w, 4 * w), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, 10))


def resnet18(nn):
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

    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
                         *[Block(*each) for each in widths], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def dncnn(nn):
    layers = [nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.ReLU(inplace=True)]
    for _ in range(15):
        layers += [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(64, 1, 3, padding=1, bias=False))


def mlp(nn):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(inplace=True), nn.Linear(256, 256), nn.ReLU(inplace=True),
                         nn.Linear(256, 10))


def fashion(split):
    import numpy, torch
    read = lambda kind, n, skip: numpy.frombuffer(gzip.open(FASHION / f"{split}-{kind}-idx{n}-ubyte.gz").read(), "u1", offset=skip)
    images = torch.from_numpy(read("images", 3, 16).reshape(-1, 1, 28, 28).copy())
    return images, torch.from_numpy(read("labels", 1, 8).astype("i8"))


def cifar():
    import numpy, torch
    rows = numpy.fromfile(DATA / "cifar-10/data_batch_1.bin", "u1").reshape(-1, 3073)
    return torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(rows[:, 0].astype("i8"))


class Cropped:
    """The idiomatic data set: a sample at a time; flip, padded crop, normalisation."""

    def __init__(self, xs, ys, padding, mean, std):
        self.xs, self.ys, self.padding, self.mean, self.std = xs, ys, padding, mean[0], std[0]

    def __len__(self):
        return len(self.ys)

    def __getitem__(self, index):
        import torch
        x, p = self.xs[index], self.padding
        if p:
            if torch.rand(()) < 0.5:
                x = x.flip(-1)
            top, left = torch.randint(0, 2 * p + 1, (2,)).tolist()
            h, w = x.shape[-2:]
            x = torch.nn.functional.pad(x, (p, p, p, p))[:, top:top + h, left:left + w]
        return (x.float() / 255 - self.mean) / self.std, self.ys[index]


def resident(torch, xs, ys, batch, padding, mean, std, device):
    """Batches of tensors in memory, augmented as a whole: a vectorised crop and flip, as experts write it."""
    xs, ys, mean, std = (t.to(device) for t in (xs, ys, mean, std))
    h, w = xs.shape[-2:]
    rows, columns = torch.arange(h, device=device), torch.arange(w, device=device)
    padded = torch.nn.functional.pad(xs, [padding] * 4) if padding else xs
    while True:
        order = torch.randperm(len(ys), device=device)
        for at in range(0, len(ys), batch):
            index = order[at:at + batch]
            if padding:
                n = len(index)
                top = torch.randint(0, 2 * padding + 1, (n, 1), device=device) + rows
                left = torch.randint(0, 2 * padding + 1, (n, 1), device=device) + columns
                flip = torch.rand(n, 1, device=device) < 0.5
                left = torch.where(flip, left.flip(1), left)
                # [n, h, w, c]: channels last already.
                x = padded[index[:, None, None], :, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2)
            else:
                x = padded[index]
            yield (x.float() / 255 - mean) / std, ys[index]


class Patches:
    def __init__(self, images, per_image):
        self.images, self.per_image = images, per_image

    def __len__(self):
        return len(self.images) * self.per_image

    def __getitem__(self, index):
        import torch
        image = self.images[index % len(self.images)]
        top, left = (int(torch.randint(0, size - 63, ())) for size in image.shape)
        return image[None, top:top + 64, left:left + 64].float() / 255


def forever(loader):
    while True:
        yield from loader


def training(case, variant, o):
    """A function that takes steps and returns (seconds, samples)."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    device = torch.device(o.device)
    dataloader = variant == "dataloader"
    workers = dict(num_workers=o.workers, persistent_workers=o.workers > 0, pin_memory=device.type == "cuda", shuffle=True)
    images = case in ("a", "b", "c", "f")
    if case == "c":
        from PIL import Image
        import numpy
        files = sorted((DATA / "denoise/Train400").iterdir())
        pictures = [torch.from_numpy(numpy.array(Image.open(file).convert("L"))) for file in files]
        net, loss_of = dncnn(nn), nn.MSELoss()
        patches = Patches(pictures, 80)
        if dataloader:
            clean = forever(DataLoader(patches, 16, **workers))
        else:
            stack = [image.to(device) for image in pictures]
            def cut():
                while True:
                    picked = [stack[i] for i in torch.randint(0, len(stack), (16,)).tolist()]
                    at = torch.rand(16, 2).tolist()
                    corners = [(int(u * (p.shape[0] - 63)), int(v * (p.shape[1] - 63))) for p, (u, v) in zip(picked, at)]
                    yield torch.stack([p[t:t + 64, l:l + 64] for p, (t, l) in zip(picked, corners)])[:, None].float() / 255
            clean = cut()
        def noisy():
            for x in clean:
                x = x.to(device, non_blocking=True)
                noise = torch.randn_like(x) * (25 / 255)
                yield x + noise, noise
        batches = noisy()
        optimizer = torch.optim.Adam(net.to(device).parameters(), 1e-4, fused=True)
    elif case == "e-linear":
        net, loss_of = nn.Linear(32, 1), lambda answer, y: (answer - y).square().mean() / 2
        x = torch.randn(10000, 32)
        y = x[:, :8].sum(1, keepdim=True) + 0.1 * torch.randn(10000, 1)
        set_ = torch.utils.data.TensorDataset(x, y)
        def rows(x, y):
            while True:
                order = torch.randperm(len(x), device=device)
                for at in range(0, len(x), 16):
                    yield x[order[at:at + 16]], y[order[at:at + 16]]
        batches = forever(DataLoader(set_, 16, shuffle=True)) if dataloader else rows(x.to(device), y.to(device))
        optimizer = torch.optim.SGD(net.to(device).parameters(), 0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    else:
        xs, ys = cifar() if case == "b" else fashion("train")
        batch = o.batch or {"a": 128, "f": 128, "b": 512 if device.type == "cuda" else 64, "e-mlp": 16}[case]
        padding = {"a": 2, "f": 2, "b": 4, "e-mlp": 0}[case]
        f = xs[:10000].float() / 255
        mean, std = f.mean((0, 2, 3), keepdim=True), f.std((0, 2, 3), keepdim=True)
        net = {"a": small_cnn, "f": small_cnn, "b": resnet18, "e-mlp": mlp}[case](nn)
        loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
        if dataloader:
            batches = forever(DataLoader(Cropped(xs, ys, padding, mean, std), batch, **workers))
        else:
            batches = resident(torch, xs, ys, batch, padding, mean, std, device)
        net.to(device)
        decay = [p for p in net.parameters() if p.ndim > 1]
        rest = [p for p in net.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0}]
        optimizer = torch.optim.SGD(groups, 0.05, momentum=0.9, nesterov=True, fused=True)
    if images:
        net.to(memory_format=torch.channels_last)
    model = net.train()
    if variant in ("compile", "max-autotune"):
        model = torch.compile(net, mode=None if variant == "compile" else "max-autotune")

    def step():
        x, y = next(batches)
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if images:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=o.bf16):
            loss = loss_of(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return len(y)

    def steps(count):
        settle = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        settle()
        began = time.perf_counter()
        samples = sum(step() for _ in range(count))
        settle()
        return time.perf_counter() - began, samples

    steps.net, steps.optimizer = net, optimizer
    return steps


def jpegs(o):
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms as t
    crop = t.Compose([t.RandomResizedCrop(224), t.RandomHorizontalFlip(), t.ToTensor(),
                      t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    loader = DataLoader(datasets.ImageFolder(DATA / "photos/flowers/train", crop), 32, shuffle=True, num_workers=o.workers,
                        persistent_workers=o.workers > 0, pin_memory=o.device == "cuda")
    batches = forever(loader)

    def steps(count):
        began = time.perf_counter()
        samples = sum(len(next(batches)[1].to(o.device)) for _ in range(count))
        return time.perf_counter() - began, samples
    return steps


def inference(variant, o):
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    xs, ys = fashion("t10k")
    if variant.startswith("torchscript"):
        net = torch.jit.load(o.script, map_location=o.device).eval()
        if variant.endswith("frozen"):
            net = torch.jit.optimize_for_inference(torch.jit.freeze(net))
    else:
        net = small_cnn(nn).eval().to(o.device, memory_format=torch.channels_last)
        if variant == "compile":
            net = torch.compile(net)
    if variant == "dataloader":
        one = torch.zeros(1, 1, 1, 1)
        batches = forever(DataLoader(Cropped(xs, ys, 0, one, one + 1), 128, num_workers=o.workers, persistent_workers=o.workers > 0))
    else:
        def slices():
            whole, labels = xs.to(o.device), ys.to(o.device)
            while True:
                for at in range(0, 9984, 128):
                    yield whole[at:at + 128].float() / 255, labels[at:at + 128]
        batches = slices()

    def steps(count):
        right, samples = 0, 0
        began = time.perf_counter()
        with torch.inference_mode(), torch.autocast(o.device, torch.bfloat16, enabled=o.bf16):
            for x, y in itertools.islice(batches, count):
                right = right + (net(x.to(o.device)).argmax(1) == y.to(o.device)).sum()
                samples += len(y)
        float(right)
        return time.perf_counter() - began, samples
    return steps


def saving(case, variant, o):
    import torch
    steps = training("b", "eager", o)
    steps(1)
    path = pathlib.Path(tempfile.mkdtemp(dir=o.scratch)) / "checkpoint.pt"
    state = lambda: {"model": steps.net.state_dict(), "optimizer": steps.optimizer.state_dict()}
    torch.save(state(), path)

    def once(_):
        began = time.perf_counter()
        if case == "g-load":
            torch.load(path, map_location=o.device, weights_only=True)
        else:
            with open(path, "wb") as file:
                torch.save(state(), file)
                if variant.endswith("fsync"):
                    file.flush()
                    os.fsync(file.fileno())
        return time.perf_counter() - began, 1
    return once


def predict_script(o, folder):
    """A whole script: pictures through the exported program, one class each."""
    import numpy, torch
    from PIL import Image
    torch.set_num_threads(o.threads)
    net = torch.jit.load(o.script, map_location=o.device).eval()
    files = sorted(pathlib.Path(folder).iterdir())
    with torch.inference_mode():
        for at in range(0, len(files), 128):
            batch = numpy.stack([numpy.array(Image.open(file).convert("L")) for file in files[at:at + 128]])
            p = net((torch.from_numpy(batch)[:, None].float() / 255).to(o.device)).softmax(1)
            for file, (value, label) in zip(files[at:], zip(*(t.tolist() for t in p.max(1)))):
                print(file.name, label, f"{value:.4f}")


def peak_memory():
    try:
        line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return None


def work(case, variant, o):
    """A worker: one line in, one measurement out."""
    import torch
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    if case == "f":
        steps = training("f", "eager", o)
        steps(1)
        print(json.dumps({"at": time.time()}), flush=True)
        return
    if case == "h-predict":
        return predict_script(o, o.folder)
    build = {"d": lambda: jpegs(o), "h": lambda: inference(variant, o)}
    steps = build.get(case, lambda: (saving if case[0] == "g" else training)(case, variant, o))()
    steps(WARMUP)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if not case.startswith("g"):
            steps(WARMUP)
        seconds, samples = steps(int(line))
        print(json.dumps({"seconds": seconds, "samples": samples, "peak": peak_memory()}), flush=True)


# The bench itself: no torch here, so that it takes nothing from those that it measures.

class Worker:
    def __init__(self, case, variant, o):
        self.process = subprocess.Popen(worker_command(case, variant, o), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment(o))
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the Python worker ended with {self.process.wait()}")
        return json.loads(line)

    def measure(self, steps):
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def environment(o):
    return {**os.environ, "OMP_NUM_THREADS": str(o.threads)}


def worker_command(case, variant, o, **more):
    options = {key: getattr(o, key) for key in ("device", "threads", "workers", "bf16", "scratch", "script", "batch")} | more
    return [sys.executable, str(HERE), "--worker", case, variant, json.dumps(options)]


def tikhonov(o, *arguments):
    command = [o.binary, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(o))
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def machine_options(o):
    bf16 = ["--set", "train.amp=bf16"] if o.bf16 else []
    return ["--threads", o.threads, "--device", o.device, *bf16]


def ours(case, steps, o):
    """One measurement of tikhonov: {seconds, samples, peak, phases}."""
    base = {"h": "a", "h-predict": "a", "g-save": "g", "g-load": "g"}.get(case, case)
    path = pathlib.Path(o.scratch) / f"{base}.yaml"
    path.write_text(json.dumps(config(base, o)))
    bench = ["bench", path, "--json", *machine_options(o)]
    if case == "h-predict":
        began = time.time()
        lines = tikhonov(o, "predict", o.run, o.folder, "--format", "csv", "--threads", o.threads, "--device", o.device).splitlines()
        return {"seconds": time.time() - began, "samples": len(lines) - 1}
    if case == "f":
        began = time.time()
        report = json.loads(tikhonov(o, *bench, "--steps", 1, "--warmup", 0, "--no-eval"))
        return {"seconds": report["first_step_unix_s"] - began, "samples": 1, "peak": report["peak_memory_bytes"]}
    if case == "h":
        path.write_text(json.dumps(config("a", o) | {"data": config("a", o)["data"] | {"test": idx("t10k"), "normalize": "none"}}))
        own = json.loads(tikhonov(o, *bench, "--steps", 1, "--warmup", 3))["evaluation"]
        return {"seconds": own["seconds"], "samples": own["samples"]}
    if case[0] == "g":
        own = json.loads(tikhonov(o, *bench, "--steps", 1, "--warmup", 0, "--no-eval", "--checkpoint"))["checkpoint"]
        return {"seconds": own["save_s" if case == "g-save" else "load_s"], "samples": 1}
    more = ["--data-only"] if case == "d" else []
    report = json.loads(tikhonov(o, *bench, "--steps", steps, "--warmup", WARMUP, "--no-eval", *more))
    free = report["free_running"]
    rate = (free or report)["images_per_s"]
    phases = {name: phase["share"] for name, phase in report["phases"].items()}
    return {"seconds": report["samples"] / rate, "samples": report["samples"], "peak": report["peak_memory_bytes"], "phases": phases}


def once(case, variant, o):
    """One measurement of a Python script that is a process of its own."""
    began = time.time()
    command = worker_command(case, variant, o, folder=getattr(o, "folder", None))
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(o)).stdout
    if case == "f":
        return {"seconds": json.loads(out)["at"] - began, "samples": 1}
    return {"seconds": time.time() - began, "samples": len(out.splitlines())}


def prepare_inference(case, o):
    """A run of the small CNN, its program, and for predict a folder of pictures."""
    run = pathlib.Path(o.scratch) / "run"
    if not run.exists():
        small = config("a", o)
        small["data"] |= {"train": {"shapes": {"count": 256, "size": 28}}, "augment": [], "normalize": "none"}
        small["train"] = {"epochs": 1}
        (pathlib.Path(o.scratch) / "small.yaml").write_text(json.dumps(small))
        tikhonov(o, "train", f"{o.scratch}/small.yaml", "--output", run, "--device", "cpu", "--quiet")
        tikhonov(o, "export", run, "--to", "torchscript", "-o", o.script)
    o.run = str(run)
    if case == "h-predict":
        from PIL import Image
        import numpy
        o.folder = f"{o.scratch}/pictures"
        os.makedirs(o.folder, exist_ok=True)
        raw = gzip.open(FASHION / "t10k-images-idx3-ubyte.gz").read()
        for index, image in enumerate(numpy.frombuffer(raw, "u1", offset=16).reshape(-1, 28, 28)[:o.pictures]):
            Image.fromarray(image).save(f"{o.folder}/{index:05}.png")


def compare(case, o):
    """Rows: tikhonov and every variant, in turn `repeats` times."""
    _, variants, steps, needs = CASES[case]
    if needs and not needs.exists():
        return [], f"skipped: {needs} is not there (TIKHONOV_DATA names the folder of data)"
    skipped = [v for v in variants if o.no_compile and v in ("compile", "max-autotune")]
    if o.only:
        skipped += [v for v in variants if v not in o.only and v not in skipped]
    steps = max(5, round(steps * o.share)) if steps > 1 else 1
    if case[0] == "h":
        prepare_inference(case, o)
    workers, results, failed = {}, {"tikhonov": []}, []
    try:
        for variant in variants:
            if variant in skipped:
                continue
            try:
                workers[variant] = None if case in ("f", "h-predict") else Worker(case, variant, o)
                results[variant] = []
            except (RuntimeError, OSError) as error:
                failed.append(f"{variant} ({error})")
        for _ in range(o.repeats):
            results["tikhonov"].append(ours(case, steps, o))
            for variant, worker in workers.items():
                results[variant].append(worker.measure(steps) if worker else once(case, variant, o))
    finally:
        for worker in filter(None, workers.values()):
            worker.close()
    notes = ([f"left out: {', '.join(skipped)}"] if skipped else []) + ([f"failed: {', '.join(failed)}"] if failed else [])
    return [row(case, variant, each, steps) for variant, each in results.items()], "; ".join(notes)


def scaling(o):
    """Case a with eager Python beside it: steps per second by batch size, images per second by threads."""
    curves, threads = {"batch": [], "threads": []}, o.threads
    points = [("batch", size) for size in (1, 4, 16, 64, 256, 1024)] + [("threads", n) for n in range(1, threads + 1)]
    for axis, value in points:
        o.batch, o.threads = (value, threads) if axis == "batch" else (None, value)
        steps = max(5, round(o.share * min(2000, 60000 / (o.batch or 128))))
        worker = Worker("a", "eager", o)
        try:
            pairs = [(ours("a", steps, o), worker.measure(steps)) for _ in range(o.repeats)]
        finally:
            worker.close()
        rates = [statistics.median(one["samples"] / one["seconds"] for one in side) for side in zip(*pairs)]
        if axis == "batch":
            rates = [rate / value for rate in rates]
        curves[axis].append((value, *rates))
        print(f"{axis} {value}: {rates[0]:.0f} against {rates[1]:.0f}", file=sys.stderr)
    o.batch, o.threads = None, threads
    return curves


def draw(curves, o):
    try:
        import matplotlib
    except ImportError:
        return print("no figure: pip install matplotlib", file=sys.stderr)
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FormatStrFormatter
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    names = {"batch": ("batch size", "steps per second"), "threads": ("threads, batch 128", "images per second")}
    for plane, (axis, points) in zip(axes, curves.items()):
        for side, (label, marker) in enumerate((("tikhonov", "o"), ("PyTorch eager, tensors resident", "s")), 1):
            plane.plot([p[0] for p in points], [p[side] for p in points], marker=marker, label=label)
        plane.set(xlabel=names[axis][0], ylabel=names[axis][1])
        plane.grid(alpha=0.3)
        plane.legend(frameon=False)
    axes[0].set(xscale="log", yscale="log", xticks=[p[0] for p in curves["batch"]])
    axes[0].xaxis.set_major_formatter(FormatStrFormatter("%d"))
    axes[0].minorticks_off()
    axes[1].set(ylim=0, xticks=[p[0] for p in curves["threads"]])
    figure.savefig(f"{o.output}.png", dpi=130)


def row(case, variant, each, steps):
    seconds = case in SECONDS
    values = [one["seconds"] if seconds else one["samples"] / one["seconds"] for one in each]
    peaks = [one["peak"] for one in each if one.get("peak")]
    out = {"case": case, "variant": variant, "unit": "s" if seconds else "images/s", "median": statistics.median(values),
           "low": min(values), "high": max(values), "steps": steps, "values": values,
           "peak_bytes": statistics.median(peaks) if peaks else None}
    if each[0].get("phases"):
        out["phases"] = {name: statistics.median(one["phases"][name] for one in each) for name in each[0]["phases"]}
    return out


def relate(rows):
    """By how much tikhonov is faster: above 1 it wins."""
    for row in rows:
        own = rows[0]["median"]
        row["tikhonov_is_faster_by"] = row["median"] / own if row["unit"] == "s" else own / row["median"]


def markdown(rows, notes, o):
    out = [f"{describe(o)}", "", "| case | who | unit | median | lowest to highest | peak MiB | tikhonov is faster by |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        digits = 4 if row["unit"] == "s" else 0
        peak = f"{row['peak_bytes'] / 2**20:.0f}" if row["peak_bytes"] else ""
        factor = "" if row["variant"] == "tikhonov" else f"{row['tikhonov_is_faster_by']:.2f} ×"
        numbers = f"{row['median']:.{digits}f} | {row['low']:.{digits}f} to {row['high']:.{digits}f}"
        out.append(f"| {row['case']} | {row['variant']} | {row['unit']} | {numbers} | {peak} | {factor} |")
    out += ["", *[f"- {case}: {CASES[case][0]}{'. ' + notes[case] if notes.get(case) else ''}" for case in notes]]
    own = [row for row in rows if row.get("phases")]
    if own:
        out += ["", "Where tikhonov's time goes:", ""]
        out += [f"- {row['case']}: " + ", ".join(f"{name} {share:.1%}" for name, share in row["phases"].items()) for row in own]
    return "\n".join(out) + "\n"


def describe(o):
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        cpu = names[0] if names else cpu
    load = os.getloadavg()[0]
    precision = "bf16 autocast" if o.bf16 else "float32"
    return (f"{cpu}, {os.cpu_count()} CPUs, device {o.device}, {o.threads} thread(s), {o.workers} loader worker(s), {precision}, "
            f"{o.repeats} repeats in turn, load average {load:.1f} at the end. Peaks are of the main process: the workers of a "
            f"DataLoader come on top.")


def main():
    if sys.argv[1:2] == ["--worker"]:
        case, variant, options = sys.argv[2:]
        return work(case, variant, argparse.Namespace(**json.loads(options)))
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="scripts/bench", description="tikhonov and PyTorch at the same work, in turn.",
                                     epilog="cases: " + "; ".join(f"{name}: {case[0]}" for name, case in CASES.items()))
    parser.add_argument("--case", action="append", metavar="NAME", help="a case, or the letter of several (repeatable); all")
    parser.add_argument("--only", action="append", metavar="VARIANT", help="of Python's variants only this (repeatable)")
    parser.add_argument("--threads", type=int, default=cores, help="of libtorch, on both sides")
    parser.add_argument("--workers", type=int, default=min(4, cores), help="that load data, on both sides")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast on both sides")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of each case: 0.1 for a quick look")
    parser.add_argument("--pictures", type=int, default=2000, help="that h-predict looks at")
    parser.add_argument("--scaling", action="store_true", help="in the place of the cases: cost against size, as JSON and PNG")
    parser.add_argument("--output", default="bench", metavar="STEM", help="writes STEM.md and STEM.json")
    parser.add_argument("--binary", default=os.environ.get("TIKHONOV_BINARY", str(HERE.parent.parent / "target/release/tikhonov")))
    o = parser.parse_args()
    wanted = [case for case in CASES if not o.case or case in o.case or case.split("-")[0] in o.case]
    if not wanted or any(name not in CASES and not any(case.startswith(name + "-") for case in CASES) for name in o.case or []):
        parser.error(f"--case: expected {', '.join(CASES)}")
    # Only --scaling has case a in other sizes than its own.
    o.batch = None
    o.scratch = tempfile.mkdtemp(prefix="tikhonov-bench-")
    o.script = f"{o.scratch}/small-cnn.ts"
    if o.scaling:
        try:
            curves = scaling(o)
        finally:
            shutil.rmtree(o.scratch, ignore_errors=True)
        pathlib.Path(f"{o.output}.json").write_text(json.dumps({"machine": describe(o), "curves": curves}, indent=1))
        return draw(curves, o)
    rows, notes = [], {}
    try:
        for case in wanted:
            own, notes[case] = compare(case, o)
            relate(own)
            rows += own
            # After every case: what was measured stands even if the next is interrupted.
            text = markdown(rows, notes, o)
            pathlib.Path(f"{o.output}.md").write_text(text)
            pathlib.Path(f"{o.output}.json").write_text(json.dumps({"machine": describe(o), "rows": rows, "notes": notes}, indent=1))
            print(f"{case}: done {time.strftime('%H:%M:%S')} {notes[case]}", file=sys.stderr)
    finally:
        shutil.rmtree(o.scratch, ignore_errors=True)
    print(text)


if __name__ == "__main__":
    main()
