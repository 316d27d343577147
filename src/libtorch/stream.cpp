// Asynchronous copies: a batch to the device ahead of its use, a number back to the host. By c10's
// device-neutral streams and events, which need no CUDA headers. Every function returns nullptr, or the text
// of the exception.

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "guarded.h"

namespace {

c10::Stream current(c10::Device device) { return c10::impl::VirtualGuardImpl(device.type()).getStream(device); }

// A number that is being copied to the host.
struct AsyncScalar {
  at::Tensor host;
  std::optional<c10::Event> arrived;
};

// Copies on a stream beside the one that computes.
struct AsyncUpload {
  c10::Stream side;
};

// A tensor that is being copied to the device.
struct PendingTensor {
  at::Tensor there;
  c10::Event arrived;
};

}  // namespace

extern "C" {

// Page-locked memory for numbers of the dtype of `like`, from which a copy to a GPU does not block. at::Tensor::pin_memory
// takes pageable memory first, and warns at every call of the overload that tch has.
char* tikhonov_pinned(const int64_t* size, size_t dims, const at::Tensor* like, at::Tensor** pinned) {
  return guarded([&] {
    *pinned = nullptr;
    *pinned = new at::Tensor(at::empty(c10::IntArrayRef(size, dims), like->options().device(at::kCPU).pinned_memory(true)));
  });
}

char* tikhonov_upload_new(int64_t cuda, AsyncUpload** upload) {
  return guarded([&] {
    *upload = nullptr;
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(cuda));
    *upload = new AsyncUpload{c10::impl::VirtualGuardImpl(c10::kCUDA).getStreamFromGlobalPool(device)};
  });
}

void tikhonov_upload_free(AsyncUpload* upload) { delete upload; }

// Starts to copy a tensor in page-locked memory, which the allocator keeps until the copy is complete.
char* tikhonov_upload_send(const AsyncUpload* upload, const at::Tensor* here, PendingTensor** pending) {
  return guarded([&] {
    *pending = nullptr;
    const c10::StreamGuard beside(upload->side);
    at::Tensor there = here->to(upload->side.device(), /*non_blocking=*/true);
    c10::Event arrived(upload->side.device_type());
    arrived.record(upload->side);
    *pending = new PendingTensor{std::move(there), std::move(arrived)};
  });
}

// The tensor, for the stream that computes: its work from now on waits for the copy; the host does not.
char* tikhonov_pending_receive(PendingTensor* pending, at::Tensor** there) {
  return guarded([&] {
    const c10::Stream now = current(pending->there.device());
    pending->arrived.block(now);
    // Its memory belongs to the side stream, which must not reuse it before `now` is done with it.
    pending->there.record_stream(now);
    *there = new at::Tensor(pending->there);
  });
}

void tikhonov_pending_free(PendingTensor* pending) { delete pending; }

char* tikhonov_read_later(const at::Tensor* number, AsyncScalar** scalar) {
  return guarded([&] {
    *scalar = nullptr;
    auto own = std::make_unique<AsyncScalar>();
    const at::Tensor from = number->detach();
    if (from.device().is_cpu()) {
      own->host = from.clone();
    } else {
      own->host = at::empty(from.sizes(), from.options().device(at::kCPU).pinned_memory(true));
      own->host.copy_(from, /*non_blocking=*/true);
      own->arrived.emplace(from.device().type());
      own->arrived->record(current(from.device()));
    }
    *scalar = own.release();
  });
}

// Waits for the number, and for no later work of the device.
char* tikhonov_read_now(const AsyncScalar* scalar, double* number) {
  return guarded([&] {
    if (scalar->arrived) scalar->arrived->synchronize();
    *number = scalar->host.item<double>();
  });
}

void tikhonov_read_free(AsyncScalar* scalar) { delete scalar; }

}  // extern "C"
