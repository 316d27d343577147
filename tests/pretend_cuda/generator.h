// The devices' generators: a seed and an offset, as CUDA's Philox has them. A random operator draws from the CPU's
// generator, seeded by both for as long as it runs, and moves the offset on.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GeneratorImpl.h>

#include "memory.h"

namespace pretend {

struct GeneratorState {
  uint64_t seed = c10::default_rng_seed_val, offset = 0;
  bool recording = false;
};

struct Generator final : c10::GeneratorImpl {
  std::shared_ptr<GeneratorState> state;

  explicit Generator(c10::DeviceIndex device, std::shared_ptr<GeneratorState> state = std::make_shared<GeneratorState>())
      : GeneratorImpl({c10::kCUDA, device}, c10::DispatchKeySet(c10::DispatchKey::CUDA)), state(std::move(state)) {}

  void set_current_seed(uint64_t seed) override {
    TORCH_CHECK(!is_recording() || seed == state->seed, "set_current_seed can be called during stream capture only if "
                "new seed is the same as the original seed.");
    state->seed = seed;
    state->offset = 0;
  }
  void set_offset(uint64_t offset) override { state->offset = offset; }
  uint64_t get_offset() const override { return state->offset; }
  uint64_t current_seed() const override { return state->seed; }
  uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom());
    return state->seed;
  }
  // 16 bytes: the seed, the offset.
  void set_state(const c10::TensorImpl& given) override {
    TORCH_CHECK(given.numel() == 16 && given.dtype() == caffe2::TypeMeta::Make<uint8_t>(), "RNG state is wrong size");
    memcpy(&state->seed, given.data(), 8);
    memcpy(&state->offset, static_cast<const char*>(given.data()) + 8, 8);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    const at::Tensor bytes = at::empty({16}, at::TensorOptions().dtype(at::kByte).device(at::kCPU));
    memcpy(bytes.data_ptr(), &state->seed, 8);
    memcpy(static_cast<char*>(bytes.data_ptr()) + 8, &state->offset, 8);
    return bytes.getIntrusivePtr();
  }
  void graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& from) override {
    state = static_cast<Generator*>(from.get())->state;
  }
  c10::intrusive_ptr<c10::GeneratorImpl> graphsafe_get_state() const override {
    return c10::make_intrusive<Generator>(device().index(), state);
  }
  Generator* clone_impl() const override {
    return new Generator(device().index(), std::make_shared<GeneratorState>(*state));
  }
};

inline const at::Generator& generator(c10::DeviceIndex device) {
  static auto& all = *new std::vector<at::Generator>{at::make_generator<Generator>(0), at::make_generator<Generator>(1)};
  return all.at(device < 0 ? current : device);
}
inline GeneratorState& generator_state(c10::DeviceIndex device) {
  return *static_cast<Generator*>(generator(device).unsafeGetGeneratorImpl())->state;
}

// While it lives the CPU's default generator stands where the device's does.
struct Draws {
  static bool from_cpu() {
    static const char* text = getenv("PRETEND_CUDA_GENERATOR");
    return text && std::string(text) == "cpu";
  }

  at::Generator cpu = at::detail::getDefaultCPUGenerator();
  at::Tensor before;

  // `dry`: what is drawn does not count.
  Draws(c10::DeviceIndex device, bool dry) {
    if (!dry) ++counters.random;
    if (from_cpu() && !dry) return;
    auto& state = generator_state(device);
    TORCH_CHECK(dry || !state.recording, "Offset increment outside graph capture encountered unexpectedly.");
    before = cpu.get_state();
    if (dry) return;
    cpu.set_current_seed(state.seed * 0x9e3779b97f4a7c15 + state.offset);
    state.offset += 4;
  }
  ~Draws() {
    if (before.defined()) cpu.set_state(before);
  }
};

}  // namespace pretend
