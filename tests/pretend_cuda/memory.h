// Memory of the devices and page-locked memory of the host.
#pragma once

#include <ATen/core/CachingHostAllocator.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include "streams.h"

namespace pretend {

using c10::MempoolId_t;

// An address of the device is the host's with this bit, which is no address of the host on x86-64 and aarch64.
constexpr uintptr_t DEVICE_BIT = uintptr_t(1) << 52;
inline void* device_address(void* p) { return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(p) | DEVICE_BIT); }
inline void* host_address(const void* p) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(p) & ~DEVICE_BIT);
}

struct Use {
  int64_t read = 0, write = 0;
};

struct Block {
  void* memory;
  size_t bytes;
  c10::DeviceIndex device;
  int stream;  // that it was allocated on
  MempoolId_t pool;
  std::map<int, Use> uses;
  std::set<int> recorded;
};

inline void* allocate_host(size_t bytes, int fill) {
  void* p = nullptr;
  if (posix_memalign(&p, 64, bytes ? bytes : 64)) throw std::bad_alloc();
  memset(p, fill, bytes ? bytes : 64);
  return p;
}

// NaN in every floating-point type.
constexpr int NOTHING = 0xff;

struct DeviceMemory {
  struct Pool {
    int64_t live = 0, reserved = 0;
    int uses = 0;
    bool open = false;
    std::function<bool(cudaStream_t)> filter;
  };
  std::map<MempoolId_t, Pool> pools;
  std::vector<Block*> delayed;
  // Uses of memory that was given back, by the stream that may allocate it anew.
  std::vector<std::pair<int, std::map<int, Use>>> given_back;

  bool any_open() const {
    return std::any_of(pools.begin(), pools.end(), [](const auto& pool) { return pool.second.open; });
  }
  int64_t reserved() const {
    int64_t all = 0;
    for (const auto& [id, pool] : pools) all += pool.reserved;
    return all;
  }
};
inline DeviceMemory memories[DEVICES];

inline Block* block_of(const at::Tensor& tensor) {
  return tensor.has_storage() ? static_cast<Block*>(tensor.storage().data_ptr().get_context()) : nullptr;
}

// Whether the stream knows that this is over.
inline bool is_over(int stream, int other, int64_t number) {
  return stream == other || std::max(states[stream].seen[other], host_seen[other]) >= number;
}

// A stream uses the memory of a tensor, by work of this number.
inline void note_use(const at::Tensor& tensor, int stream, int64_t number, bool writes, const std::string& what) {
  Block* block = block_of(tensor);
  if (!block) return;
  for (const auto& [other, use] : block->uses) {
    const int64_t before = writes ? std::max(use.read, use.write) : use.write;
    if (before && !is_over(stream, other, before))
      complain(counters.races, what, ": streams ", other % STREAMS, " and ", stream % STREAMS,
               " use the same memory, and no event is between them");
  }
  auto& use = block->uses[stream];
  (writes ? use.write : use.read) = number;
}

struct Allocator final : c10::cuda::CUDACachingAllocator::CUDAAllocator {
  static constexpr MempoolId_t ORDINARY{0, 0};

  static int64_t limit() {
    static const char* text = getenv("PRETEND_CUDA_MEMORY");
    static const int64_t bytes = text ? atoll(text) : int64_t(8) << 30;
    return bytes;
  }

  c10::DataPtr allocate(size_t bytes) override {
    const auto device = current;
    const int stream = stream_of(device);
    failure.maybe(true, is_recording(stream), "cudaMalloc");
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto& memory = memories[device];
    MempoolId_t id = ORDINARY;
    for (auto& [other, pool] : memory.pools)
      if (pool.open && pool.filter(reinterpret_cast<cudaStream_t>(own_stream[device]))) id = other;
    auto& pool = memory.pools[id];
    if (pool.live + int64_t(bytes) > pool.reserved) {
      const auto grown = [&] { return memory.reserved() - pool.reserved + pool.live + int64_t(bytes); };
      // Cached blocks can be given back, but not while a graph is recorded.
      if (grown() > limit() && !memory.any_open()) trim(device);
      if (grown() > limit()) Failure::out_of_memory(bytes);
      pool.reserved = pool.live + bytes;
    }
    pool.live += bytes;
    count(bytes);
    for (auto each = memory.given_back.begin(); each != memory.given_back.end();) {
      if (each->first != stream) {
        ++each;
        continue;
      }
      for (const auto& [other, use] : each->second)
        if (!is_over(stream, other, std::max(use.read, use.write)))
          complain(counters.unrecorded, "memory of stream ", stream % STREAMS, " was used on stream ",
                   other % STREAMS, " and given back without record_stream");
      each = memory.given_back.erase(each);
    }
    auto* block = new Block{allocate_host(bytes, NOTHING), bytes, device, stream, id};
    return {device_address(block->memory), block, &give_back, c10::Device(c10::kCUDA, device)};
  }

  static void give_back(void* context) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto* block = static_cast<Block*>(context);
    auto& memory = memories[block->device];
    if (!block->recorded.empty() && memory.any_open()) {
      counters.delayed += block->bytes;
      memory.delayed.push_back(block);
      return;
    }
    std::map<int, Use> others;
    for (const auto& [stream, use] : block->uses)
      if (stream != block->stream && !block->recorded.count(stream)) others[stream] = use;
    if (!others.empty()) memory.given_back.emplace_back(block->stream, others);
    drop(block);
  }
  static void drop(Block* block) {
    memories[block->device].pools[block->pool].live -= block->bytes;
    count(-int64_t(block->bytes));
    free(block->memory);
    delete block;
  }
  static void count(int64_t bytes) {
    const int64_t live = counters.live += bytes;
    if (live > counters.peak.value) counters.peak.value = live;
  }
  static void trim(c10::DeviceIndex device) {
    for (auto& [id, pool] : memories[device].pools)
      if (id == ORDINARY || pool.uses == 0) pool.reserved = pool.live;
  }

  void beginAllocateToPool(c10::DeviceIndex device, MempoolId_t id, std::function<bool(cudaStream_t)> filter) override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto& pool = memories[device].pools[id];
    if (pool.uses++ == 0) ++counters.kept_pools;
    TORCH_CHECK(!pool.open, "beginAllocateToPool: already recording to mempool_id");
    pool.open = true;
    pool.filter = std::move(filter);
    ++counters.open_pools;
  }
  void endAllocateToPool(c10::DeviceIndex device, MempoolId_t id) override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto& memory = memories[device];
    auto& pool = memory.pools[id];
    TORCH_CHECK(pool.open, "endAllocatePool: not currently recording to mempool_id");
    pool.open = false;
    counters.open_pools += -1;
    if (memory.any_open()) return;
    for (Block* block : memory.delayed) {
      counters.delayed += -int64_t(block->bytes);
      drop(block);
    }
    memory.delayed.clear();
  }
  void releasePool(c10::DeviceIndex device, MempoolId_t id) override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto& pool = memories[device].pools[id];
    TORCH_CHECK(pool.uses > 0, "releasePool: no such mempool_id");
    if (--pool.uses == 0) counters.kept_pools += -1;
  }
  int getPoolUseCount(c10::DeviceIndex device, MempoolId_t id) override { return memories[device].pools[id].uses; }
  void createOrIncrefPool(c10::DeviceIndex device, MempoolId_t id, std::shared_ptr<CUDAAllocator>) override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (memories[device].pools[id].uses++ == 0) ++counters.kept_pools;
  }

  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (auto* block = static_cast<Block*>(data.get_context())) block->recorded.insert(key(stream));
  }
  void recordStream(const c10::DataPtr& data, c10::cuda::CUDAStream stream) override {
    recordStream(data, stream.unwrap());
  }
  void emptyCache(MempoolId_t) override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    ++counters.empty_caches;
    for (int device = 0; device < DEVICES; ++device) trim(device);
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    return {std::max<int64_t>(0, limit() - memories[device].reserved()), limit()};
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override { return {}; }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {}
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    memcpy(host_address(to), host_address(from), bytes);
  }
  bool initialized() override { return true; }
  void init(int) override {}
  std::string name() override { return "pretend"; }
  double getMemoryFraction(c10::DeviceIndex) override { return 1; }
  void setMemoryFraction(double, c10::DeviceIndex) override {}
  std::vector<c10::cuda::CUDACachingAllocator::StreamSegmentSize> getExpandableSegmentSizes(c10::DeviceIndex) override {
    return {};
  }
  void enable(bool) override {}
  bool isEnabled() const override { return true; }
  void cacheInfo(c10::DeviceIndex, size_t* largest) override { *largest = 0; }
  void attachOutOfMemoryObserver(c10::cuda::CUDACachingAllocator::OutOfMemoryObserver) override {}
  void attachAllocatorTraceTracker(c10::cuda::CUDACachingAllocator::AllocatorTraceTracker) override {}
  void recordHistory(bool, c10::cuda::CUDACachingAllocator::CreateContextFn, size_t,
                     c10::cuda::CUDACachingAllocator::RecordContext, bool, const std::vector<std::string>&) override {}
  void enablePeerAccess(c10::DeviceIndex, c10::DeviceIndex) override {}
  // What the program does not use.
  void* raw_alloc(size_t) override { return missing(); }
  void* raw_alloc_with_stream(size_t, cudaStream_t) override { return missing(); }
  void raw_delete(void*) override { missing(); }
  void* getBaseAllocation(void*, size_t*) override { return missing(); }
  c10::cuda::CUDACachingAllocator::SnapshotInfo snapshot(MempoolId_t, bool) override { missing(); return {}; }
  c10::cuda::CUDACachingAllocator::ShareableHandle shareIpcHandle(void*) override { missing(); return {}; }
  std::shared_ptr<void> getIpcDevPtr(std::string) override { missing(); return {}; }
  cudaError_t memcpyAsync(void*, int, const void*, int, size_t, cudaStream_t, bool) override {
    missing();
    return cudaSuccess;
  }
  std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState> getCheckpointState(c10::DeviceIndex,
                                                                                      MempoolId_t) override {
    missing();
    return {};
  }
  c10::cuda::CUDACachingAllocator::CheckpointDelta setCheckpointPoolState(
      c10::DeviceIndex, std::shared_ptr<c10::cuda::CUDACachingAllocator::AllocatorState>) override {
    missing();
    return {};
  }
  static void* missing() { TORCH_CHECK(false, "the pretend CUDA's allocator does not have this"); }
};
inline Allocator& allocator = *new Allocator;

struct PinnedAllocator final : at::HostAllocator {
  std::map<const char*, size_t> blocks;
  std::set<MempoolId_t> open, kept;

  c10::DataPtr allocate(size_t bytes) override;
  static void give_back(void* p);
  bool has(const void* p) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto after = blocks.upper_bound(static_cast<const char*>(p));
    return after != blocks.begin() && static_cast<const char*>(p) < std::prev(after)->first + std::prev(after)->second;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
  // A late copy holds the tensor that it copies.
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
  void begin_allocate_to_pool(MempoolId_t id, std::function<bool(c10::Stream)>) override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (open.insert(id).second) ++counters.open_pools;
    if (kept.insert(id).second) ++counters.kept_pools;
  }
  void end_allocate_to_pool(MempoolId_t id) override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (open.erase(id)) counters.open_pools += -1;
  }
  void release_pool(MempoolId_t id) override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (kept.erase(id)) counters.kept_pools += -1;
  }
};
inline PinnedAllocator& pinned = *new PinnedAllocator;

inline c10::DataPtr PinnedAllocator::allocate(size_t bytes) {
  ++counters.pinned_allocations;
  void* p = allocate_host(bytes, NOTHING);
  std::lock_guard<std::recursive_mutex> lock(mutex);
  blocks[static_cast<char*>(p)] = std::max<size_t>(bytes, 1);
  return {p, p, &give_back, c10::Device(c10::kCPU)};
}
inline void PinnedAllocator::give_back(void* p) {
  {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    pinned.blocks.erase(static_cast<char*>(p));
  }
  free(p);
}

// The tensor of the CPU that shares the memory of one of the device.
inline at::Tensor here(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  const void* data = tensor.const_data_ptr();
  return at::from_blob(data ? host_address(data) : nullptr, tensor.sizes(), tensor.strides(), [tensor](void*) {},
                       tensor.options().device(at::kCPU), at::Device(at::kCPU));
}

}  // namespace pretend
