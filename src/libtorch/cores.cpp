// Sharing the cores with other processes. Errors as in shim.cpp.

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <sys/resource.h>
#endif
#include <cstdint>

extern "C" {

// How often the system has taken a core away from a thread of this process, since it started.
uint64_t tikhonov_preemptions() {
#if defined(__unix__) || defined(__APPLE__)
  rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) == 0) return static_cast<uint64_t>(usage.ru_nivcsw);
#endif
  return 0;
}

// Gives the calling thread idle workers of its own, more than there are cores; they go when it ends. libgomp lets threads that
// wait for each other sleep at once while there are more of them than cores, and spin for milliseconds otherwise.
void tikhonov_crowd() {
#ifdef _OPENMP
  volatile int woken = 0;
#pragma omp parallel num_threads(omp_get_num_procs() + 1)
  woken = 1;
#endif
}

}  // extern "C"
