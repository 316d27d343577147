// What needs symbols of libtorch's CUDA half. It is compiled into a small library of its own, which the
// binary carries and loads together with that half when a GPU is asked for: mapping and relocating the half
// takes longer than many a command. Errors are exceptions.

#pragma once

#include <c10/core/Device.h>
#include <memory>

struct TikhonovGpu {
  char name[256];
  int64_t total;
  int64_t free;
  int32_t major;
  int32_t minor;
  int32_t processors;
};

namespace tikhonov {

// What is asked of a device until the end is recorded, and not done. Other threads may go on with theirs.
struct Recording {
  virtual ~Recording() = default;
  virtual void end() = 0;
  // Takes back a recording that failed half-way: the stream, the allocator and the generator go on as before.
  virtual void abandon() noexcept = 0;
  // With the generator's seed and offset of now.
  virtual void replay() = 0;
};

struct Cuda {
  virtual void describe(c10::DeviceIndex device, TikhonovGpu& gpu) const = 0;
  virtual std::unique_ptr<Recording> record(c10::DeviceIndex device) const = 0;
};

// Throws where it is not loaded.
const Cuda& cuda();

}  // namespace tikhonov
