// Loads libtorch's CUDA libraries when a GPU is used. Every function returns nullptr, or the text of the
// exception.

#include "cuda.h"

#include <ATen/Context.h>
#include <stdexcept>
#ifdef TIKHONOV_CUDA
#include <dlfcn.h>
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

// `bytes` is the plugin of cuda.h as a file; empty where the binary was built without CUDA's headers.
void load(const char* bytes, size_t size) {
  // Its constructors register libtorch's CUDA kernels, allocator and hooks; the plugin needs its symbols.
  open_library("libtorch_cuda.so", RTLD_LAZY | RTLD_GLOBAL);
  if (size == 0) return;
  const int file = memfd_create("tikhonov_cuda", MFD_CLOEXEC);
  if (file < 0 || write(file, bytes, size) != static_cast<ssize_t>(size))
    throw std::runtime_error(std::string("no memory for the plugin for GPUs: ") + strerror(errno));
  void* library = open_library(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW);
  close(file);
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
#ifdef TIKHONOV_CUDA
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

}  // extern "C"
