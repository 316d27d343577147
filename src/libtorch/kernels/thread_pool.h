// A thread pool for loops of a few microseconds, beside libtorch's own (libgomp). libgomp's threads go to
// sleep within the pause between two layers of a small network, and waking them costs more than they save;
// with a longer spin they would keep other processes from their cores. libgomp's barrier also waits for every
// thread, even one that the system has preempted; this pool does not.

#pragma once

#include <c10/util/FunctionRef.h>
#include <cstdint>

namespace tikhonov {

// Whether the pool may be used: false under `--kernels libtorch`, and then loops run on libtorch's threads.
bool thread_pool_enabled();

// Into how many chunks to cut work that is worth at most `most` threads: one chunk for each of libtorch's
// threads, `most` of them at most, 1 at least.
int64_t num_chunks(int64_t most);

// work(chunk) once for each chunk in 0..chunks; returns when all are done, and throws what one of them threw.
// Each chunk has a home thread, so that its memory stays in that core's cache from call to call. The calling
// thread does all chunks alone where calls are rare, where another call is under way, and in a nested call.
void parallel_for(int64_t chunks, c10::function_ref<void(int64_t)> work);

}  // namespace tikhonov
