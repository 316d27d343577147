// Activation checkpointing (Chen et al. 2016), as torch.utils.checkpoint does it: a segment of a network keeps
// its input alone and runs again in the backward pass. Every function returns nullptr, or the text
// of the exception.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "guarded.h"

namespace {

// Runs a segment. False where it failed; then tikhonov_checkpoint_failed has the reason.
using Run = bool (*)(void* context, const at::Tensor* xs, at::Tensor* ys);

thread_local std::string failure;

struct Segment {
  void* context;
  Run run;
  void (*release)(void* context);
  std::vector<at::Tensor> buffers;

  Segment(void* context, Run run, void (*release)(void*)) : context(context), run(run), release(release) {}
  Segment(const Segment&) = delete;
  ~Segment() { release(context); }

  at::Tensor forward(const at::Tensor& xs) const {
    at::Tensor ys;
    if (!run(context, &xs, &ys)) throw std::runtime_error(failure);
    return ys;
  }
};

// The states of the random generators that a segment on `device` may draw from.
struct Generators {
  std::vector<std::pair<at::Generator, at::Tensor>> states;

  explicit Generators(c10::Device device) {
    keep(c10::Device(c10::kCPU));
    if (!device.is_cpu()) keep(device);
  }

  void keep(c10::Device device) {
    at::Generator generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    states.emplace_back(generator, generator.get_state());
  }

  void restore() {
    for (auto& [generator, state] : states) {
      std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_state(state);
    }
  }
};

// Autocast as it was in the forward pass, for as long as this lives.
struct Autocast {
  struct State {
    c10::DeviceType device;
    bool enabled;
    at::ScalarType dtype;

    static State now(c10::DeviceType device) {
      return {device, at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device)};
    }
    void set() const {
      at::autocast::set_autocast_dtype(device, dtype);
      at::autocast::set_autocast_enabled(device, enabled);
    }
  };

  State was;

  explicit Autocast(const State& wanted) : was(State::now(wanted.device)) {
    wanted.set();
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    was.set();
  }
};

struct Recomputed : torch::autograd::Function<Recomputed> {
  struct Kept : torch::CustomClassHolder {
    std::shared_ptr<Segment> segment;
    std::optional<Generators> generators;
    Autocast::State autocast;
  };

  // `tie` requires a gradient, so that the backward pass reaches the segment where its input (images) does not.
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& xs, const at::Tensor& tie,
                            const c10::intrusive_ptr<Kept>& kept) {
    ctx->save_for_backward({xs});
    ctx->saved_data["requires_grad"] = xs.requires_grad();
    ctx->saved_data["kept"] = c10::IValue::make_capsule(kept);
    at::Tensor ys = kept->segment->forward(xs);
    // Weights that were cast without recording gradients must not be reused where gradients are recorded.
    if (kept->autocast.enabled) at::autocast::clear_cache();
    return ys;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto capsule = ctx->saved_data["kept"].toCapsule();
    auto& kept = static_cast<Kept&>(*capsule);
    at::Tensor xs = ctx->get_saved_variables()[0].detach();
    xs.set_requires_grad(ctx->saved_data["requires_grad"].toBool());
    auto& buffers = kept.segment->buffers;
    std::vector<at::Tensor> before;
    for (const at::Tensor& buffer : buffers) before.push_back(buffer.clone());

    Generators now(xs.device());
    at::Tensor ys;
    {
      kept.generators->restore();
      const at::AutoGradMode recording(true);
      const Autocast autocast(kept.autocast);
      ys = kept.segment->forward(xs);
    }
    now.restore();
    torch::autograd::backward({ys}, {grads[0]});
    // The running statistics had seen this batch in the forward pass. Restored after the backward pass, which
    // checks that they did not change.
    const c10::AutoGradMode off(false);
    if (!buffers.empty()) at::_foreach_copy_(buffers, before);
    return {xs.grad(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

extern "C" {

struct TikhonovTensors {
  at::Tensor* const* tensors;
  size_t count;
};

void tikhonov_checkpoint_failed(const char* text) { failure = text; }

void tikhonov_checkpoint_output(at::Tensor* to, const at::Tensor* from) { *to = *from; }

// ys = run(xs), of which the graph keeps xs alone. `release` is called once, when `context` is no longer used.
char* tikhonov_checkpoint(void* context, Run run, void (*release)(void*), const at::Tensor* xs, TikhonovTensors buffers,
                       at::Tensor** ys) {
  return guarded([&] {
    // First of all: from here on the context is released in any case.
    auto segment = std::make_shared<Segment>(context, run, release);
    for (size_t i = 0; i < buffers.count; ++i) segment->buffers.push_back(*buffers.tensors[i]);
    auto kept = c10::make_intrusive<Recomputed::Kept>();
    kept->segment = std::move(segment);
    kept->generators.emplace(xs->device());
    kept->autocast = Autocast::State::now(xs->device().type());
    const at::Tensor tie = at::empty({0}, xs->options().dtype(at::kFloat)).requires_grad_(true);
    *ys = new at::Tensor(Recomputed::apply(*xs, tie, kept));
  });
}

}  // extern "C"
