// The library that cuda.h speaks of.

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

// For what is undone after another failure, which is the one to be told.
template <typename F>
void regardless(F&& f) {
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
    regardless([&] { graph.capture_end(); });
    regardless([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(device, graph.pool()); });
    regardless([&] {
      // A generator that was being recorded stays so; its twin was not.
      at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator(device);
      const at::Generator twin = at::cuda::detail::createCUDAGenerator(device);
      generator.graphsafe_set_state(twin.graphsafe_get_state());
    });
  }

  void replay() override { graph.replay(); }
};

struct Half final : tikhonov::Cuda {
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

extern "C" const tikhonov::Cuda* tikhonov_cuda_half() {
  static const Half half;
  return &half;
}
