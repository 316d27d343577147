// Work that goes on while the host does: reading a number later, copying a batch ahead. Through c10's
// device-neutral streams and events, which need no CUDA headers. Every function returns nullptr, or the text
// of the exception.

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "guarded.h"

namespace {

c10::Stream current(c10::Device device) { return c10::impl::VirtualGuardImpl(device.type()).getStream(device); }

// A number on its way to the host.
struct Reading {
  at::Tensor host;
  std::optional<c10::Event> arrived;
};

// A stream beside the one that computes.
struct Courier {
  c10::Stream side;
};

// A tensor on its way to the device.
struct Parcel {
  at::Tensor there;
  c10::Event arrived;
};

}  // namespace

extern "C" {

char* tikhonov_courier_new(int64_t cuda, Courier** courier) {
  return guarded([&] {
    *courier = nullptr;
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(cuda));
    *courier = new Courier{c10::impl::VirtualGuardImpl(c10::kCUDA).getStreamFromGlobalPool(device)};
  });
}

void tikhonov_courier_free(Courier* courier) { delete courier; }

// Starts to copy a tensor in page-locked memory, which the allocator keeps until the copy is made.
char* tikhonov_courier_send(const Courier* courier, const at::Tensor* here, Parcel** parcel) {
  return guarded([&] {
    *parcel = nullptr;
    const c10::StreamGuard beside(courier->side);
    at::Tensor there = here->to(courier->side.device(), /*non_blocking=*/true);
    c10::Event arrived(courier->side.device_type());
    arrived.record(courier->side);
    *parcel = new Parcel{std::move(there), std::move(arrived)};
  });
}

// The tensor, for the stream that computes: what is asked of it from now on waits for the copy, the host does
// not.
char* tikhonov_parcel_receive(Parcel* parcel, at::Tensor** there) {
  return guarded([&] {
    const c10::Stream now = current(parcel->there.device());
    parcel->arrived.block(now);
    // Its memory belongs to the side stream, which must not reuse it before `now` is done with it.
    parcel->there.record_stream(now);
    *there = new at::Tensor(parcel->there);
  });
}

void tikhonov_parcel_free(Parcel* parcel) { delete parcel; }

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
