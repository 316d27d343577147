// What libtorch looks for when its CUDA library is loaded, and the symbols that the program's plugin
// (src/libtorch/cuda_plugin.cpp) needs of it.
#pragma once

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <cuda_runtime_api.h>
#include <signal.h>

#include "operators.h"

namespace pretend {

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct Start {
  Start() {
    c10::SetAllocator(c10::kCUDA, &allocator);
    at::setHostAllocator(c10::kCUDA, &pinned, 10);
    c10::cuda::CUDACachingAllocator::allocator = &allocator;
    struct sigaction action {};
    action.sa_sigaction = &host_read_device;
    action.sa_flags = SA_SIGINFO | SA_RESETHAND;
    sigaction(SIGSEGV, &action, nullptr);
  }
  static void host_read_device(int, siginfo_t*, void*) {
    const char text[] = "[pretend CUDA] SIGSEGV: has the host used an address of the device?\n";
    (void)!write(2, text, sizeof(text) - 1);
    raise(SIGSEGV);
  }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
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
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override { return generator(device); }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override {
    return at::make_generator<Generator>(device < 0 ? current : device);
  }
  at::Device getDeviceFromPtr(void*) const override { return {c10::kCUDA, current}; }
  bool isPinnedPtr(const void* p) const override { return pinned.has(p); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  at::Allocator* getCUDADeviceAllocator() const override { return &allocator; }
  void deviceSynchronize(c10::DeviceIndex device) const override { Guard().synchronizeDevice(device); }
  std::string showConfig() const override { return "pretend CUDA\n"; }
};
using at::CUDAHooksRegistry;
using at::CUDAHooksInterface;
using at::CUDAHooksArgs;

}  // namespace pretend

namespace c10::cuda::CUDACachingAllocator {
std::atomic<CUDAAllocator*> allocator{nullptr};
}

namespace at {
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", pretend::Hooks)
}

namespace pretend {
Start start;
}

namespace c10::cuda {
DeviceIndex device_count() noexcept { return pretend::DEVICES; }
DeviceIndex current_device() { return pretend::current; }
void set_device(DeviceIndex device, const bool) { pretend::Guard().setDevice({c10::kCUDA, device}); }
CUDAStream getCurrentCUDAStream(DeviceIndex device) {
  return CUDAStream(pretend::Guard().getStream({c10::kCUDA, device < 0 ? pretend::current : device}));
}
CUDAStream getDefaultCUDAStream(DeviceIndex device) {
  return CUDAStream(pretend::Guard::make(device < 0 ? pretend::current : device, 0));
}
}  // namespace c10::cuda

namespace at::cuda {
cudaDeviceProp* getDeviceProperties(c10::DeviceIndex) {
  static cudaDeviceProp properties = [] {
    cudaDeviceProp made{};
    strcpy(made.name, "Pretend GPU");
    made.major = 9;
    made.multiProcessorCount = 1;
    return made;
  }();
  return &properties;
}
namespace detail {
const at::Generator& getDefaultCUDAGenerator(c10::DeviceIndex device) { return pretend::generator(device); }
at::Generator createCUDAGenerator(c10::DeviceIndex device) {
  return at::make_generator<pretend::Generator>(device < 0 ? pretend::current : device);
}
}  // namespace detail
}  // namespace at::cuda
