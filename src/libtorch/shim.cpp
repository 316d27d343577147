// What tch does not bind. Every function returns nullptr, or the text of the exception (free it with tikhonov_free).

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <torch/version.h>
#ifdef TIKHONOV_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

#include "guarded.h"

extern "C" {

void tikhonov_free(char* text) { free(text); }

char* tikhonov_cuda_count(int64_t* count) {
  return guarded([&] {
#ifdef TIKHONOV_CUDA
    *count = c10::cuda::device_count_ensure_non_zero();
#else
    if (!at::hasCUDA()) throw std::runtime_error("this libtorch was built without CUDA, or the binary without its headers");
    *count = at::detail::getCUDAHooks().deviceCount();
    if (*count == 0) throw std::runtime_error("libtorch sees no CUDA device");
#endif
  });
}

const char* tikhonov_cpu_capability() {
  static const std::string capability = at::get_cpu_capability();
  return capability.c_str();
}

const char* tikhonov_version() { return TORCH_VERSION; }

}  // extern "C"
