// The pool of thread_pool.h: work stealing with affinity. Each chunk has a home thread; a thread that is done
// with its own takes chunks that are not started, and so does the caller, which waits for started ones only.

#include "kernels/thread_pool.h"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;
using Work = c10::function_ref<void(int64_t)>;

constexpr int64_t MAX_CHUNKS = 64;
// How long a worker spins for the next job before it sleeps: longer than the serial parts of a small training
// step.
constexpr auto SPIN_TIME = std::chrono::microseconds(200);
// Workers are woken after this many calls in a row, none of them more than SPIN_TIME after the one before.
constexpr int64_t MIN_CALLS = 16;
// A wait for started chunks that is longer than STRAGGLER_TIME means that other processes hold the cores.
// That happens on a quiet machine too; but where such waits take more than 1/MAX_SHARE of the time, and
// MAX_WAITED altogether, the pool runs everything on the calling thread for PAUSE.
constexpr auto STRAGGLER_TIME = std::chrono::microseconds(100);
constexpr int64_t MAX_SHARE = 20;
constexpr Clock::duration MAX_WAITED = std::chrono::milliseconds(5), PAUSE = std::chrono::milliseconds(300);

std::atomic<bool> enabled{true};

void cpu_relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Whether this thread is running a chunk.
thread_local bool inside_job = false;

class ThreadPool {
 public:
  void run(int64_t chunks, Work f) {
    const std::unique_lock<std::mutex> caller =
        inside_job ? std::unique_lock<std::mutex>() : std::unique_lock<std::mutex>(caller_mutex, std::try_to_lock);
    const int64_t threads = tikhonov::num_chunks(chunks);
    if (!caller || chunks > MAX_CHUNKS || threads < 2 || !is_busy_enough()) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) f(chunk);
    } else {
      run_shared({++last_id, threads, chunks}, f);
    }
    if (caller) last_end = Clock::now();
  }

 private:
  // Packed into one word, so that workers read it in one piece.
  struct Job {
    uint64_t id;
    int64_t threads, chunks;

    static Job from_word(uint64_t word) {
      return {word >> 16, static_cast<int64_t>(word >> 8 & 0xff), static_cast<int64_t>(word & 0xff)};
    }
    uint64_t to_word() const { return id << 16 | static_cast<uint64_t>(threads) << 8 | static_cast<uint64_t>(chunks); }
  };

  // The id of the last job that started this chunk. A late worker finds its job's id, or a later one.
  struct alignas(64) Started {
    std::atomic<uint64_t> id{0};
  };

  bool is_busy_enough() {
    const auto now = Clock::now();
    calls_in_a_row = now - last_end < SPIN_TIME ? calls_in_a_row + 1 : 0;
    return calls_in_a_row >= MIN_CALLS && now >= paused_until;
  }

  void run_shared(Job job, const Work& f) {
    // Where the system refuses a thread, those that exist do the work.
    try {
      for (; !refused && workers < job.threads - 1; ++workers) std::thread(&ThreadPool::worker, this, workers + 1).detach();
    } catch (const std::system_error&) {
      refused = true;
    }
    work = &f;
    failure = nullptr;
    remaining.store(job.chunks, std::memory_order_relaxed);
    posted.store(job.to_word());
    if (sleeping.load() > 0) {
      const std::lock_guard<std::mutex> lock(sleep_mutex);
      wake.notify_all();
    }
    inside_job = true;
    run_chunks(job, 0);
    inside_job = false;
    wait_for_started();
    if (failure) std::rethrow_exception(failure);
  }

  // Runs every chunk of the job that is not started, the thread's own ones first.
  void run_chunks(const Job& job, int64_t thread) {
    const int64_t first = thread * job.chunks / job.threads;
    for (int64_t i = 0; i < job.chunks; ++i) {
      const int64_t chunk = (first + i) % job.chunks;
      std::atomic<uint64_t>& last = started[chunk].id;
      uint64_t id = last.load(std::memory_order_relaxed);
      if (id >= job.id || !last.compare_exchange_strong(id, job.id)) continue;
      // The job cannot end before this chunk does, so `work` is still this job's.
      try {
        (*work)(chunk);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(sleep_mutex);
        failure = std::current_exception();
      }
      remaining.fetch_sub(1, std::memory_order_release);
    }
  }

  void wait_for_started() {
    if (remaining.load(std::memory_order_acquire) == 0) return;
    const auto start = Clock::now();
    auto now = start;
    while (remaining.load(std::memory_order_acquire) > 0) {
      if (now - start > STRAGGLER_TIME) std::this_thread::yield();
      for (int i = 0; i < 16 && remaining.load(std::memory_order_relaxed) > 0; ++i) cpu_relax();
      now = Clock::now();
    }
    if (now - start > STRAGGLER_TIME) record_straggler(now - start, now);
  }

  void record_straggler(Clock::duration time, Clock::time_point now) {
    waited = time + std::max(Clock::duration::zero(), waited - (now - waited_at) / MAX_SHARE);
    waited_at = now;
    if (waited < MAX_WAITED) return;
    paused_until = now + PAUSE;
    waited = Clock::duration::zero();
  }

  // Spins, then sleeps, until a job other than `last_seen` is posted.
  uint64_t next_job(uint64_t last_seen) {
    const auto until = Clock::now() + SPIN_TIME;
    do {
      for (int i = 0; i < 32; ++i) {
        if (posted.load(std::memory_order_relaxed) != last_seen) return posted.load(std::memory_order_acquire);
        cpu_relax();
      }
    } while (Clock::now() < until);
    std::unique_lock<std::mutex> lock(sleep_mutex);
    ++sleeping;
    wake.wait(lock, [&] { return posted.load() != last_seen; });
    --sleeping;
    return posted.load();
  }

  void worker(int64_t thread) {
#ifdef _OPENMP
    // libtorch's own loops within a chunk run on this thread.
    omp_set_num_threads(1);
#endif
    inside_job = true;
    const c10::AutoGradMode off(false);
    for (uint64_t seen = 0;;) {
      seen = next_job(seen);
      const Job job = Job::from_word(seen);
      if (thread < job.threads) run_chunks(job, thread);
    }
  }

  // Owned by the thread that holds `caller_mutex`.
  std::mutex caller_mutex;
  int64_t workers = 0, calls_in_a_row = 0;
  bool refused = false;
  uint64_t last_id = 0;
  Clock::time_point last_end, waited_at, paused_until;
  Clock::duration waited = Clock::duration::zero();

  const Work* work = nullptr;
  std::exception_ptr failure;
  alignas(64) std::atomic<uint64_t> posted{0};
  alignas(64) std::atomic<int64_t> remaining{0};
  Started started[MAX_CHUNKS];
  std::mutex sleep_mutex;
  std::condition_variable wake;
  std::atomic<int64_t> sleeping{0};
};

}  // namespace

namespace tikhonov {

bool thread_pool_enabled() { return enabled.load(std::memory_order_relaxed); }

int64_t num_chunks(int64_t most) { return std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), most)); }

void parallel_for(int64_t chunks, Work work) {
  if (chunks == 1) return work(0);
  if (!thread_pool_enabled()) {
    return at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) work(chunk);
    });
  }
  // Never destroyed: its threads end with the process.
  static ThreadPool* const pool = new ThreadPool;
  pool->run(chunks, work);
}

}  // namespace tikhonov

extern "C" void tikhonov_enable_thread_pool(bool on) { enabled.store(on, std::memory_order_relaxed); }
