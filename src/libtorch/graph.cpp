// CUDA graphs: work of the device recorded once and replayed as a whole, as torch.cuda.CUDAGraph does it. Every function returns
// nullptr, or the text of the exception.

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#ifdef TIKHONOV_CUDA
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#endif

#include "guarded.h"

namespace {

#ifdef TIKHONOV_CUDA
struct Graph {
  at::cuda::CUDAGraph graph;
  c10::DeviceIndex device;
};

// For what is undone after another failure, which is the one to be told.
template <typename F>
void regardless(F&& f) {
  try {
    f();
  } catch (...) {
  }
}
#else
struct Graph {};

[[noreturn]] void lacking() { throw std::runtime_error("the binary was built without CUDA's headers"); }
#endif

}  // namespace

extern "C" {

// From now on this thread works on a stream of its own; nothing can be recorded on the default one.
char* tikhonov_leave_default_stream(int64_t cuda) {
  return guarded([&] {
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(cuda));
    const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
    guard.synchronizeDevice(device.index());
    guard.exchangeStream(guard.getStreamFromGlobalPool(device));
  });
}

// Whatever this thread asks of the device until the end is recorded, and not done. Other threads may go on with theirs.
char* tikhonov_graph_begin(int64_t cuda, Graph** graph) {
  return guarded([&] {
    *graph = nullptr;
#ifdef TIKHONOV_CUDA
    auto own = std::make_unique<Graph>();
    own->device = static_cast<c10::DeviceIndex>(cuda);
    own->graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    *graph = own.release();
#else
    lacking();
#endif
  });
}

char* tikhonov_graph_end(Graph* graph) {
  return guarded([&] {
#ifdef TIKHONOV_CUDA
    graph->graph.capture_end();
#else
    lacking();
#endif
  });
}

// Takes back a recording that failed half-way: the stream, the allocator and the generator go on as before.
void tikhonov_graph_abandon(Graph* graph) {
#ifdef TIKHONOV_CUDA
  regardless([&] { graph->graph.capture_end(); });
  regardless([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(graph->device, graph->graph.pool()); });
  regardless([&] {
    // A generator that was being recorded stays so; its twin was not.
    at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator(graph->device);
    const at::Generator twin = at::cuda::detail::createCUDAGenerator(graph->device);
    generator.graphsafe_set_state(twin.graphsafe_get_state());
  });
  regardless([&] { delete graph; });
#endif
}

// With the generator's seed and offset of now.
char* tikhonov_graph_replay(Graph* graph) {
  return guarded([&] {
#ifdef TIKHONOV_CUDA
    graph->graph.replay();
#else
    lacking();
#endif
  });
}

void tikhonov_graph_free(Graph* graph) { delete graph; }

// to = from without waiting, where `from` is in page-locked memory.
char* tikhonov_copy_ahead(at::Tensor* to, const at::Tensor* from) {
  return guarded([&] {
    const at::NoGradGuard untracked;
    to->copy_(*from, /*non_blocking=*/true);
  });
}

}  // extern "C"
