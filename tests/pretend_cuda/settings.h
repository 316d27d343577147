// The environment, the counters, and the failures that are asked for.
#pragma once

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace pretend {

constexpr int DEVICES = 2;
const bool verbose = getenv("PRETEND_CUDA_VERBOSE");

// operators            computed on the device, or recorded
// syncs                the host waited for the device
// blocking_copies      those of `syncs` that were copies from pageable memory, or to the host
// pinned_allocations   page-locked memory allocated
// recordings, replays  graphs begun, and replayed
// random               random operators, recorded ones at each replay
// open_pools           pools to which allocations go at this moment; 0 unless a graph is being recorded
// kept_pools           pools that are not released
// live, peak           bytes allocated at this moment, and at most
// delayed              bytes given back by the program and kept because a pool is open
// empty_caches         calls of emptyCache
// races                two streams used memory without an event between them
// unrecorded           memory given back while another stream may use it
// failures             those of PRETEND_CUDA_FAIL that came
#define PRETEND_COUNTERS(X)                                                                                       \
  X(operators) X(syncs) X(blocking_copies) X(pinned_allocations) X(recordings) X(replays) X(random) X(open_pools) \
  X(kept_pools) X(live) X(peak) X(delayed) X(empty_caches) X(races) X(unrecorded) X(failures)

struct Counter {
  char label[24];
  std::atomic<int64_t> value;
  int64_t operator+=(int64_t more) { return value += more; }
  void operator++() { ++value; }
};

struct Counters {
#define X(field) Counter field;
  PRETEND_COUNTERS(X)
#undef X
};

inline Counters& open_counters() {
  const char* file = getenv("PRETEND_CUDA_REPORT");
  const int fd = file ? open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0666) : -1;
  void* shared = MAP_FAILED;
  if (fd >= 0 && ftruncate(fd, sizeof(Counters)) == 0)
    shared = mmap(nullptr, sizeof(Counters), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  auto& counters = shared == MAP_FAILED ? *new Counters{} : *static_cast<Counters*>(shared);
#define X(field) strncpy(counters.field.label, #field, sizeof(counters.field.label) - 1);
  PRETEND_COUNTERS(X)
#undef X
  return counters;
}
inline Counters& counters = open_counters();

template <typename... Args>
void complain(Counter& counter, const Args&... args) {
  ++counter;
  // Once each, or a run of many steps says nothing else.
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::string text = c10::str(args...);
  std::lock_guard<std::mutex> lock(mutex);
  if (said.insert(text).second) fprintf(stderr, "[pretend CUDA] %s\n", text.c_str());
}

// PRETEND_CUDA_FAIL=KIND@N or KIND@record:N.
struct Failure {
  std::string kind;
  bool recorded_only = false;
  std::atomic<int64_t> left{-1};
  std::atomic<bool> broken{false};

  Failure() {
    const char* text = getenv("PRETEND_CUDA_FAIL");
    if (!text) return;
    const std::string all = text;
    const auto at = all.find('@');
    std::string count = at == std::string::npos ? "" : all.substr(at + 1);
    kind = all.substr(0, at);
    recorded_only = count.rfind("record:", 0) == 0;
    if (recorded_only) count = count.substr(7);
    left = strtol(count.c_str(), nullptr, 10);
    if (left <= 0 || (kind != "memory" && kind != "launch" && kind != "cudnn" && kind != "cublas")) {
      fprintf(stderr, "[pretend CUDA] PRETEND_CUDA_FAIL: expected KIND@N or KIND@record:N\n");
      abort();
    }
  }

  // Texts as CUDA's and libtorch's.
  void maybe(bool is_allocation, bool recorded, const char* what) {
    TORCH_CHECK(!broken, "CUDA error: unspecified launch failure");
    if (left < 0 || is_allocation != (kind == "memory") || (recorded_only && !recorded) || --left != 0) return;
    left = -1;
    ++counters.failures;
    if (kind == "memory") out_of_memory(2 << 20);
    TORCH_CHECK(kind != "cudnn", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED");
    TORCH_CHECK(kind != "cublas", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`");
    broken = true;
    TORCH_CHECK(false, "CUDA error: unspecified launch failure\n(", what, ")");
  }

  [[noreturn]] static void out_of_memory(size_t bytes) {
    C10_THROW_ERROR(OutOfMemoryError, c10::str("CUDA out of memory. Tried to allocate ", bytes, " bytes."));
  }
};
inline Failure failure;

}  // namespace pretend
