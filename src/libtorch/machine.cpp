// What `doctor` reports about libtorch and the GPUs. Errors as in shim.cpp.

#include <ATen/ATen.h>
#include <ATen/Version.h>

#include "cuda.h"
#include "guarded.h"
#include <cstdio>
#include <unistd.h>

extern "C" {

// Ends the process without destructors.
[[noreturn]] void tikhonov_exit_fast(int32_t code) {
  fflush(nullptr);
  _exit(code);
}

// libtorch's own account of how it was built (freed with tikhonov_free).
char* tikhonov_show_config() {
  char* config = nullptr;
  char* error = guarded([&] { config = strdup(at::show_config().c_str()); });
  return error ? error : config;
}

char* tikhonov_gpu(int64_t index, TikhonovGpu* gpu) {
  return guarded([&] { tikhonov::cuda().describe(static_cast<c10::DeviceIndex>(index), *gpu); });
}

}  // extern "C"
