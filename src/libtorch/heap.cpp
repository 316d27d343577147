// How the C heap gets its memory from the system, for libtorch's constructors and for training.

#include <cstdlib>

#ifdef __GLIBC__
#include <cstdint>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

// libtorch's constructors write down every operator, in 55 MB of small pieces: with a page fault for each 4
// kB, a fifth of the time before main. The heap, empty yet, is asked for as much at once, in huge pages. What
// is not touched costs nothing.
void widen(int, char**, char**) {
  mallopt(M_TOP_PAD, 64 << 20);
  // Whoever sets one of these stops glibc from adjusting the others: these are what it would come to.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  void* first = malloc(1);
  const uintptr_t start = reinterpret_cast<uintptr_t>(first) & -uintptr_t(getpagesize());
  madvise(reinterpret_cast<void*>(start), reinterpret_cast<uintptr_t>(sbrk(0)) - start, MADV_HUGEPAGE);
  free(first);
}

// Before the constructors of all libraries.
__attribute__((section(".preinit_array"), used)) void (*const before_libraries)(int, char**, char**) = widen;

}  // namespace
#endif

extern "C" void tikhonov_keep_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}
