// The functions that need symbols of libtorch's CUDA libraries. They are compiled into a small plugin, which
// the binary embeds and loads together with those libraries when a GPU is used: mapping and relocating them
// takes longer than many commands on the CPU. Errors are exceptions.

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

// A CUDA graph: until `end`, this thread's work for the device is recorded and not executed; other threads'
// work is not affected.
struct Recording {
  virtual ~Recording() = default;
  virtual void end() = 0;
  // Discards a recording that failed half-way, and restores the stream, the allocator and the generator.
  virtual void abandon() noexcept = 0;
  // With the generator's present seed and offset.
  virtual void replay() = 0;
};

struct Cuda {
  virtual void describe(c10::DeviceIndex device, TikhonovGpu& gpu) const = 0;
  virtual std::unique_ptr<Recording> record(c10::DeviceIndex device) const = 0;
};

// Throws where the plugin is not loaded.
const Cuda& cuda();

}  // namespace tikhonov
