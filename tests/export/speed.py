# Pictures per second of onnxruntime on one thread for the input x of a folder's io.npz, the best of several rounds.
import sys
import time

import numpy as np
import onnxruntime

x = np.load(sys.argv[1] + "/io.npz")["x"]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(sys.argv[1] + "/net.onnx", options, providers=["CPUExecutionProvider"])
best = float("inf")
for _ in range(7):
    start = time.perf_counter()
    session.run(None, {"input": x})
    best = min(best, time.perf_counter() - start)
print(len(x) / best)
