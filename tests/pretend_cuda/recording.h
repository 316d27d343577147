// CUDA graphs: what is recorded is a list of functions, which a replay calls.
#pragma once

#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/GradMode.h>

#include "generator.h"

namespace pretend {

struct Tape {
  std::vector<std::function<void()>> work;
  // The memory that it uses, and whether it writes there.
  std::map<Block*, std::pair<at::Tensor, bool>> uses;
  c10::DeviceIndex device;
  int stream;
  bool invalid = false;

  void add(std::function<void()> next) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    work.push_back(std::move(next));
  }
  void use(const at::Tensor& tensor, bool writes) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (Block* block = block_of(tensor)) {
      auto& use = uses[block];
      use = {tensor, use.second || writes};
    }
  }
};

inline std::atomic<Tape*> tapes[ALL];
// A thread that records may not wait for any stream.
inline thread_local Tape* own_tape = nullptr;

inline bool is_recording(int stream) { return tapes[stream]; }
inline Tape* tape_of(c10::DeviceIndex device) { return tapes[stream_of(device)]; }
inline Tape* any_tape() {
  for (int device = 0; device < DEVICES; ++device)
    if (Tape* tape = tape_of(device)) return tape;
  return own_tape;
}
inline bool is_recording() { return any_tape(); }
inline void invalidate() {
  if (Tape* tape = any_tape()) tape->invalid = true;
}
inline auto& recordings = *new std::map<at::cuda::CUDAGraph*, std::unique_ptr<Tape>>;

}  // namespace pretend

namespace at::cuda {

// The order of what happens is libtorch 2.11's, because a failure leaves what was done before it.
CUDAGraph::CUDAGraph(bool keep_graph)
    : capture_stream_(c10::cuda::CUDAStream::UNCHECKED, pretend::Guard::make(0, 0)), keep_graph_(keep_graph) {}

MempoolId_t graph_pool_handle() {
  static std::atomic<c10::CaptureId_t> next{1};
  return {0, next++};
}

void CUDAGraph::capture_begin(MempoolId_t pool, cudaStreamCaptureMode) {
  static std::atomic<c10::CaptureId_t> next{1};
  TORCH_CHECK(!capture_ended_, "This CUDAGraph instance already owns a captured graph.");
  ++pretend::counters.recordings;
  capture_dev_ = pretend::current;
  pretend::generator_state(capture_dev_).recording = true;
  const int stream = pretend::stream_of(capture_dev_);
  TORCH_CHECK(stream % pretend::STREAMS, "CUDA graphs must be captured on a non-default stream. (However, after "
              "capture, it's ok to replay them on the default stream.)");
  mempool_id_ = pool.first || pool.second ? pool : MempoolId_t{next++, 0};
  const auto id = pretend::own_stream[capture_dev_];
  pretend::allocator.beginAllocateToPool(capture_dev_, mempool_id_, [id](cudaStream_t stream) {
    return reinterpret_cast<c10::StreamId>(stream) == id;
  });
  pretend::pinned.begin_allocate_to_pool(mempool_id_, {});
  auto tape = std::make_unique<pretend::Tape>();
  tape->device = capture_dev_;
  tape->stream = stream;
  pretend::own_tape = tape.get();
  pretend::tapes[stream] = tape.get();
  std::lock_guard<std::recursive_mutex> lock(pretend::mutex);
  pretend::recordings[this] = std::move(tape);
}

void CUDAGraph::capture_end() {
  pretend::Tape* tape = pretend::own_tape;
  TORCH_CHECK(tape && tape == pretend::recordings[this].get(), "CUDA error: operation not permitted (no capture)");
  pretend::own_tape = nullptr;
  pretend::tapes[tape->stream] = nullptr;
  TORCH_CHECK(!tape->invalid, "CUDA error: operation failed due to a previous error during capture");
  pretend::allocator.endAllocateToPool(capture_dev_, mempool_id_);
  pretend::pinned.end_allocate_to_pool(mempool_id_);
  pretend::generator_state(capture_dev_).recording = false;
  capture_ended_ = has_graph_ = has_graph_exec_ = true;
  if (pretend::verbose) fprintf(stderr, "[pretend CUDA] recorded %zu operators\n", tape->work.size());
}

void CUDAGraph::replay() {
  TORCH_CHECK(capture_ended_, "Called CUDAGraph::replay without a preceding successful capture.");
  ++pretend::counters.replays;
  auto& tape = *pretend::recordings[this];
  const int stream = pretend::stream_of(tape.device);
  {
    std::lock_guard<std::recursive_mutex> lock(pretend::mutex);
    pretend::catch_up(stream, INT64_MAX, false);
    const int64_t number = pretend::next_number(stream);
    for (const auto& [block, use] : tape.uses) pretend::note_use(use.first, stream, number, use.second, "a replay");
  }
  const c10::AutoGradMode off(false);
  for (const auto& work : tape.work) work();
}

MempoolId_t CUDAGraph::pool() {
  TORCH_CHECK(capture_ended_, "Called CUDAGraph::pool() without a preceding successful capture.");
  return mempool_id_;
}

void CUDAGraph::reset() {
  if (capture_ended_) {
    pretend::allocator.releasePool(capture_dev_, mempool_id_);
    pretend::pinned.release_pool(mempool_id_);
  }
  capture_ended_ = has_graph_ = has_graph_exec_ = false;
}

CUDAGraph::~CUDAGraph() {
  reset();
  std::unique_ptr<pretend::Tape> tape;
  {
    std::lock_guard<std::recursive_mutex> lock(pretend::mutex);
    tape = std::move(pretend::recordings[this]);
    pretend::recordings.erase(this);
  }
  if (!tape) return;
  if (pretend::own_tape == tape.get()) pretend::own_tape = nullptr;
  if (pretend::tapes[tape->stream] == tape.get()) pretend::tapes[tape->stream] = nullptr;
}

void CUDAGraph::instantiate() {}
void CUDAGraph::register_generator_state(c10::intrusive_ptr<at::CUDAGeneratorState>) {}
void CUDAGraph::register_generator_state(const at::Generator&) {}

}  // namespace at::cuda
