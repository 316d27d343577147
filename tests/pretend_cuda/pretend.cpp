// A pretend CUDA that computes on the CPU: built as libtorch_cuda.so, in a folder that LD_LIBRARY_PATH names, it is
// loaded in the place of libtorch's. It has two devices, and behaves as CUDA does where a program can go wrong:
//
// - Addresses of the device cannot be read by the host: a data pointer used on the CPU ends the process by SIGSEGV.
// - Memory that nothing was written to holds NaN.
// - Tensors of two devices in one operator, and waiting for the device while a graph is recorded, are errors.
// - Copies between host and device that need not block are late: they happen when something waits for them, by an
//   event, a stream, or the next operator of the same stream. Who does not wait reads NaN.
// - Memory that two streams use without an event between them, or that is given back while another stream may still
//   use it (`record_stream` is missing), is counted, and named on stderr.
// - The generators are the device's own: a seed and an offset that every random operator moves on.
// - While a graph is recorded allocations go to its pool; a recording that fails leaves the pool open, and the generator
//   recording, unless somebody cleans up. As long as a pool is open, blocks with recorded streams are not given back.
//
// What it does not show: cuDNN's and cuBLAS's behaviour, TF32 and half precision as a GPU rounds them, speed, and the
// driver's messages.
//
// PRETEND_CUDA_REPORT=FILE    the counters of settings.h, up to date however the process ends: 32 bytes each, a name
//                             padded with zeros to 24 and an int64
// PRETEND_CUDA_MEMORY=BYTES   the memory of each device, 8 GiB where this is not set
// PRETEND_CUDA_FAIL=KIND@N    the N-th allocation (KIND `memory`) or operator (`launch`, `cudnn`, `cublas`) fails;
//                             KIND@record:N counts those that are recorded. After `launch` everything fails, as on a GPU
// PRETEND_CUDA_GENERATOR=cpu  random operators draw from the CPU's generator, so that a run equals that of the CPU
// PRETEND_CUDA_VERBOSE=1      every operator and every wait on stderr
//
// One translation unit: parsing libtorch's headers is most of what compiling it takes.

#include "settings.h"
#include "streams.h"
#include "memory.h"
#include "generator.h"
#include "recording.h"
#include "operators.h"
#include "registration.h"
