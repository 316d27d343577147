// What malloc.cpp and threads.cpp change before main: the heap's size, how long libgomp's threads spin, and
// which CPUs MKL takes for Intel's. All three are about speed alone. The environment variable
// TIKHONOV_STARTUP=plain leaves them out, as does a build without the feature `kernels`. docs/speed.md has the
// reasons and the numbers.

#pragma once

namespace tikhonov {

// Before the constructors of all libraries nothing may be called, so this is no strncmp.
inline bool starts_with(const char* text, const char* prefix) {
  for (; *prefix; ++text, ++prefix)
    if (*text != *prefix) return false;
  return true;
}

inline bool is_plain_startup(char** environment) {
  for (char** entry = environment; *entry; ++entry)
    if (starts_with(*entry, "TIKHONOV_STARTUP=plain")) return true;
  return false;
}

}  // namespace tikhonov
