// How often a program waits for a GPU, for scripts/gpu-check: preloaded, it counts calls of the CUDA runtime that block the
// host, and copies between the GPU and pageable memory, which do too. Written to $GPU_SYNCS as JSON every time one comes,
// because the program may end without running destructors.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long syncs, events, devices, pageable;

__attribute__((constructor)) static void report(void) {
    char text[200];
    const char *file = getenv("GPU_SYNCS");
    const int fd = file ? open(file, O_WRONLY | O_CREAT, 0666) : -1;
    if (fd < 0) return;
    // Of one width, so that a later report covers an earlier one.
    const int size = snprintf(text, sizeof text, "{\"stream\": %12ld, \"event\": %12ld, \"device\": %12ld, \"pageable\": %12ld}\n",
                              syncs, events, devices, pageable);
    if (pwrite(fd, text, size, 0) < 0) abort();
    close(fd);
}

static void count(long *counter) {
    __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
    report();
}

static void *real(const char *name) {
    static void *runtime;
    if (!runtime) runtime = dlopen("libcudart.so.13", RTLD_LAZY | RTLD_NOLOAD);
    if (!runtime) runtime = dlopen("libcudart.so.12", RTLD_LAZY | RTLD_NOLOAD);
    void *function = runtime ? dlsym(runtime, name) : NULL;
    if (!function) abort();
    return function;
}

int cudaStreamSynchronize(void *stream) {
    count(&syncs);
    return ((int (*)(void *))real("cudaStreamSynchronize"))(stream);
}

int cudaEventSynchronize(void *event) {
    count(&events);
    return ((int (*)(void *))real("cudaEventSynchronize"))(event);
}

int cudaDeviceSynchronize(void) {
    count(&devices);
    return ((int (*)(void))real("cudaDeviceSynchronize"))();
}

// cudaPointerAttributes: its first member is the kind of memory, 0 for what CUDA does not know.
static int is_pageable(const void *pointer) {
    struct { int type, device; void *there, *here; long reserved[8]; } attributes = {0};
    int failed = ((int (*)(void *, const void *))real("cudaPointerGetAttributes"))(&attributes, pointer);
    return !failed && attributes.type == 0;
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    // 1: host to device, 2: device to host.
    if ((kind == 1 && is_pageable(from)) || (kind == 2 && is_pageable(to))) count(&pageable);
    return ((int (*)(void *, const void *, size_t, int, void *))real("cudaMemcpyAsync"))(to, from, bytes, kind, stream);
}
