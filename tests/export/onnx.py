# Each NAME.onnx is a network of ours; NAME.npz has inputs x0, x1 … and in y0, y1 … what the network answers in
# float64; NAME.txt the names of its tensors. Prints the largest difference of each, relative to the largest value.
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

folder, tolerance = Path(sys.argv[1]), float(sys.argv[2])
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3


def check(file):
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(str(file))
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert model.ir_version == 8 and [(o.domain, o.version) for o in model.opset_import] == [("", 18)], file
    assert model.producer_name == "tikhonov", file
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (model.graph.input[0], model.graph.output[0])]
    assert dims[0][0] == dims[1][0] == "batch", (file, dims)
    # Each tensor under its own name and shape, none twice, none unused.
    shapes = {t.name: list(t.dims) for t in model.graph.initializer}
    assert len(shapes) == len(model.graph.initializer), file
    used = {name for node in model.graph.node for name in node.input}
    assert set(shapes) <= used, (file, set(shapes) - used)
    for line in file.with_suffix(".txt").read_text().splitlines():
        name, _, shape = line.partition(" ")
        if not name.endswith("num_batches_tracked"):
            assert shapes[name] == [int(n) for n in shape.split(",") if n], (file, name)
    return dims


failures = []
for file in sorted(folder.glob("*.onnx")):
    dims, arrays = check(file), np.load(file.with_suffix(".npz"))
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for index in range(len(arrays.files) // 2):
        x, expected = arrays[f"x{index}"], arrays[f"y{index}"]
        half = session.get_inputs()[0].type == "tensor(float16)"
        (answer,) = session.run(None, {"input": x.astype(np.float16) if half else x})
        assert answer.shape == expected.shape, (file.stem, x.shape, answer.shape, expected.shape)
        sizes = {}
        for dim, n in zip(dims[0] + dims[1], x.shape + answer.shape):
            assert dim == n or isinstance(dim, str) and sizes.setdefault(dim, n) == n, (file.stem, dims, x.shape, answer.shape)
        worst = max(worst, float(np.abs(answer.astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30)))
    print(file.stem, f"{worst:.1e}")
    if not worst <= tolerance:
        failures.append((file.stem, worst))
assert not failures, failures
