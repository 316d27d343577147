# Each NAME.pt is a TorchScript of ours, NAME.pt2 an exported program, NAME.py the same network as source, NAME.npz an input and our answers.
import importlib
import sys
from pathlib import Path

import numpy as np
import torch

torch.set_num_threads(1)
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))


def apart(ours, theirs):
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-30)).item()


for file in sorted(folder.glob("*.npz")):
    name, arrays = file.stem, {key: torch.from_numpy(value) for key, value in np.load(file).items()}
    script = torch.jit.load(str(folder / f"{name}.pt"))
    net = importlib.import_module(name).Net()
    state = script.state_dict()
    assert list(state) == list(net.state_dict()) == (folder / f"{name}.txt").read_text().split(), name
    net.load_state_dict(state, strict=True)
    for key, value in net.named_parameters():
        assert dict(script.named_parameters())[key].requires_grad, (name, key)
    # Other batch and image sizes pass.
    script.eval(), net.eval()
    if "wide" in arrays:
        for module in [script, net]:
            assert apart(arrays["wide_eval"], module(arrays["wide"])) < 1e-6, (name, "wide")
    one = net(arrays["x"][:1])
    assert apart(one, script(arrays["x"][:1])) < 1e-5, name
    program = torch.export.load(str(folder / f"{name}.pt2"))
    assert list(program.state_dict) == list(state), name
    exported = program.module()
    assert apart(arrays["eval"], exported(arrays["x"])) < 1e-6 and apart(one, exported(arrays["x"][:1])) < 1e-6, name
    shape = next(node for node in program.graph.nodes if node.name == "x").meta["val"].shape
    if "wide" in arrays and str(shape[2:]) == "torch.Size([s1, s2])":
        assert apart(arrays["wide_eval"], exported(arrays["wide"])) < 1e-6, (name, "wide")
    frozen = torch.jit.freeze(script)
    assert apart(arrays["eval"], frozen(arrays["x"])) < 1e-5, name
    for mode in ["eval", "train"]:
        for module in [script, net]:
            module.train(mode == "train")
            assert module.training == (mode == "train")
            torch.manual_seed(3)
            difference = apart(arrays[mode], module(arrays["x"]))
            assert difference < 1e-6, (name, mode, type(module), difference)
    for key, value in net.state_dict().items():
        assert torch.allclose(value.double(), arrays["after." + key].double(), rtol=1e-6, atol=1e-7), (name, key)
        assert torch.equal(value, script.state_dict()[key]), (name, key)
print(len(list(folder.glob("*.npz"))))
