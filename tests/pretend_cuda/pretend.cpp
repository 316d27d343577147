// A pretend CUDA that computes on the CPU: built as libtorch_cuda.so, in a folder that LD_LIBRARY_PATH names, it is
// loaded in the place of libtorch's. Two devices. It refuses what CUDA refuses (tensors of two devices, waiting for the
// device while a graph is recorded), counts how often the host waits, and replays recorded graphs.
//
// PRETEND_CUDA_REPORT=FILE   the counters of `Counts`, an int64 each, up to date however the process ends
// PRETEND_CUDA_LIMIT=BYTES   larger allocations are out of memory
// PRETEND_CUDA_VERBOSE=1     every operator and every wait on stderr
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <set>

namespace {
constexpr int DEVICES = 2;
struct Counts { std::atomic<long> ops, syncs, blocking_copies, pinned_new, replays; };
Counts& count() {
  const char* file = getenv("PRETEND_CUDA_REPORT");
  const int fd = file ? open(file, O_RDWR | O_CREAT, 0666) : -1;
  if (fd < 0 || ftruncate(fd, sizeof(Counts))) return *new Counts{};
  return *static_cast<Counts*>(mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
}
Counts& counts = count();
bool verbose = getenv("PRETEND_CUDA_VERBOSE");

// ---- memory
struct Alloc final : c10::DeviceAllocator {
  static void del(void* p) { free(p); }
  c10::DataPtr allocate(size_t n) override;
  c10::DeleterFnPtr raw_deleter() const override { return &del; }
  void copy_data(void* d, const void* s, size_t n) const override { memcpy(d, s, n); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override { return {}; }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {}
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override { return {6ul << 30, 8ul << 30}; }
} alloc;

thread_local c10::DeviceIndex current = 0;
thread_local c10::StreamId streams[DEVICES] = {};
std::atomic<int> next_stream{1};

c10::DataPtr Alloc::allocate(size_t n) {
  static const size_t limit = getenv("PRETEND_CUDA_LIMIT") ? atol(getenv("PRETEND_CUDA_LIMIT")) : ~0ul;
  if (n > limit) C10_THROW_ERROR(OutOfMemoryError, "CUDA out of memory. Tried to allocate " + std::to_string(n) + " bytes (pretend)");
  void* p = nullptr;
  if (posix_memalign(&p, 64, n ? n : 64)) throw std::bad_alloc();
  memset(p, 0, n ? n : 64);
  return {p, p, &del, c10::Device(c10::kCUDA, current)};
}

std::mutex pin_lock; std::set<void*> pins;
struct Pinned final : at::HostAllocator {
  static void del(void* p) { { std::lock_guard<std::mutex> l(pin_lock); pins.erase(p); } free(p); }
  c10::DataPtr allocate(size_t n) override;
  c10::DeleterFnPtr raw_deleter() const override { return &del; }
  void copy_data(void* d, const void* s, size_t n) const override { memcpy(d, s, n); }
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
} pinned;
bool is_pinned(const void* p) { std::lock_guard<std::mutex> l(pin_lock); return pins.count(const_cast<void*>(p)); }

// ---- recording
struct Entry { std::function<void()> run; };
std::mutex tape_lock; std::vector<Entry>* tape = nullptr;   // one capture at a time
c10::DeviceIndex tape_device; c10::StreamId tape_stream;
bool invalid = false;
bool recording() { return tape && streams[tape_device] == tape_stream; }
void no_sync(const char* what) {
  ++counts.syncs;
  if (verbose) fprintf(stderr, "[pretend] sync: %s\n", what);
  if (recording()) { invalid = true; TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing (", what, ")"); }
}
c10::DataPtr Pinned::allocate(size_t n) {
  ++counts.pinned_new;
  TORCH_CHECK(!recording(), "CUDA error: operation not permitted when stream is capturing (cudaHostAlloc)");
  void* p = nullptr;
  if (posix_memalign(&p, 64, n ? n : 64)) throw std::bad_alloc();
  { std::lock_guard<std::mutex> l(pin_lock); pins.insert(p); }
  return {p, p, &del, c10::Device(c10::kCPU)};
}

// ---- device, streams, events
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device d) const override { auto was = getDevice(); current = d.index(); return was; }
  c10::Device getDevice() const override { return {c10::kCUDA, current}; }
  void setDevice(c10::Device d) const override { current = d.index(); }
  void uncheckedSetDevice(c10::Device d) const noexcept override { current = d.index(); }
  c10::Stream getStream(c10::Device d) const override { auto i = d.has_index() ? d.index() : current; return c10::Stream(c10::Stream::UNSAFE, {c10::kCUDA, i}, streams[i]); }
  c10::Stream getDefaultStream(c10::Device d) const override { return c10::Stream(c10::Stream::UNSAFE, d, 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override { return c10::Stream(c10::Stream::UNSAFE, d, next_stream++ % 32 + 1); }
  c10::Stream exchangeStream(c10::Stream s) const override { auto was = getStream(s.device()); streams[s.device_index()] = s.id(); return was; }
  void record(void** e, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override { *e = reinterpret_cast<void*>(1); }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { no_sync("synchronizeStream"); }
  void synchronizeEvent(void*) const override { no_sync("synchronizeEvent"); }
  void synchronizeDevice(const c10::DeviceIndex) const override { no_sync("synchronizeDevice"); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct Start { Start() { c10::SetAllocator(c10::kCUDA, &alloc); at::setHostAllocator(c10::kCUDA, &pinned, 10); }
  ~Start() {} } start;

at::Generator& generator(int i) {
  static std::vector<at::Generator> all = [] { std::vector<at::Generator> a; for (int k = 0; k < DEVICES; ++k) a.push_back(at::detail::createCPUGenerator()); return a; }();
  return all[i < 0 ? current : i];
}

// ---- operators
at::Tensor here(const at::Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  return at::from_blob(const_cast<void*>(t.const_data_ptr()), t.sizes(), t.strides(), [t](void*) {}, t.options().device(at::kCPU), at::Device(at::kCPU));
}
at::Tensor there(const at::Tensor& t, c10::Device d) {
  if (!t.defined() || t.is_cuda()) return t;
  c10::OptionalDeviceGuard g(d);
  at::Tensor out = at::detail::empty_strided_generic(t.sizes(), t.strides(), &alloc, c10::DispatchKeySet(c10::DispatchKey::CUDA), t.scalar_type());
  here(out).copy_(t);
  return out;
}
struct Mix { std::optional<c10::Device> cuda; bool cpu = false; void see(const at::Tensor& t) {
  if (!t.defined()) return;
  if (t.is_cuda()) { TORCH_CHECK(!cuda || *cuda == t.device(), "Expected all tensors to be on the same device, but found ", *cuda, " and ", t.device()); cuda = t.device(); }
  else if (t.dim() > 0) cpu = true; } };

template <typename F> c10::IValue map(const c10::IValue& v, F&& f) {
  if (v.isTensor()) return f(v.toTensor());
  if (v.isTensorList()) { c10::List<at::Tensor> out; for (const at::Tensor& t : v.toTensorVector()) out.push_back(f(t)); return out; }
  if (v.isOptionalTensorList()) { c10::List<std::optional<at::Tensor>> out; for (std::optional<at::Tensor> t : v.toOptionalTensorList()) out.push_back(t ? std::optional(f(*t)) : t); return out; }
  if (v.isDevice()) return c10::IValue(c10::Device(c10::kCPU));
  if (v.isGenerator()) return c10::IValue();
  return v;
}
const std::set<std::string> waits = {"aten::nonzero", "aten::bincount", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::unique_dim", "aten::repeat_interleave"};
const std::set<std::string> mixes = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::_local_scalar_dense"};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  ++counts.ops;
  const auto& schema = op.schema();
  const std::string& name = schema.name();
  if (verbose) fprintf(stderr, "[pretend] %s.%s\n", name.c_str(), schema.overload_name().c_str());
  if (waits.count(name)) no_sync(name.c_str());
  const size_t count = schema.arguments().size(), begin = stack->size() - count;
  std::vector<c10::IValue> given(stack->begin() + begin, stack->end());
  Mix mix;
  for (auto& v : given) map(v, [&](const at::Tensor& t) { mix.see(t); return t; });
  TORCH_CHECK(!(mix.cuda && mix.cpu) || mixes.count(name),
              "Expected all tensors to be on the same device, but found at least two devices, ", mix.cuda ? c10::str(*mix.cuda) : "?", " and cpu! (", name, ")");
  c10::Device device = mix.cuda.value_or(c10::Device(c10::kCUDA, current));
  bool writes = false;
  for (auto& a : schema.arguments()) writes |= a.alias_info() && a.alias_info()->isWrite();
  // An output that is to be resized gets its memory when its size is known.
  std::vector<bool> hollow(count);
  for (size_t i = 0; i < count; ++i) {
    auto* a = schema.arguments()[i].alias_info();
    hollow[i] = a && a->isWrite() && given[i].isTensor() && given[i].toTensor().defined() && given[i].toTensor().is_cuda() && (schema.arguments()[i].is_out() || given[i].toTensor().numel() == 0);
  }
  const auto compute = [op, given, hollow](bool on_copies) {
    torch::jit::Stack own;
    std::vector<at::Tensor> outs(hollow.size());
    for (size_t i = 0; i < given.size(); ++i) {
      if (hollow[i]) { outs[i] = at::empty({0}, given[i].toTensor().options().device(at::kCPU)); own.push_back(outs[i]); continue; }
      own.push_back(map(given[i], [&](const at::Tensor& t) { auto h = here(t); return on_copies && h.defined() ? h.clone() : h; }));
    }
    {
      at::AutoDispatchBelowADInplaceOrView below;
      op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &own);
    }
    for (size_t i = 0; i < hollow.size(); ++i) if (hollow[i]) {
      const at::Tensor to = given[i].toTensor();
      if (to.numel() != outs[i].numel() || to.sizes() != outs[i].sizes()) at::native::resize_(to, outs[i].sizes(), outs[i].suggest_memory_format());
      if (!on_copies) here(to).copy_(outs[i]);
    }
    return own;
  };
  bool any_hollow = std::count(hollow.begin(), hollow.end(), true) > 0;
  const bool rec = recording();
  torch::jit::Stack made;
  bool has_new = false;
  for (auto& r : schema.returns()) has_new |= !(r.alias_info() && r.alias_info()->isWrite());
  if (!rec || has_new || any_hollow) made = compute(rec);
  std::vector<c10::IValue> out;
  for (size_t i = 0; i < schema.returns().size(); ++i) {
    auto* alias = schema.returns()[i].alias_info();
    if (alias && alias->isWrite()) {
      bool found = false;
      for (size_t k = 0; k < count && !found; ++k) {
        auto* own = schema.arguments()[k].alias_info();
        if (own && own->isWrite() && own->beforeSets() == alias->beforeSets()) { out.push_back(given[k]); found = true; }
      }
      TORCH_CHECK(found, "pretend: no argument for return of ", name);
    } else {
      TORCH_CHECK(!alias, "pretend: ", name, ".", schema.overload_name(), " is a view and not registered");
      out.push_back(map(made[i], [&](const at::Tensor& t) { return there(t, device); }));
    }
  }
  if (rec) {
    std::lock_guard<std::mutex> l(tape_lock);
    tape->push_back({[compute, out, has_new] {
      auto now = compute(false);
      if (!has_new) return;
      for (size_t i = 0; i < out.size() && i < now.size(); ++i) {
        if (out[i].isTensor() && out[i].toTensor().defined() && now[i].isTensor()) { auto to = here(out[i].toTensor()); if (to.data_ptr() != now[i].toTensor().data_ptr()) to.copy_(now[i].toTensor()); }
        else if (out[i].isTensorList()) { auto a = out[i].toTensorVector(), b = now[i].toTensorVector(); for (size_t k = 0; k < a.size(); ++k) if (a[k].defined()) here(a[k]).copy_(b[k]); }
      }
    }});
  }
  torch::jit::drop(*stack, count);
  for (auto& v : out) stack->push_back(std::move(v));
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  ++counts.ops;
  const bool down = src.is_cuda() && !self.is_cuda(), up = !src.is_cuda() && self.is_cuda();
  if (up || down) {
    const void* host = up ? src.const_data_ptr() : self.const_data_ptr();
    const bool waits = !non_blocking || !is_pinned(host);
    if (waits) { ++counts.blocking_copies; no_sync(up ? "copy from pageable memory, or blocking" : "copy to the host"); }
  }
  if (recording()) {
    std::lock_guard<std::mutex> l(tape_lock);
    tape->push_back({[self, src] { here(self).copy_(here(src)); }});
    return self;
  }
  here(self).copy_(here(src));
  return self;
}
at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::OptionalDeviceGuard g(device && device->has_index() ? device : std::nullopt);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &alloc, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}
at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef strides, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard g(device && device->has_index() ? device : std::nullopt);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(strides), &alloc, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}
at::Scalar item(const at::Tensor& t) { no_sync("item"); return at::native::_local_scalar_dense_cpu(here(t)); }
at::Tensor view(const at::Tensor& t, c10::SymIntArrayRef s) { return at::native::view(t, C10_AS_INTARRAYREF_SLOW(s)); }
at::Tensor as_strided(const at::Tensor& t, c10::SymIntArrayRef s, c10::SymIntArrayRef st, std::optional<c10::SymInt> o) {
  return at::native::as_strided_tensorimpl(t, C10_AS_INTARRAYREF_SLOW(s), C10_AS_INTARRAYREF_SLOW(st), o ? std::optional(o->expect_int()) : std::nullopt); }
at::Tensor reshape_alias(const at::Tensor& t, c10::SymIntArrayRef s, c10::SymIntArrayRef st) { return at::native::_reshape_alias(t, C10_AS_INTARRAYREF_SLOW(s), C10_AS_INTARRAYREF_SLOW(st)); }
const at::Tensor& resize_(const at::Tensor& t, c10::SymIntArrayRef s, std::optional<at::MemoryFormat> f) { return at::native::resize_(t, C10_AS_INTARRAYREF_SLOW(s), f); }
void record_stream(at::Tensor&, at::Stream) {}
at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& s) { return at::native::set_tensor_(self, s); }
at::Tensor& set_storage(at::Tensor& self, at::Storage s, c10::SymInt o, c10::SymIntArrayRef sz, c10::SymIntArrayRef st) { return at::native::set_storage_cpu_(self, s, o.expect_int(), C10_AS_INTARRAYREF_SLOW(sz), C10_AS_INTARRAYREF_SLOW(st)); }

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_local_scalar_dense", item);
  m.impl("view", view);
  m.impl("as_strided", as_strided);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("resize_", resize_);
  m.impl("record_stream", record_stream);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  // What libtorch makes of others for every device, but with stubs that a device must fill.
  for (const char* name : {"fill_.Scalar", "fill_.Tensor", "masked_fill", "repeat_interleave.Tensor", "masked_fill_.Scalar", "convolution", "convolution_backward"}) {
    try { m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>()); } catch (const std::exception&) {}
  }
}
}  // namespace

// ---- hooks
namespace at::pretend_cuda {
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  int getNumGPUs() const override { return DEVICES; }
  c10::DeviceIndex current_device() const override { return current; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex i) const override { return generator(i); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  at::Device getDeviceFromPtr(void*) const override { return {c10::kCUDA, current}; }
  bool isPinnedPtr(const void* p) const override { return is_pinned(p); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  at::Allocator* getCUDADeviceAllocator() const override { return &alloc; }
  void deviceSynchronize(c10::DeviceIndex) const override { no_sync("deviceSynchronize"); }
  std::string showConfig() const override { return "pretend CUDA\n"; }
};
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks)
}

// ---- what cuda_half.cpp wants
namespace c10::cuda::CUDACachingAllocator { std::atomic<CUDAAllocator*> allocator{nullptr}; }
namespace at::cuda {
cudaDeviceProp* getDeviceProperties(c10::DeviceIndex) { static cudaDeviceProp p = [] { cudaDeviceProp q{}; strcpy(q.name, "Pretend GPU"); q.major = 9; q.multiProcessorCount = 1; return q; }(); return &p; }
namespace detail { const at::Generator& getDefaultCUDAGenerator(c10::DeviceIndex i) { return generator(i); }
at::Generator createCUDAGenerator(c10::DeviceIndex) { return at::detail::createCPUGenerator(); } }
std::map<CUDAGraph*, std::vector<Entry>> graphs;
at::Tensor random_state;
CUDAGraph::CUDAGraph(bool keep) : capture_stream_(c10::cuda::CUDAStream::UNCHECKED, c10::Stream(c10::Stream::UNSAFE, {c10::kCUDA, 0}, 0)), keep_graph_(keep) {}
CUDAGraph::~CUDAGraph() { graphs.erase(this); if (tape) { tape = nullptr; } }
void CUDAGraph::capture_begin(MempoolId_t, cudaStreamCaptureMode) {
  TORCH_CHECK(streams[current] != 0, "CUDA graphs must be captured on a non-default stream.");
  capture_dev_ = current; tape_device = current; tape_stream = streams[current]; tape = &graphs[this]; invalid = false; random_state = at::globalContext().defaultGenerator(at::kCPU).get_state();
}
void CUDAGraph::capture_end() { TORCH_CHECK(tape, "no capture"); tape = nullptr; at::Generator(at::globalContext().defaultGenerator(at::kCPU)).set_state(random_state); TORCH_CHECK(!invalid, "CUDA error: operation failed due to a previous error during capture"); capture_ended_ = true; at::Generator(at::globalContext().defaultGenerator(at::kCPU)).set_state(random_state); if (verbose) fprintf(stderr, "[pretend] recorded %zu operations\n", graphs[this].size()); }
void CUDAGraph::replay() { ++counts.replays; counts.ops += 1; for (auto& e : graphs[this]) { const c10::AutoGradMode off(false); e.run(); } }
MempoolId_t CUDAGraph::pool() { TORCH_CHECK(capture_ended_, "Called CUDAGraph::pool() without a preceding successful capture."); return {1, 0}; }
}
