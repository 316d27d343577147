// How the C heap gets its memory from the system, for libtorch's constructors (see startup.h) and for
// training.

#include <cstdlib>

#ifdef __GLIBC__
#include <cstdint>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include "startup.h"

#ifdef TIKHONOV_KERNELS
namespace {

// libtorch's constructors register every operator, in 55 MB of small allocations; a page fault for each 4 kB
// takes a fifth of the time before main. The heap, empty so far, is extended by as much at once, in huge
// pages. What is not touched uses no memory.
void extend_heap(int, char**, char** environment) {
  if (tikhonov::is_plain_startup(environment)) return;
  mallopt(M_TOP_PAD, 64 << 20);
  // Setting one of these options stops glibc from adapting the others: these are the values it would reach.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  void* first = malloc(1);
  const uintptr_t start = reinterpret_cast<uintptr_t>(first) & -uintptr_t(getpagesize());
  madvise(reinterpret_cast<void*>(start), reinterpret_cast<uintptr_t>(sbrk(0)) - start, MADV_HUGEPAGE);
  free(first);
}

// Runs before the constructors of all libraries.
__attribute__((section(".preinit_array"), used)) void (*const before_libraries)(int, char**, char**) = extend_heap;

}  // namespace
#endif
#endif

// From now on freed memory stays in the heap for the next allocation.
extern "C" void tikhonov_keep_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}
