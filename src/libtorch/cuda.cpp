// Loads libtorch's CUDA libraries when a GPU is used. Every function returns nullptr, or the text of the
// exception.

#include "cuda.h"

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <stdexcept>
#ifdef __linux__
#include <dlfcn.h>
#endif
#ifdef TIKHONOV_CUDA
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "guarded.h"

namespace {

const tikhonov::Cuda* plugin = nullptr;

#ifdef TIKHONOV_CUDA
void* open_library(const char* name, int mode) {
  void* library = dlopen(name, mode);
  if (!library) throw std::runtime_error(std::string("libtorch's CUDA half cannot be loaded: ") + dlerror());
  return library;
}

void write_plugin(int file, const char* bytes, size_t size) {
  for (size_t done = 0; done < size;) {
    const ssize_t wrote = write(file, bytes + done, size - done);
    if (wrote <= 0) throw std::runtime_error(std::string("the plugin for GPUs cannot be written: ") + strerror(errno));
    done += static_cast<size_t>(wrote);
  }
}

// The plugin, from a file in memory; nullptr where the system runs no code from one (vm.memfd_noexec).
void* from_memory(const char* bytes, size_t size) {
#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif
  int file = memfd_create("tikhonov_cuda", MFD_CLOEXEC | MFD_EXEC);
  // Before Linux 6.3 there is no such flag, and no such limit.
  if (file < 0 && errno == EINVAL) file = memfd_create("tikhonov_cuda", MFD_CLOEXEC);
  if (file < 0) return nullptr;
  write_plugin(file, bytes, size);
  void* library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW);
  close(file);
  return library;
}

// The same from a file in the folder for temporary files, which is gone when it is loaded.
void* from_temporary_file(const char* bytes, size_t size) {
  const char* folder = getenv("TMPDIR");
  std::string path = std::string(folder && *folder ? folder : "/tmp") + "/tikhonov_cuda_XXXXXX";
  const int file = mkostemp(path.data(), O_CLOEXEC);
  if (file < 0) throw std::runtime_error("the plugin for GPUs cannot be written to " + path + ": " + strerror(errno));
  const auto unlinked = [&] { unlink(path.c_str()); };
  try {
    write_plugin(file, bytes, size);
    close(file);
    void* library = open_library(path.c_str(), RTLD_NOW);
    unlinked();
    return library;
  } catch (...) {
    unlinked();
    throw;
  }
}

// `bytes` is the plugin of cuda.h as a file; empty where the binary was built without CUDA's headers.
void load(const char* bytes, size_t size) {
  // Its constructors register libtorch's CUDA kernels, allocator and hooks; the plugin needs its symbols.
  open_library("libtorch_cuda.so", RTLD_LAZY | RTLD_GLOBAL);
  if (size == 0) return;
  void* library = from_memory(bytes, size);
  if (!library) library = from_temporary_file(bytes, size);
  plugin = reinterpret_cast<const tikhonov::Cuda* (*)()>(dlsym(library, "tikhonov_cuda_plugin"))();
}
#else
void load(const char*, size_t) { throw std::runtime_error("the libtorch that the binary was built with has no CUDA"); }
#endif

}  // namespace

const tikhonov::Cuda& tikhonov::cuda() {
  if (!plugin) throw std::runtime_error("the binary was built without CUDA's headers");
  return *plugin;
}

extern "C" {

// Whether a driver is installed; loads nothing else.
bool tikhonov_cuda_driver() {
#ifdef __linux__
  return dlopen("libcuda.so.1", RTLD_LAZY);
#else
  return false;
#endif
}

// `bytes` as in `load`. Must come before anything is computed: libtorch looks for its CUDA libraries once.
char* tikhonov_cuda_load(const char* bytes, size_t size) {
  return guarded([&] {
    static const bool loaded = (load(bytes, size), true);
    if (loaded && !at::detail::getCUDAHooks().isBuilt())
      throw std::runtime_error("libtorch has computed without its CUDA half, and looks for it only once");
  });
}

char* tikhonov_cuda_count(int64_t* count) {
  return guarded([&] {
    // Its error says precisely why there is no GPU.
    at::globalContext().lazyInitDevice(at::kCUDA);
    *count = at::detail::getCUDAHooks().deviceCount();
  });
}

// What this thread asks of CUDA without naming a device goes to this one.
char* tikhonov_cuda_make_current(int64_t cuda) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl guard(c10::kCUDA);
    guard.setDevice(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(cuda)));
  });
}

}  // extern "C"
