// Runs .pt2 files without Python, by libtorch's own interpreter of exported programs. Errors as in shim.cpp.

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Logging.h>
#include <torch/nativert/ModelRunnerHandle.h>

#include "guarded.h"

using torch::nativert::ModelRunnerHandle;

namespace {

// Without warnings: loading lists the operators for which it has no kernels of its own, which is no fault.
struct Silence {
  const int before = FLAGS_caffe2_log_level;
  Silence() { FLAGS_caffe2_log_level = c10::GLOG_ERROR; }
  ~Silence() { FLAGS_caffe2_log_level = before; }
};

}  // namespace

extern "C" {

// The program `model` of the archive.
char* tikhonov_exported_load(const char* path, ModelRunnerHandle** runner) {
  return guarded([&] {
    const Silence silence;
    *runner = new ModelRunnerHandle(path, "model");
  });
}

void tikhonov_exported_free(ModelRunnerHandle* runner) { delete runner; }

char* tikhonov_exported_run(ModelRunnerHandle* runner, const at::Tensor* xs, at::Tensor** ys) {
  return guarded([&] {
    const c10::AutoGradMode untracked(false);
    const auto answers = runner->runWithFlatInputsAndOutputs({*xs});
    TORCH_CHECK(answers.size() == 1 && answers[0].isTensor(), "the program answers with other than one tensor");
    *ys = new at::Tensor(answers[0].toTensor());
  });
}

}  // extern "C"
