// The plugin that cuda.h describes.

#ifdef __GNUC__
// A guess at which allocator is called would compile that one's methods, which need more of CUDA's symbols.
#pragma GCC optimize("no-devirtualize-speculatively")
#endif

#include "cuda.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <cstring>
#include <cuda_runtime_api.h>
#include <memory>
#include <optional>

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

// As torch.cuda.CUDAGraph does it. The current device is the graph's wherever libtorch asks for it.
struct Graph final : tikhonov::Recording {
  struct Recorded : at::cuda::CUDAGraph {
    Recorded() { mempool_id_ = {0, 0}; }

    // The pools of memory that `capture_begin` opened and `capture_end` did not close; pool() throws then.
    std::optional<at::cuda::MempoolId_t> open_pool() const {
      const bool is_open = mempool_id_ != at::cuda::MempoolId_t{0, 0} && !capture_ended_;
      return is_open ? std::optional(mempool_id_) : std::nullopt;
    }
  };

  const c10::Device device;
  std::unique_ptr<Recorded> graph;

  explicit Graph(c10::DeviceIndex on) : device(c10::kCUDA, on) {
    const c10::DeviceGuard guard(device);
    // As torch.cuda.graph: a graph's memory is its own, and while it is recorded the cache cannot be emptied.
    c10::impl::VirtualGuardImpl(c10::kCUDA).synchronizeDevice(on);
    at::getDeviceAllocator(c10::kCUDA)->emptyCache();
    graph = std::make_unique<Recorded>();
    try {
      graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    } catch (...) {
      clean_up();
      throw;
    }
  }

  void end() override {
    const c10::DeviceGuard guard(device);
    graph->capture_end();
  }

  void abandon() noexcept override {
    ignore_errors([&] {
      const c10::DeviceGuard guard(device);
      ignore_errors([&] { graph->capture_end(); });
      clean_up();
    });
  }

  void replay() override { graph->replay(); }

  // What a recording that failed leaves behind. With an open pool both allocators would take it that the recording
  // goes on: memory that other streams have used would never be given back, nor the cache be emptied when it is full.
  void clean_up() noexcept {
    if (const auto pool = graph->open_pool()) {
      at::HostAllocator* const host = at::getHostAllocator(c10::kCUDA);
      ignore_errors([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(device.index(), *pool); });
      ignore_errors([&] { host->end_allocate_to_pool(*pool); });
      ignore_errors([&] { c10::cuda::CUDACachingAllocator::releasePool(device.index(), *pool); });
      ignore_errors([&] { host->release_pool(*pool); });
    }
    ignore_errors([&] {
      // A generator stays in its recording state; that of a new one is not a recording one.
      at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator(device.index());
      const at::Generator copy = at::cuda::detail::createCUDAGenerator(device.index());
      generator.graphsafe_set_state(copy.graphsafe_get_state());
    });
  }
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
