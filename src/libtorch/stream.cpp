// Work that goes on while the host does: reading a number later. Through c10's device-neutral streams and events, which need no
// CUDA headers. Every function returns nullptr, or the text of the exception.

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "guarded.h"

namespace {

c10::Stream current(c10::Device device) { return c10::impl::VirtualGuardImpl(device.type()).getStream(device); }

// A number on its way to the host.
struct Reading {
  at::Tensor host;
  std::optional<c10::Event> arrived;
};

}  // namespace

extern "C" {

char* tikhonov_read_later(const at::Tensor* number, Reading** reading) {
  return guarded([&] {
    *reading = nullptr;
    auto own = std::make_unique<Reading>();
    const at::Tensor from = number->detach();
    if (from.device().is_cpu()) {
      own->host = from.clone();
    } else {
      own->host = at::empty(from.sizes(), from.options().device(at::kCPU).pinned_memory(true));
      own->host.copy_(from, /*non_blocking=*/true);
      own->arrived.emplace(from.device().type());
      own->arrived->record(current(from.device()));
    }
    *reading = own.release();
  });
}

// Waits for the number, and for nothing that was asked of the device after it.
char* tikhonov_read_now(const Reading* reading, double* number) {
  return guarded([&] {
    if (reading->arrived) reading->arrived->synchronize();
    *number = reading->host.item<double>();
  });
}

void tikhonov_read_free(Reading* reading) { delete reading; }

}  // extern "C"
