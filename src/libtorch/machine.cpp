// What `doctor` tells about libtorch and the GPUs. Errors as in shim.cpp.

#include <ATen/ATen.h>
#include <ATen/Version.h>
#ifdef TIKHONOV_CUDA
#include <ATen/DeviceAccelerator.h>
#include <c10/core/DeviceType.h>
#include <cuda_runtime_api.h>
#endif

#include "guarded.h"
#include <cstdio>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#ifdef TIKHONOV_CUDA
// Declared here because its header, ATen/cuda/CUDAContext.h, wants CUDA headers that no PyPI wheel beside torch holds.
namespace at::cuda {
cudaDeviceProp* getDeviceProperties(c10::DeviceIndex device);
}
#endif

struct TikhonovGpu {
  char name[256];
  int64_t total;
  int64_t free;
  int32_t major;
  int32_t minor;
  int32_t processors;
};

extern "C" {

// Ends the process without destructors.
[[noreturn]] void tikhonov_leave(int32_t code) {
  fflush(nullptr);
  _exit(code);
}

void tikhonov_keep_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

// libtorch's own account of how it was built (freed with tikhonov_free).
char* tikhonov_show_config() {
  char* config = nullptr;
  char* error = guarded([&] { config = strdup(at::show_config().c_str()); });
  return error ? error : config;
}

char* tikhonov_gpu(int64_t index, TikhonovGpu* gpu) {
  return guarded([&] {
#ifdef TIKHONOV_CUDA
    const auto device = static_cast<c10::DeviceIndex>(index);
    const cudaDeviceProp* properties = at::cuda::getDeviceProperties(device);
    strncpy(gpu->name, properties->name, sizeof(gpu->name) - 1);
    gpu->major = properties->major;
    gpu->minor = properties->minor;
    gpu->processors = properties->multiProcessorCount;
    const auto memory = at::getDeviceAllocator(c10::DeviceType::CUDA)->getMemoryInfo(device);
    gpu->free = static_cast<int64_t>(memory.first);
    gpu->total = static_cast<int64_t>(memory.second);
#else
    TORCH_CHECK(false, "the binary was built without CUDA's headers");
#endif
  });
}

}  // extern "C"
