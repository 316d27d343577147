// CUDA graphs: work of the device that is recorded once and replayed as a whole. Every function returns nullptr, or
// the text of the exception.

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "cuda.h"
#include "guarded.h"

using tikhonov::Recording;

extern "C" {

// From now on this thread works on a stream of its own, because the default stream cannot be recorded.
char* tikhonov_leave_default_stream(int64_t cuda) {
  return guarded([&] {
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(cuda));
    const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
    guard.synchronizeDevice(device.index());
    guard.exchangeStream(guard.getStreamFromGlobalPool(device));
  });
}

char* tikhonov_graph_begin(int64_t cuda, Recording** graph) {
  return guarded([&] {
    *graph = nullptr;
    *graph = tikhonov::cuda().record(static_cast<c10::DeviceIndex>(cuda)).release();
  });
}

char* tikhonov_graph_end(Recording* graph) {
  return guarded([&] { graph->end(); });
}

void tikhonov_graph_abandon(Recording* graph) {
  graph->abandon();
  delete graph;
}

char* tikhonov_graph_replay(Recording* graph) {
  return guarded([&] { graph->replay(); });
}

void tikhonov_graph_free(Recording* graph) { delete graph; }

// Copies without waiting, where `from` is in page-locked memory.
char* tikhonov_copy_async(at::Tensor* to, const at::Tensor* from) {
  return guarded([&] {
    const at::NoGradGuard untracked;
    to->copy_(*from, /*non_blocking=*/true);
  });
}

}  // extern "C"
