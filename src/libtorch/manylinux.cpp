// Symbols whose newest version is younger than glibc 2.34 or GCC 11, bound to their old versions, so that the binary
// of a wheel runs on manylinux_2_34 systems (RHEL 9). The definitions are hidden: every call within the binary comes
// here, and the system is asked for the old versions only. They compute the same: the old hypot (before glibc 2.35)
// adds SVID error handling around the new one, the old wait (before GCC 12) ends the process where a waiting thread
// is cancelled, which this program never does.

#if defined(__x86_64__)
#define GLIBC_FIRST "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define GLIBC_FIRST "GLIBC_2.17"
#endif

#ifdef GLIBC_FIRST

#define WAIT "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE"
#define HIDDEN __attribute__((visibility("hidden")))

extern "C" {

double old_hypot(double, double);
float old_hypotf(float, float);
void old_wait(void *, void *);
__asm__(".symver old_hypot,hypot@" GLIBC_FIRST);
__asm__(".symver old_hypotf,hypotf@" GLIBC_FIRST);
__asm__(".symver old_wait," WAIT "@GLIBCXX_3.4.11");

// Named in assembly: of a name that the compiler knows it would ignore the visibility, and libtorch would be bound
// to the definition here.
HIDDEN double here_hypot(double, double) __asm__("hypot");
HIDDEN float here_hypotf(float, float) __asm__("hypotf");
HIDDEN void here_wait(void *, void *) __asm__(WAIT);

double here_hypot(double x, double y) { return old_hypot(x, y); }
float here_hypotf(float x, float y) { return old_hypotf(x, y); }
void here_wait(void *condition, void *lock) { old_wait(condition, lock); }

}

#endif
