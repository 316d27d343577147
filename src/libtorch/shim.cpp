// libtorch's version and instruction set. Every function returns nullptr, or the text of the exception (free it with
// tikhonov_free).

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <torch/version.h>

#include "guarded.h"

extern "C" {

void tikhonov_free(char* text) { free(text); }

const char* tikhonov_cpu_capability() {
  static const std::string capability = at::get_cpu_capability();
  return capability.c_str();
}

const char* tikhonov_version() { return TORCH_VERSION; }

}  // extern "C"
