// Devices, streams and events. Operators are computed at once, in the thread that asks; what is late are copies between
// the host and the device (`Late`). Vector clocks tell which work of other streams a stream has waited for.
#pragma once

#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <deque>
#include <functional>

#include "settings.h"

namespace pretend {

constexpr int STREAMS = 33;  // of a device: 0 is the default one
constexpr int ALL = DEVICES * STREAMS;

inline thread_local c10::DeviceIndex current = 0;
inline thread_local c10::StreamId own_stream[DEVICES] = {};

inline int key(c10::DeviceIndex device, c10::StreamId stream) { return device * STREAMS + static_cast<int>(stream); }
inline int key(c10::Stream stream) { return key(stream.device_index(), stream.id()); }
inline int stream_of(c10::DeviceIndex device) { return key(device, own_stream[device]); }

// Work of a stream is numbered. `seen[s]`: the last of stream s that is complete.
using Clock = std::array<int64_t, ALL>;

struct Late {
  int64_t number;
  bool to_device;
  const char* host;
  size_t bytes;
  std::function<void()> copy;
};

struct StreamState {
  int64_t last = 0;
  Clock seen{};
  std::deque<Late> late;
};

inline std::recursive_mutex mutex;  // of all that follows, and of memory.h
inline StreamState states[ALL];
inline Clock host_seen{};

struct Event {
  int stream;
  Clock seen;
};

inline void merge(Clock& into, const Clock& from) {
  for (int s = 0; s < ALL; ++s) into[s] = std::max(into[s], from[s]);
}

// A number for new work of the stream, which is after all that the host has waited for.
inline int64_t next_number(int stream) {
  auto& state = states[stream];
  merge(state.seen, host_seen);
  return state.seen[stream] = ++state.last;
}

// Does what is late of the stream: copies to the device up to `number`, and, where the host waits, those to the host.
inline void catch_up(int stream, int64_t number, bool with_host) {
  auto& late = states[stream].late;
  for (size_t i = 0; i < late.size() && late[i].number <= number;) {
    if (!late[i].to_device && !with_host) {
      ++i;
      continue;
    }
    // A copy from memory that a late copy is to write.
    const Late next = late[i];
    for (size_t k = 0; k < i; ++k)
      if (!late[k].to_device && late[k].host < next.host + next.bytes && next.host < late[k].host + late[k].bytes)
        late[k].copy();
    next.copy();
    late.erase(late.begin() + i);
  }
}

inline void wait_for_stream(int stream) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  next_number(stream);
  catch_up(stream, INT64_MAX, true);
  merge(host_seen, states[stream].seen);
}

bool is_recording(int stream);
bool is_recording();
void invalidate();

// The host waits for the device.
inline void host_waits(const char* what) {
  ++counters.syncs;
  if (verbose) fprintf(stderr, "[pretend CUDA] sync: %s\n", what);
  TORCH_CHECK(!failure.broken, "CUDA error: unspecified launch failure");
  if (!is_recording()) return;
  invalidate();
  TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing (", what, ")");
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream make(c10::DeviceIndex device, c10::StreamId id) {
    return c10::Stream(c10::Stream::UNSAFE, {c10::kCUDA, device}, id);
  }
  static c10::DeviceIndex index(c10::Device device) { return device.has_index() ? device.index() : current; }

  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device getDevice() const override { return {c10::kCUDA, current}; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto was = getDevice();
    setDevice(device);
    return was;
  }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() >= 0 && device.index() < DEVICES, "CUDA error: invalid device ordinal");
    current = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }

  c10::Stream getStream(c10::Device device) const override { return make(index(device), own_stream[index(device)]); }
  c10::Stream getDefaultStream(c10::Device device) const override { return make(index(device), 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    static std::atomic<int> next{0};
    return make(index(device), next++ % (STREAMS - 1) + 1);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto was = getStream(stream.device());
    own_stream[stream.device_index()] = stream.id();
    return was;
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    next_number(key(stream));
    if (!*event) *event = new Event;
    *static_cast<Event*>(*event) = {key(stream), states[key(stream)].seen};
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  void block(void* event, const c10::Stream& stream) const override {
    if (!event) return;
    std::lock_guard<std::recursive_mutex> lock(mutex);
    const auto& awaited = *static_cast<Event*>(event);
    catch_up(awaited.stream, awaited.seen[awaited.stream], false);
    merge(states[key(stream)].seen, awaited.seen);
  }
  // Complete at the second look at the earliest.
  bool queryEvent(void* event) const override {
    if (!event) return true;
    std::lock_guard<std::recursive_mutex> lock(mutex);
    const auto& asked = *static_cast<Event*>(event);
    const bool done = host_seen[asked.stream] >= asked.seen[asked.stream];
    complete(asked);
    return done;
  }
  bool queryStream(const c10::Stream& stream) const override {
    wait_for_stream(key(stream));
    return true;
  }
  void synchronizeEvent(void* event) const override {
    host_waits("synchronizeEvent");
    if (!event) return;
    std::lock_guard<std::recursive_mutex> lock(mutex);
    complete(*static_cast<Event*>(event));
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    host_waits("synchronizeStream");
    wait_for_stream(key(stream));
  }
  void synchronizeDevice(const c10::DeviceIndex device) const override {
    host_waits("synchronizeDevice");
    for (int stream = 0; stream < STREAMS; ++stream) wait_for_stream(key(device, stream));
  }

 private:
  static void complete(const Event& event) {
    catch_up(event.stream, event.seen[event.stream], true);
    merge(host_seen, event.seen);
  }
};

}  // namespace pretend
