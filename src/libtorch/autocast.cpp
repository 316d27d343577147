// torch.autocast's entering and leaving, TF32, and deterministic algorithms. Every function returns nullptr, or the text of the
// exception.

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <stdlib.h>

#include "guarded.h"

extern "C" {

struct TikhonovAutocast {
  bool cuda;
  bool enabled;
  int8_t dtype;
};

char* tikhonov_autocast_enter(bool cuda, bool bf16, TikhonovAutocast* was) {
  return guarded([&] {
    const auto device = cuda ? at::kCUDA : at::kCPU;
    *was = {cuda, at::autocast::is_autocast_enabled(device), static_cast<int8_t>(at::autocast::get_autocast_dtype(device))};
    at::autocast::set_autocast_dtype(device, bf16 ? at::kBFloat16 : at::kHalf);
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::increment_nesting();
  });
}

void tikhonov_autocast_leave(const TikhonovAutocast* was) {
  const auto device = was->cuda ? at::kCUDA : at::kCPU;
  // The outermost region ends; its cached casts of weights would be stale after the next step.
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device, was->enabled);
  at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(was->dtype));
}

// As torch.use_deterministic_algorithms(True) and torch.backends.cudnn.deterministic; uninitialised memory stays as it is.
char* tikhonov_be_deterministic() {
  return guarded([] {
    at::Context& context = at::globalContext();
    context.setBenchmarkCuDNN(false);
    context.setDeterministicCuDNN(true);
    context.setDeterministicAlgorithms(true, /*warn_only=*/false);
    context.setDeterministicFillUninitializedMemory(false);
    // cuBLAS reads it when its first handle is made; libtorch refuses matrix products without it.
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  });
}

// As torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32.
char* tikhonov_allow_tf32(bool on) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuBLAS(on);
    at::globalContext().setAllowTF32CuDNN(on);
  });
}

}  // extern "C"
