# `write`: the twins of the shipped models save state dicts and their answers. `read`: what the exports answer.
import importlib
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

step, folder = sys.argv[1], Path(sys.argv[2])
sys.path.insert(0, str(folder))


def apart(ours, theirs):
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours - theirs).abs().max() / ours.abs().max()).item()


for name, (make, shape) in TWINS.items():
    stem = name.replace("-", "_")
    if step == "write":
        torch.manual_seed(1)
        net = make()
        with torch.no_grad():
            for value in net.state_dict().values():
                if value.is_floating_point() and value.dim() == 1:
                    value.uniform_(0.5, 1.5)
        torch.save({"net": net.state_dict(), "epoch": 3}, folder / f"{stem}.pth")
        print(name)
        continue
    saved = torch.load(folder / f"{stem}.pth", weights_only=True)["net"]
    net = make()
    net.load_state_dict(saved)
    x = torch.randn(3, *shape)
    wide = [x]
    if len(shape) == 3 and name not in ["mlp", "lenet", "vae"]:
        wide.append(torch.randn(2, shape[0], shape[1] + 16, shape[2] + 32))

    state = torch.load(folder / f"{stem}.pt", weights_only=True)
    loaded = load_file(folder / f"{stem}.safetensors")
    script = torch.jit.load(str(folder / f"{stem}.torchscript.pt"))
    program = torch.export.load(str(folder / f"{stem}.pt2"))
    assert list(state) == list(saved) == list(script.state_dict()) == list(program.state_dict), name
    for key, value in saved.items():
        assert torch.equal(value, state[key]) and torch.equal(value, loaded[key]), (name, key)
        assert torch.equal(value, script.state_dict()[key]) and torch.equal(value, program.state_dict[key]), (name, key)
    source = importlib.import_module(stem).Net()
    assert list(source.state_dict()) == list(saved), name
    source.load_state_dict(loaded, strict=True)
    twice = make()
    twice.load_state_dict(state, strict=True)
    others = {"script": script, "source": source, "state dict": twice}
    for x in wide:
        net.eval()
        answer = net(x)
        for kind, other in others.items():
            other.eval()
            assert apart(answer, other(x)) < 1e-6, (name, kind)
        assert apart(answer, program.module()(x)) < 1e-6, (name, "program")
    # Training: answers, gradients and running statistics.
    x = wide[0]
    net.train()
    torch.manual_seed(9)
    answer = net(x)
    answer.square().mean().backward()
    for kind, other in others.items():
        other.train()
        torch.manual_seed(9)
        theirs = other(x)
        assert apart(answer, theirs) < 1e-6, (name, kind)
        theirs.square().mean().backward()
        found = dict(other.named_parameters())
        for key, value in net.named_parameters():
            assert apart(value.grad, found[key].grad) < 1e-5, (name, kind, key)
        for key, value in net.state_dict().items():
            assert apart(value.double() + 1, other.state_dict()[key].double() + 1) < 1e-6, (name, kind, key)
    # Production's other ways.
    net.eval(), script.eval()
    with torch.no_grad():
        answer = net(x)
        assert apart(answer, torch.jit.freeze(script)(x)) < 1e-4, name
        # What rounds within turns small differences into large ones.
        if name != "autoencoder":
            assert apart(net.half()(x.half()).float(), script.half()(x.half()).float()) < 1e-2, name
    print(name)
