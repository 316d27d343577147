// PyTorch's c10d without Python: the store, the gloo process group and DistributedDataParallel's Reducer. Errors as in
// shim.cpp.

#define USE_C10D_GLOO

#include <ATen/ATen.h>
#include <c10/util/Logging.h>
#include <cstring>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include "lists.h"

using c10d::ProcessGroup;
using c10d::ProcessGroupGloo;
using std::chrono::milliseconds;

namespace {

// What all ranks call the default group, as torch.distributed does.
constexpr const char* GROUP = "default_pg";

// Gradients cross the network as bfloat16, half the bytes of float32 (torch.distributed's bf16_compress_hook).
struct Bf16CompressHook final : c10d::CppCommHookInterface<c10::intrusive_ptr<ProcessGroup>> {
  using CppCommHookInterface::CppCommHookInterface;

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    const auto kind = bucket.getBuffer().scalar_type();
    // Divided before, so that the sum does not grow with the number of ranks.
    std::vector<at::Tensor> small{bucket.getBuffer().to(at::kBFloat16).div_(state_->getSize())};
    auto work = state_->allreduce(small);
    return work->getFuture()->then(
        [kind, work](c10::ivalue::Future& done) -> c10::IValue {
          const auto result = done.value();
          const auto sum = result.isTensorList() ? result.toTensorVector()[0] : result.toTensor();
          return std::vector<at::Tensor>{sum.to(kind)};
        },
        c10::ListType::ofTensors());
  }

  at::Tensor parseHookResult(const c10::IValue& result) override {
    return result.isTensorList() ? result.toTensorVector()[0] : result.toTensor();
  }
};

// While it lives, c10d does not log what it then throws.
struct Silence {
  const int before = FLAGS_caffe2_log_level;
  Silence() { FLAGS_caffe2_log_level = c10::GLOG_FATAL; }
  ~Silence() { FLAGS_caffe2_log_level = before; }
};

// The Reducer compares strides of axes of length 1 too, which mean nothing, and warns of each.
struct WithoutStrides final : c10::WarningHandler {
  void process(const c10::Warning& warning) override {
    if (warning.msg().find("Grad strides do not match") == std::string::npos) c10::WarningHandler::process(warning);
  }
};

}  // namespace

struct TikhonovStore {
  c10::intrusive_ptr<c10d::Store> store;
  uint16_t port;
};

struct TikhonovGroup {
  c10::intrusive_ptr<ProcessGroup> group;
};

struct TikhonovReducer {
  std::shared_ptr<c10d::Reducer> reducer;
};

struct TikhonovWork {
  c10::intrusive_ptr<c10d::Work> work;
  std::vector<at::Tensor> tensors;
};

extern "C" {

// The key-value store of a job. With `serves` this process hosts it (port 0 takes a free one). `workers` > 0 waits
// until so many processes have joined.
char* tikhonov_store_open(const char* host, uint16_t port, bool serves, bool shared, int workers, int64_t timeout_ms,
                          const char* prefix, TikhonovStore** out) {
  return guarded([&] {
    const Silence silence;
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves;
    options.multiTenant = shared;
    if (workers > 0) options.numWorkers = workers;
    options.waitWorkers = workers > 0;
    options.timeout = milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
    const uint16_t taken = tcp->getPort();
    c10::intrusive_ptr<c10d::Store> store = std::move(tcp);
    if (*prefix) store = c10::make_intrusive<c10d::PrefixStore>(prefix, store);
    *out = new TikhonovStore{store, taken};
  });
}

void tikhonov_store_free(TikhonovStore* store) { delete store; }

uint16_t tikhonov_store_port(const TikhonovStore* store) { return store->port; }

char* tikhonov_store_set(TikhonovStore* store, const char* key, const uint8_t* bytes, size_t count) {
  return guarded([&] { store->store->set(key, std::vector<uint8_t>(bytes, bytes + count)); });
}

// The value of a key, allocated with malloc; `found` is false where it is not set.
char* tikhonov_store_get(TikhonovStore* store, const char* key, bool* found, uint8_t** bytes, size_t* count) {
  return guarded([&] {
    *found = store->store->check({key});
    if (!*found) return;
    const auto value = store->store->get(key);
    *count = value.size();
    *bytes = static_cast<uint8_t*>(malloc(value.size() + 1));
    TORCH_CHECK(*bytes, "out of memory");
    memcpy(*bytes, value.data(), value.size());
  });
}

// Whether this is the first call for the key, of all processes.
char* tikhonov_store_claim(TikhonovStore* store, const char* key, bool* claimed) {
  return guarded([&] { *claimed = store->store->add(key, 1) == 1; });
}

// The gloo group of all ranks; waits until all have come. `interface` is the network's name, or empty.
char* tikhonov_group_join(TikhonovStore* store, int rank, int size, int64_t timeout_ms, const char* interface,
                          TikhonovGroup** out) {
  return guarded([&] {
    const milliseconds timeout(timeout_ms);
    auto options = ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(*interface ? ProcessGroupGloo::createDeviceForInterface(interface)
                                          : ProcessGroupGloo::createDefaultDevice());
    options->threads = 2;
    auto inner = c10::make_intrusive<c10d::PrefixStore>(GROUP, store->store);
    auto gloo = c10::make_intrusive<ProcessGroupGloo>(inner, rank, size, options);
    auto group = c10::make_intrusive<ProcessGroup>(inner, rank, size);
    group->setBackend(c10::DeviceType::CPU, ProcessGroup::BackendType::GLOO, gloo);
    group->setDefaultBackend(ProcessGroup::BackendType::GLOO);
    group->setGroupName(GROUP);
    *out = new TikhonovGroup{group};
  });
}

void tikhonov_group_free(TikhonovGroup* group) { delete group; }

// Starts to add up the tensor over all ranks, in place.
char* tikhonov_group_all_reduce(TikhonovGroup* group, const at::Tensor* tensor, TikhonovWork** out) {
  return guarded([&] {
    const c10::AutoGradMode off(false);
    std::vector<at::Tensor> tensors{tensor->detach()};
    auto work = group->group->allreduce(tensors);
    *out = new TikhonovWork{work, std::move(tensors)};
  });
}

// Waits for it, and frees it.
char* tikhonov_work_wait(TikhonovWork* work) {
  const std::unique_ptr<TikhonovWork> owned(work);
  return guarded([&] { owned->work->wait(); });
}

// Overwrites the tensors with those of rank 0.
char* tikhonov_group_broadcast(TikhonovGroup* group, Borrowed tensors) {
  return in_place([&] {
    if (tensors.count > 0) c10d::broadcast_coalesced(group->group, list(tensors), 250 << 20, 0);
  });
}

// As torch.nn.parallel.DistributedDataParallel makes it. `bf16` compresses the gradients on their way.
char* tikhonov_reducer_new(TikhonovGroup* group, Borrowed borrowed, int64_t bucket_bytes, bool bf16,
                           TikhonovReducer** out) {
  return guarded([&] {
    static WithoutStrides handler;
    c10::WarningUtils::set_warning_handler(&handler);
    const auto params = list(borrowed);
    const std::vector<bool> sparse(params.size(), false);
    const size_t first = std::min<int64_t>(c10d::kDefaultFirstBucketBytes, bucket_bytes);
    auto [buckets, limits] =
        c10d::compute_bucket_assignment_by_size(params, {first, static_cast<size_t>(bucket_bytes)}, sparse, {}, {});
    // Gradients come in about the reverse of the order of the parameters.
    std::reverse(buckets.begin(), buckets.end());
    c10d::verify_params_across_processes(group->group, params, std::nullopt);
    std::unordered_map<size_t, std::string> names;
    for (size_t i = 0; i < params.size(); ++i) names[i] = std::to_string(i);
    auto reducer = std::make_shared<c10d::Reducer>(params, buckets, group->group, sparse, bucket_bytes, false, false, names,
                                                   first, false, false, std::vector<int64_t>{});
    if (bf16) reducer->register_comm_hook(std::make_unique<Bf16CompressHook>(group->group));
    *out = new TikhonovReducer{reducer};
  });
}

char* tikhonov_reducer_free(TikhonovReducer* reducer) {
  return guarded([&] { delete reducer; });
}

// Before the forward pass of a step. The call does nothing but once, after the first backward pass.
char* tikhonov_reducer_rebuild(TikhonovReducer* reducer) {
  return guarded([&] { reducer->reducer->rebuild_buckets(); });
}

// The next backward pass leaves the mean of all ranks' gradients. Without this call it leaves this rank's.
char* tikhonov_reducer_prepare(TikhonovReducer* reducer) {
  return guarded([&] { reducer->reducer->prepare_for_backward({}); });
}

}  // extern "C"
