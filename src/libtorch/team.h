// Threads for work of microseconds. libgomp's sleep after less than the pause between two layers of a small
// step, and waking them costs more than they save; longer awake, they would spin for cores that other
// processes have. And its loops end when the last of its threads has come round to it, be it displaced.

#pragma once

#include <c10/util/FunctionRef.h>
#include <cstdint>

namespace tikhonov {

// Into how many pieces work is best cut that is worth `most` threads: one for each that libtorch may take,
// and at least one.
int64_t pieces_of(int64_t most);

// work(piece) once for every piece below `pieces`; returns when all are done, and throws what one of them has
// thrown. Everybody has the same pieces each time, where nobody is late: their memory stays in its cache. The
// caller does all of it where calls are rare, while another one is under way, and within one.
void together(int64_t pieces, c10::function_ref<void(int64_t)> work);

}  // namespace tikhonov
