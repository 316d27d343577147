// What libtorch makes of the cores: how many threads it takes, how long they wait for each other, and which
// kernels MKL takes. The latter two are not called: the linker puts them in the place of what libtorch would
// find.

#include <ATen/Parallel.h>
#include <cstddef>

// MKL's, within libtorch; absent where libtorch has none.
extern "C" __attribute__((weak)) void MKL_Set_Dynamic(int);

#if defined(__linux__) && defined(_OPENMP)

// libgomp's threads spin for milliseconds before they sleep. Where another process has taken a core, they
// spin for a thread that has none: beside three builds on four cores, a small CNN trained 65 images/s, and
// 1500 with a short spin. libgomp reads its length from the environment, before main; so the entry is lent a
// place there, until libgomp has read it.
namespace {

char spin[] = "GOMP_SPINCOUNT=4000";
char* displaced = nullptr;
// No library looks at these while it is loaded.
const char* const harmless[] = {"PWD=", "OLDPWD=", "SHLVL=", "HOME=", "USER=", "LOGNAME=", "_="};

bool begins(const char* text, const char* with) {
  for (; *with; ++text, ++with)
    if (*text != *with) return false;
  return true;
}

void lend(int, char**, char** environment) {
  char** place = nullptr;
  for (char** entry = environment; *entry; ++entry) {
    if (begins(*entry, "GOMP_SPINCOUNT=") || begins(*entry, "OMP_WAIT_POLICY=")) return;
    for (const char* name : harmless)
      if (begins(*entry, name)) place = entry;
  }
  if (!place) return;
  displaced = *place;
  *place = spin;
}

// Before the constructors of all libraries.
__attribute__((section(".preinit_array"), used)) void (*const before_libraries)(int, char**, char**) = lend;

// After them, before main.
__attribute__((constructor, used)) void give_back(int, char**, char** environment) {
  if (!displaced) return;
  for (char** entry = environment; *entry; ++entry)
    if (*entry == spin) *entry = displaced;
}

}  // namespace

#endif

extern "C" {

#if defined(__x86_64__)
// MKL, within libtorch, asks this function of its own whether the CPU is Intel's, and takes kernels for AVX2
// at most where it is not. The linker lets the program's answer pass for MKL's: every CPU gets the kernels
// for the instructions that it has. A product of matrices takes half the time on an AMD CPU with AVX-512.
// MKL_ENABLE_INSTRUCTIONS still limits them.
__attribute__((visibility("default"))) int mkl_serv_intel_cpu_true() { return 1; }
#endif

// at::set_num_threads, without what it does beside that: it starts a pool of threads for quantised networks,
// waits for them and has them spin, a tenth of a second of the cores' time. No need for it where the number
// is what libtorch has found out itself.
void tikhonov_set_threads(int32_t threads) {
  if (at::get_num_threads() != threads)
    at::set_num_threads(threads);
  else if (MKL_Set_Dynamic)
    MKL_Set_Dynamic(0);
}

}  // extern "C"
