// The threads of team.h: a piece is taken by whoever comes first, its own thread as a rule; who asked for
// them takes what nobody has begun, and waits for nothing else.

#include "team.h"

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

constexpr int64_t MOST_PIECES = 64;
// How long a thread waits for work before it sleeps: longer than the parts of a small step that are not
// shared.
constexpr auto AWAKE = std::chrono::microseconds(200);
// So many calls, none of them longer than that after the one before, are worth waking the others.
constexpr int64_t OFTEN = 16;
// Who has waited so long for pieces that others have begun has waited for threads that other processes keep
// from their cores. That happens on a quiet machine too; but where more than a twentieth of the time goes
// there, the threads are left alone for a while.
constexpr auto LATE = std::chrono::microseconds(100);
constexpr int64_t BEARABLE = 20;
constexpr Clock::duration MOST_LOST = std::chrono::milliseconds(5), APART = std::chrono::milliseconds(300);

void breathe() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Whether this thread is at work for the team.
thread_local bool is_within = false;

class Team {
 public:
  void lead(int64_t pieces, Work f) {
    const std::unique_lock<std::mutex> leads =
        is_within ? std::unique_lock<std::mutex>() : std::unique_lock<std::mutex>(leader, std::try_to_lock);
    const int64_t threads = tikhonov::pieces_of(pieces);
    if (!leads || pieces > MOST_PIECES || threads < 2 || !is_called_for()) {
      for (int64_t piece = 0; piece < pieces; ++piece) f(piece);
    } else {
      share({++number, threads, pieces}, f);
    }
    if (leads) over = Clock::now();
  }

 private:
  struct Job {
    uint64_t number;
    int64_t threads, pieces;

    static Job of(uint64_t word) { return {word >> 16, static_cast<int64_t>(word >> 8 & 0xff), static_cast<int64_t>(word & 0xff)}; }
    uint64_t word() const { return number << 16 | static_cast<uint64_t>(threads) << 8 | static_cast<uint64_t>(pieces); }
  };

  // The last job that the piece was taken for: a latecomer finds his own there, or a later one.
  struct alignas(64) Taken {
    std::atomic<uint64_t> number{0};
  };

  bool is_called_for() {
    const auto now = Clock::now();
    calls = now - over < AWAKE ? calls + 1 : 0;
    return calls >= OFTEN && now >= apart_until;
  }

  void share(Job job, const Work& f) {
    // Where the system refuses threads, those that are there take the pieces.
    try {
      for (; !refused && members < job.threads - 1; ++members) std::thread(&Team::follow, this, members + 1).detach();
    } catch (const std::system_error&) {
      refused = true;
    }
    work = &f;
    failure = nullptr;
    left.store(job.pieces, std::memory_order_relaxed);
    posted.store(job.word());
    if (asleep.load() > 0) {
      const std::lock_guard<std::mutex> lock(bed);
      bell.notify_all();
    }
    is_within = true;
    take(job, 0);
    is_within = false;
    wait();
    if (failure) std::rethrow_exception(failure);
  }

  void take(const Job& job, int64_t member) {
    const int64_t first = member * job.pieces / job.threads;
    for (int64_t i = 0; i < job.pieces; ++i) {
      const int64_t piece = (first + i) % job.pieces;
      std::atomic<uint64_t>& last = taken[piece].number;
      uint64_t number = last.load(std::memory_order_relaxed);
      if (number >= job.number || !last.compare_exchange_strong(number, job.number)) continue;
      // The job is not over before this piece: `work` is still its own.
      try {
        (*work)(piece);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(bed);
        failure = std::current_exception();
      }
      left.fetch_sub(1, std::memory_order_release);
    }
  }

  void wait() {
    if (left.load(std::memory_order_acquire) == 0) return;
    const auto began = Clock::now();
    auto now = began;
    while (left.load(std::memory_order_acquire) > 0) {
      if (now - began > LATE) std::this_thread::yield();
      for (int i = 0; i < 16 && left.load(std::memory_order_relaxed) > 0; ++i) breathe();
      now = Clock::now();
    }
    if (now - began > LATE) mourn(now - began, now);
  }

  void mourn(Clock::duration time, Clock::time_point now) {
    lost = time + std::max(Clock::duration::zero(), lost - (now - lost_at) / BEARABLE);
    lost_at = now;
    if (lost < MOST_LOST) return;
    apart_until = now + APART;
    lost = Clock::duration::zero();
  }

  // Waits for another job than the last one seen.
  uint64_t next(uint64_t seen) {
    const auto until = Clock::now() + AWAKE;
    do {
      for (int i = 0; i < 32; ++i) {
        if (posted.load(std::memory_order_relaxed) != seen) return posted.load(std::memory_order_acquire);
        breathe();
      }
    } while (Clock::now() < until);
    std::unique_lock<std::mutex> lock(bed);
    ++asleep;
    bell.wait(lock, [&] { return posted.load() != seen; });
    --asleep;
    return posted.load();
  }

  void follow(int64_t member) {
#ifdef _OPENMP
    // What libtorch shares out within a piece stays here.
    omp_set_num_threads(1);
#endif
    is_within = true;
    const c10::AutoGradMode off(false);
    for (uint64_t seen = 0;;) {
      seen = next(seen);
      const Job job = Job::of(seen);
      if (member < job.threads) take(job, member);
    }
  }

  // Of whoever leads.
  std::mutex leader;
  int64_t members = 0, calls = 0;
  bool refused = false;
  uint64_t number = 0;
  Clock::time_point over, lost_at, apart_until;
  Clock::duration lost = Clock::duration::zero();

  const Work* work = nullptr;
  std::exception_ptr failure;
  alignas(64) std::atomic<uint64_t> posted{0};
  alignas(64) std::atomic<int64_t> left{0};
  Taken taken[MOST_PIECES];
  std::mutex bed;
  std::condition_variable bell;
  std::atomic<int64_t> asleep{0};
};

}  // namespace

namespace tikhonov {

int64_t pieces_of(int64_t most) { return std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), most)); }

void together(int64_t pieces, Work work) {
  if (pieces == 1) return work(0);
  // Never destroyed: its threads go with the process.
  static Team* const team = new Team;
  team->lead(pieces, work);
}

}  // namespace tikhonov
