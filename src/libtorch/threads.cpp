// CPU threads: how many libtorch uses, how long libgomp's spin for work, and which instructions MKL uses. The
// latter two are set without a call (see startup.h): by an entry of the environment before libgomp reads it,
// and by a function that the linker puts in the place of MKL's.

#include <ATen/Parallel.h>
#include <atomic>

#include "startup.h"

// MKL's, linked into libtorch; absent where libtorch was built without it.
extern "C" __attribute__((weak)) void MKL_Set_Dynamic(int);

#if defined(TIKHONOV_KERNELS) && defined(__linux__) && defined(_OPENMP)

// libgomp's threads spin for milliseconds before they sleep. Where another process has taken a core, they spin
// for a thread that cannot run: beside three builds on four cores a small CNN trained 65 images/s, and 1500
// with a short spin. libgomp reads the length from the environment while it is loaded, and has no function to
// set it; so before that one entry of the environment is replaced, and it is restored before main.
namespace {

char spin[] = "GOMP_SPINCOUNT=4000";
char* replaced = nullptr;
// No library reads these while it is loaded.
const char* const unused[] = {"PWD=", "OLDPWD=", "SHLVL=", "HOME=", "USER=", "LOGNAME=", "_="};

void set_spin(int, char**, char** environment) {
  if (tikhonov::is_plain_startup(environment)) return;
  char** place = nullptr;
  for (char** entry = environment; *entry; ++entry) {
    // What the user has set stays.
    if (tikhonov::starts_with(*entry, "GOMP_SPINCOUNT=") || tikhonov::starts_with(*entry, "OMP_WAIT_POLICY=")) return;
    for (const char* name : unused)
      if (tikhonov::starts_with(*entry, name)) place = entry;
  }
  if (!place) return;
  replaced = *place;
  *place = spin;
}

// Runs before the constructors of all libraries.
__attribute__((section(".preinit_array"), used)) void (*const before_libraries)(int, char**, char**) = set_spin;

// Runs after them and before main.
__attribute__((constructor, used)) void restore_environment(int, char**, char** environment) {
  if (!replaced) return;
  for (char** entry = environment; *entry; ++entry)
    if (*entry == spin) *entry = replaced;
}

}  // namespace

#endif

namespace {

std::atomic<bool> mkl_uses_all_instructions{true};

}  // namespace

extern "C" {

#if defined(TIKHONOV_KERNELS) && defined(__x86_64__)
extern char** environ;

// MKL asks this function of its own, on its first call, whether the CPU is Intel's; on others it uses AVX2 at
// most. The linker prefers the program's definition, so that every CPU gets the kernels for the instructions
// that it has: on an AMD EPYC with AVX-512 a product of matrices takes half the time. MKL still checks for
// the instructions themselves, and MKL_ENABLE_INSTRUCTIONS still limits them.
__attribute__((visibility("default"))) int mkl_serv_intel_cpu_true() {
  static const bool plain = tikhonov::is_plain_startup(environ);
  if (mkl_uses_all_instructions && !plain) return 1;
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
}
#endif

// Whether MKL may use all instructions of a CPU that is not Intel's; without effect after MKL's first call.
void tikhonov_mkl_all_instructions(bool on) { mkl_uses_all_instructions = on; }

// at::set_num_threads, without its side effect of starting (and spinning up) a pool of threads for quantised
// networks, which takes a tenth of a second of CPU time. Where the number is libtorch's own, only MKL is set.
void tikhonov_set_threads(int32_t threads) {
  if (at::get_num_threads() != threads)
    at::set_num_threads(threads);
  else if (MKL_Set_Dynamic)
    MKL_Set_Dynamic(0);
}

}  // extern "C"
