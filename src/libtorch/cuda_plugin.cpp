// The plugin that cuda.h describes.

#include "cuda.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <cstring>
#include <cuda_runtime_api.h>

// Declared here because its header, ATen/cuda/CUDAContext.h, wants CUDA headers that no PyPI wheel beside
// torch holds.
namespace at::cuda {
cudaDeviceProp* getDeviceProperties(c10::DeviceIndex device);
}

namespace {

// Cleans up after a failure, whose error is the one to report.
template <typename F>
void ignore_errors(F&& f) {
  try {
    f();
  } catch (...) {
  }
}

// As torch.cuda.CUDAGraph does it.
struct Graph final : tikhonov::Recording {
  at::cuda::CUDAGraph graph;
  c10::DeviceIndex device;

  explicit Graph(c10::DeviceIndex on) : device(on) { graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal); }

  void end() override { graph.capture_end(); }

  void abandon() noexcept override {
    ignore_errors([&] { graph.capture_end(); });
    ignore_errors([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(device, graph.pool()); });
    ignore_errors([&] {
      // A generator stays in its recording state; that of a new one is not a recording one.
      at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator(device);
      const at::Generator copy = at::cuda::detail::createCUDAGenerator(device);
      generator.graphsafe_set_state(copy.graphsafe_get_state());
    });
  }

  void replay() override { graph.replay(); }
};

struct Plugin final : tikhonov::Cuda {
  void describe(c10::DeviceIndex device, TikhonovGpu& gpu) const override {
    const cudaDeviceProp* properties = at::cuda::getDeviceProperties(device);
    strncpy(gpu.name, properties->name, sizeof(gpu.name) - 1);
    gpu.major = properties->major;
    gpu.minor = properties->minor;
    gpu.processors = properties->multiProcessorCount;
    const auto memory = at::getDeviceAllocator(c10::DeviceType::CUDA)->getMemoryInfo(device);
    gpu.free = static_cast<int64_t>(memory.first);
    gpu.total = static_cast<int64_t>(memory.second);
  }

  std::unique_ptr<tikhonov::Recording> record(c10::DeviceIndex device) const override {
    return std::make_unique<Graph>(device);
  }
};

}  // namespace

extern "C" const tikhonov::Cuda* tikhonov_cuda_plugin() {
  static const Plugin plugin;
  return &plugin;
}
