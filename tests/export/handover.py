# Loads what the table of docs/python.md is about: the files of one model against the answer y for x, both in io.npz. Prints a row: of each format the size, and the largest
# difference relative to the largest value.
import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import load_file

warnings.simplefilter("ignore")
torch.set_num_threads(1)
folder, name = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, str(folder))
sys.dont_write_bytecode = True
arrays = np.load(folder / "io.npz")
x = torch.from_numpy(arrays["x"])


def with_weights(weights):
    net = importlib.import_module("net").Net()
    net.load_state_dict(weights, strict=True)
    return net.eval()(x).numpy()


def onnx(file):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


READERS = {
    "state-dict": lambda file: with_weights(torch.load(file, weights_only=True)),
    "safetensors": lambda file: with_weights(load_file(file)),
    "torchscript": lambda file: torch.jit.load(file)(x).numpy(),
    "python": lambda file: with_weights(load_file(str(folder / "net.safetensors"))),
    "onnx": onnx,
    "pt2": lambda file: torch.export.load(file).module()(x).numpy(),
}
cells = []
with torch.no_grad():
    for line in (folder / "files.txt").read_text().splitlines():
        format, file = line.split()
        if file == "-":
            cells.append("refused")
            continue
        answer = READERS[format](str(folder / file))
        apart = np.abs(answer - arrays["y"]).max() / np.abs(arrays["y"]).max()
        cells.append(f"{(folder / file).stat().st_size / 1e6:.3g} MB, {apart:.0e}".replace("e-0", "e-"))
print("|", name, "|", " | ".join(cells), "|")
