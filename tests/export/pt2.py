# What PyTorch does with our .pt2 files: `resnet.pt2` and `unet.pt2` with their inputs and answers, and the exports of a run.
import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

warnings.simplefilter("ignore")
torch.set_num_threads(1)
folder = Path(sys.argv[1])


def load(name):
    return torch.export.load(str(folder / f"{name}.pt2"))


def apart(ours, theirs):
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours - theirs).abs().max() / ours.abs().max()).item()


for name in ["resnet", "unet"]:
    program = load(name)
    arrays = {key: torch.from_numpy(value) for key, value in np.load(folder / f"{name}.npz").items()}
    pairs = [(arrays[f"x{i}"], arrays[f"y{i}"]) for i in range(3)]
    names = (folder / f"{name}.txt").read_text().split()
    assert list(program.state_dict) == names, name
    assert [n for n, _ in program.named_parameters()] == [n for n in names if "running" not in n and "tracked" not in n]

    # Our own kernels round otherwise.
    def answers(module, limit=1e-5):
        for x, y in pairs:
            with torch.no_grad():
                assert apart(y, module(x)) < limit, name

    answers(program.module())
    # Every parameter has a gradient.
    module = program.module()
    module(pairs[0][0]).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters()), name
    # The modules come back.
    flat = torch.export.unflatten(program)
    answers(flat)
    assert sorted(flat.state_dict()) == sorted(names)
    children = {key.split(".")[0] for key in names}
    assert children <= {key for key, _ in flat.named_children()}, name
    lowered = program.run_decompositions()
    answers(lowered.module())
    assert not any("batch_norm.default" in str(node.target) for node in lowered.graph.nodes)
    # Saved again by PyTorch itself.
    with tempfile.TemporaryDirectory() as other:
        torch.export.save(program, f"{other}/again.pt2")
        again = torch.export.load(f"{other}/again.pt2")
        assert list(again.state_dict) == names or sorted(again.state_dict) == sorted(names)
        answers(again.module())

# Sizes that do not fit are refused in plain words.
try:
    load("unet").module()(torch.zeros(1, 1, 60, 64))
    raise SystemExit("60 was taken")
except AssertionError as error:
    assert "size()[2] % 8 == 0" in str(error), error
try:
    load("plain").module()(torch.zeros(1, 3, 20, 20))
    raise SystemExit("3 channels were taken")
except (AssertionError, RuntimeError) as error:
    assert "[1]" in str(error) or "channels" in str(error), error

# The exports of a run.
extra = {"metadata.json": ""}
plain = torch.export.load(str(folder / "plain.pt2"), extra_files=extra)
about = json.loads(extra["metadata.json"])
assert list(about) == ["classes", "mean", "std", "input_size"] and about["input_size"] == [1, 20, 20], about
script = torch.jit.load(str(folder / "plain.torchscript.pt"))
state = script.state_dict()
assert list(plain.state_dict) == list(state)
assert all(torch.equal(plain.state_dict[key], value) for key, value in state.items())
x = torch.rand(4, 1, 20, 20)
with torch.no_grad():
    answer = script(x)
    assert apart(answer, plain.module()(x)) < 1e-6
    assert apart(answer.softmax(1), load("softmax").module()(x)) < 1e-6
    half = load("half")
    assert half.state_dict["fc.weight"].dtype == torch.half and apart(answer, half.module()(x.half()).float()) < 1e-2
    extra = {"metadata.json": ""}
    pictures = torch.export.load(str(folder / "pictures.pt2"), extra_files=extra).module()
    assert list(json.loads(extra["metadata.json"])) == ["classes", "input_size"]
    for size in [(20, 20), (50, 31), (13, 20), (7, 90)]:
        raw = torch.randint(0, 256, (3, 1, *size), dtype=torch.uint8)
        fitted = F.interpolate(raw / 255, (20, 20), mode="bilinear", antialias=True)
        mean, std = about["mean"][0], about["std"][0]
        expected = script((fitted - mean) / std).softmax(1)
        assert apart(expected, pictures(raw)) < 1e-6, size
    # As `crop` brings pictures to their size.
    crop = load("crop").module()
    chooses = torch.jit.load(str(folder / "crop.torchscript.pt"))
    for size in [(20, 20), (50, 31), (13, 20), (7, 90), (33, 20), (20, 21)]:
        raw = torch.randint(0, 256, (2, 1, *size), dtype=torch.uint8)
        assert apart(chooses(raw), crop(raw)) < 1e-6, size
print("good")
