# The exports of one run, as its test names them.
import importlib
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

torch.set_num_threads(1)
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))


def load(name):
    script = torch.jit.load(str(folder / name))
    assert not any(module.training for module in script.modules() if hasattr(module, "training")), name
    return script


best = (folder / "run/checkpoints/best").resolve()
ema = {k: v for k, v in load_file(best / "ema.safetensors").items() if k != "n_averaged"}
raw = load_file(best / "model.safetensors")


def same(a, b):
    return sorted(a) == sorted(b) and all(torch.equal(a[k], b[k]) for k in a)


assert same(load_file(folder / "raw.safetensors"), raw) and not same(ema, raw)
plain = load("plain.pt")
assert same(plain.state_dict(), ema)
last = folder / "run/checkpoints/epoch-0002"
assert same(load_file(folder / "named.safetensors"), {k: v for k, v in load_file(last / "ema.safetensors").items() if k != "n_averaged"})
metadata = safe_open(folder / "named.safetensors", "pt").metadata()
assert metadata["epoch"] == "2" and "validation_accuracy" in metadata and "small-cnn" not in metadata["epoch"], metadata
narrow = load_file(folder / "bf16.safetensors")
assert all(torch.equal(narrow[k], v.bfloat16() if v.is_floating_point() else v) for k, v in ema.items())

# What stands beside the weights, in every form.
about = json.loads(metadata["classes"]), json.loads(metadata["mean"]), json.loads(metadata["std"]), [1, 20, 20]
assert json.loads(metadata["input_size"]) == about[3] and len(about[0]) == 10 and len(about[1]) == len(about[2]) == 1, about
pictures = load("pictures.pt")
assert (pictures.classes, pictures.input_size) == about[::3] and not hasattr(pictures, "mean") and not hasattr(pictures, "std")
for name in ["plain.pt", "frozen.pt", "optimized.pt"]:
    extra = {"metadata.json": ""}
    script = torch.jit.load(str(folder / name), _extra_files=extra)
    assert (script.classes, script.mean, script.std, script.input_size) == about, name
    assert list(json.loads(extra["metadata.json"]).values()) == list(about), name
weights = torch.load(folder / "weights.pt", weights_only=True)
assert tuple(weights.metadata.values()) == about and same(weights, ema)
module = importlib.import_module("source")
assert (module.CLASSES, module.MEAN, module.STD, module.INPUT_SIZE) == about
module.Net().load_state_dict(weights, strict=True)

x = torch.rand(4, 1, 20, 20)
net = importlib.import_module("source").Net().eval()
net.load_state_dict(plain.state_dict(), strict=True)
with torch.no_grad():
    answer = net(x)
    close = lambda y, t: ((y.float() - answer).abs().max() / answer.abs().max()).item() < t
    half = load("half.pt")
    assert half.state_dict()["fc.weight"].dtype == torch.half and close(half(x.half()), 1e-2)
    frozen = torch.jit.load(str(folder / "frozen.pt"))
    assert close(frozen(x), 1e-5) and "batch_norm" not in str(frozen.graph)
    assert torch.allclose(torch.jit.load(str(folder / "optimized.pt"))(x), answer.softmax(1), atol=1e-6)
    assert torch.allclose(torch.jit.optimize_for_inference(frozen)(x), answer, atol=1e-4)
    # Pictures of any size, as bytes or in 0..1.
    pictures = load("pictures.pt")
    assert same(pictures.state_dict(), ema)
    lines = (folder / "source.py").read_text().splitlines()
    value = lambda name: json.loads(next(l for l in lines if l.startswith(name + " = ")).split(" = ")[1])[0]
    for size in [(20, 20), (50, 31), (13, 20)]:
        raw = torch.randint(0, 256, (3, 1, *size), dtype=torch.uint8)
        fitted = F.interpolate(raw / 255, (20, 20), mode="bilinear", antialias=True)
        expected = net((fitted - value("mean")) / value("std")).softmax(1)
        assert torch.allclose(pictures(raw), expected, atol=1e-6) and torch.allclose(pictures(raw / 255), expected, atol=1e-6)
    assert pictures.half()(raw).dtype == torch.half
print("good")
