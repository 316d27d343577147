// For LD_PRELOAD: counts the calls by which a process changes files below FAULT_FOLDER, and lets one of them fail.
//
// FAULT_LOG   a line per call: its number, its name, the path
// FAULT_TERM  at this call the process gets SIGTERM
// FAULT_AT    at this call FAULT_DO happens: `before` or `after` it SIGKILL, `within` half of a write's bytes and SIGKILL, or the
//             number of an error, once or, where FAULT_ALWAYS is set, from there on
// FAULT_NO_THREADS  no thread can be made

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum Do { NOTHING, BEFORE, WITHIN, AFTER, FAIL };

static const char *folder, *logged;
static long at = -1, term = -1;
static int always, error;
static enum Do what;
static atomic_long calls;

__attribute__((constructor)) static void begin(void) {
  const char* text;
  folder = getenv("FAULT_FOLDER");
  logged = getenv("FAULT_LOG");
  always = getenv("FAULT_ALWAYS") != NULL;
  if ((text = getenv("FAULT_AT"))) at = atol(text);
  if ((text = getenv("FAULT_TERM"))) term = atol(text);
  if ((text = getenv("FAULT_DO"))) {
    what = !strcmp(text, "before") ? BEFORE : !strcmp(text, "within") ? WITHIN : !strcmp(text, "after") ? AFTER : FAIL;
    error = atoi(text);
  }
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

// What is to happen at this call.
static enum Do next(const char* call, const char* path) {
  if (!folder || strncmp(path, folder, strlen(folder))) return NOTHING;
  const long number = atomic_fetch_add(&calls, 1) + 1;
  if (logged) {
    char line[4200];
    const int len = snprintf(line, sizeof line, "%ld %s %s\n", number, call, path);
    const int file = syscall(SYS_openat, AT_FDCWD, logged, O_WRONLY | O_CREAT | O_APPEND, 0644);
    syscall(SYS_write, file, line, len);
    syscall(SYS_close, file);
  }
  if (number == term) kill(getpid(), SIGTERM);
  if (at < 0 || (always ? number < at : number != at)) return NOTHING;
  if (what == BEFORE) die();
  if (what == FAIL) errno = error;
  return what;
}

static enum Do next_of(const char* call, int file) {
  char name[64], path[4096];
  if (!folder) return NOTHING;
  snprintf(name, sizeof name, "/proc/self/fd/%d", file);
  const ssize_t len = readlink(name, path, sizeof path - 1);
  if (len < 0) return NOTHING;
  path[len] = 0;
  return next(call, path);
}

static enum Do next_at(const char* call, int base, const char* path) {
  char name[64], whole[8300];
  if (!folder || base == AT_FDCWD || path[0] == '/') return next(call, path);
  snprintf(name, sizeof name, "/proc/self/fd/%d", base);
  const ssize_t len = readlink(name, whole, 4096);
  if (len < 0) return NOTHING;
  snprintf(whole + len, sizeof whole - len, "/%s", path);
  return next(call, whole);
}

#define REAL(type, name, ...)                 \
  static type (*real)(__VA_ARGS__);           \
  if (!real) real = dlsym(RTLD_NEXT, #name);
#define CALL(todo, call)                      \
  const enum Do now = (todo);                 \
  if (now == FAIL) return -1;                 \
  const __auto_type result = (call);          \
  if (now == AFTER) die();                    \
  return result;

ssize_t write(int file, const void* bytes, size_t len) {
  REAL(ssize_t, write, int, const void*, size_t)
  const enum Do now = next_of("write", file);
  if (now == FAIL) return -1;
  if (now == WITHIN) {
    real(file, bytes, len / 2);
    die();
  }
  const ssize_t result = real(file, bytes, len);
  if (now == AFTER) die();
  return result;
}

ssize_t writev(int file, const struct iovec* parts, int count) {
  REAL(ssize_t, writev, int, const struct iovec*, int)
  CALL(next_of("writev", file), real(file, parts, count))
}

int fsync(int file) {
  REAL(int, fsync, int)
  CALL(next_of("fsync", file), real(file))
}

int fdatasync(int file) {
  REAL(int, fdatasync, int)
  CALL(next_of("fdatasync", file), real(file))
}

int ftruncate64(int file, off_t len) {
  REAL(int, ftruncate64, int, off_t)
  CALL(next_of("ftruncate", file), real(file, len))
}

int rename(const char* from, const char* to) {
  REAL(int, rename, const char*, const char*)
  CALL(next("rename", to), real(from, to))
}

int renameat2(int from_base, const char* from, int to_base, const char* to, unsigned flags) {
  REAL(int, renameat2, int, const char*, int, const char*, unsigned)
  CALL(next_at("exchange", to_base, to), real(from_base, from, to_base, to, flags))
}

int mkdir(const char* path, mode_t mode) {
  REAL(int, mkdir, const char*, mode_t)
  CALL(next("mkdir", path), real(path, mode))
}

int unlink(const char* path) {
  REAL(int, unlink, const char*)
  CALL(next("unlink", path), real(path))
}

int rmdir(const char* path) {
  REAL(int, rmdir, const char*)
  CALL(next("rmdir", path), real(path))
}

int unlinkat(int base, const char* path, int flags) {
  REAL(int, unlinkat, int, const char*, int)
  CALL(next_at("unlink", base, path), real(base, path, flags))
}

int symlink(const char* to, const char* path) {
  REAL(int, symlink, const char*, const char*)
  CALL(next("symlink", path), real(to, path))
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* with) {
  REAL(int, pthread_create, pthread_t*, const pthread_attr_t*, void* (*)(void*), void*)
  if (getenv("FAULT_NO_THREADS")) return EAGAIN;
  return real(thread, attributes, start, with);
}

// Only what is opened to be written counts.
#define OPEN(name)                                                    \
  int name(const char* path, int flags, ...) {                        \
    REAL(int, name, const char*, int, ...)                            \
    mode_t mode = 0;                                                  \
    if (flags & (O_CREAT | O_TMPFILE)) {                              \
      va_list more;                                                   \
      va_start(more, flags);                                          \
      mode = va_arg(more, int);                                       \
      va_end(more);                                                   \
    }                                                                 \
    const int changes = flags & (O_WRONLY | O_RDWR);                  \
    CALL(changes ? next("open", path) : NOTHING, real(path, flags, mode)) \
  }
OPEN(open)
OPEN(open64)
