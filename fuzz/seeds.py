"""Writes the fuzz targets' first inputs: small files of every kind that PyTorch makes. Needs torch.

    python fuzz/seeds.py fuzz/seeds
"""

import argparse
import json
import os
import struct
import sys
import zipfile
from collections import OrderedDict

import torch


def main(folder):
    torch.manual_seed(0)
    files, pickles = os.path.join(folder, "file"), os.path.join(folder, "pickle")
    os.makedirs(files, exist_ok=True)
    os.makedirs(pickles, exist_ok=True)
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    state = net.state_dict()
    state["tied"], state["turned"] = state["0.weight"], state["0.weight"].t()
    dtypes = OrderedDict((str(d), torch.zeros(2, dtype=d)) for d in (torch.bool, torch.float16, torch.complex64, torch.float8_e5m2))
    nested = {"epoch": 1, "args": argparse.Namespace(lr=0.1), "net": state, "list": [1.0, (2, "x")], "set": {1}}
    for name, value in {"state": state, "nested": nested, "module": net, "dtypes": dtypes}.items():
        for protocol in (2, 4):
            path = os.path.join(files, f"{name}{protocol}.pt")
            torch.save(value, path, pickle_protocol=protocol)
            with open(os.path.join(pickles, f"{name}{protocol}"), "wb") as out:
                out.write(b"\0" + zipfile.ZipFile(path).read(f"{name}{protocol}/data.pkl"))
        # float8 has no legacy form, and a legacy module carries PyTorch's source text.
        if name in ("state", "nested"):
            torch.save(value, os.path.join(files, f"{name}.legacy"), _use_new_zipfile_serialization=False)
    script = os.path.join(files, "script.pt")
    torch.jit.script(net).save(script)
    with open(os.path.join(pickles, "script"), "wb") as out:
        out.write(b"\1" + zipfile.ZipFile(script).read("script/data.pkl"))
    source = zipfile.ZipFile(os.path.join(files, "state2.pt"))
    with zipfile.ZipFile(os.path.join(files, "deflated.pt"), "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    with open(os.path.join(files, "a.safetensors"), "wb") as out:
        out.write(struct.pack("<Q", len(header)) + header + bytes(8))


main(sys.argv[1])
