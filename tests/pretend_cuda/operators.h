// The operators: one fallback, which runs the CPU's kernel on the device's memory, and those that a device has to have.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/enum_tag.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include "recording.h"

namespace pretend {

using c10::IValue;
using torch::jit::Stack;

inline at::Tensor there(const at::Tensor& tensor, c10::Device device) {
  if (!tensor.defined() || tensor.is_cuda()) return tensor;
  c10::OptionalDeviceGuard guard(device);
  const c10::DispatchKeySet keys(c10::DispatchKey::CUDA);
  const at::Tensor made = at::detail::empty_strided_generic(tensor.sizes(), tensor.strides(), &allocator, keys,
                                                            tensor.scalar_type());
  here(made).copy_(tensor);
  return made;
}

inline const at::Tensor& resize_(const at::Tensor& tensor, c10::IntArrayRef sizes,
                                 std::optional<at::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(tensor.device());
  auto* impl = tensor.unsafeGetTensorImpl();
  const int64_t count = c10::multiply_integers(sizes);
  const size_t bytes = (tensor.storage_offset() + count) * tensor.dtype().itemsize();
  if (tensor.sizes() == sizes && !format) return tensor;
  if (count > 0 && bytes > tensor.storage().nbytes()) {
    c10::DataPtr grown = allocator.allocate(bytes);
    const auto& storage = tensor.storage();
    if (storage.nbytes()) allocator.copy_data(grown.get(), storage.data_ptr().get(), storage.nbytes());
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(grown));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(sizes);
  if (format && *format != at::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  return tensor;
}

struct Devices {
  std::optional<c10::Device> cuda;
  bool cpu = false;  // with dimensions: a number of the host goes with any device

  void see(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (!tensor.is_cuda()) {
      cpu |= tensor.dim() > 0;
      return;
    }
    TORCH_CHECK(!cuda || *cuda == tensor.device(), "Expected all tensors to be on the same device, but found at least "
                "two devices, ", *cuda, " and ", tensor.device(), "!");
    cuda = tensor.device();
  }
};

template <typename F>
void each_tensor(const IValue& value, F&& f) {
  if (value.isTensor()) {
    f(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) f(tensor);
  } else if (value.isOptionalTensorList()) {
    for (std::optional<at::Tensor> tensor : value.toOptionalTensorList())
      if (tensor) f(*tensor);
  }
}

template <typename F>
IValue map(const IValue& value, F&& f) {
  if (value.isTensor()) return f(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> mapped;
    for (const at::Tensor& tensor : value.toTensorVector()) mapped.push_back(f(tensor));
    return mapped;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> mapped;
    for (std::optional<at::Tensor> tensor : value.toOptionalTensorList())
      mapped.push_back(tensor ? std::optional(f(*tensor)) : tensor);
    return mapped;
  }
  if (value.isDevice()) return IValue(c10::Device(c10::kCPU));
  if (value.isGenerator()) return IValue();
  return value;
}

// Operators of CUDA that read a size back.
inline const std::set<std::string> waiting = {"aten::nonzero", "aten::bincount", "aten::masked_select", "aten::equal",
                                              "aten::_unique2", "aten::unique_dim", "aten::repeat_interleave"};
// Operators that take indices of the host with tensors of the device.
inline const std::set<std::string> mixing = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"};

inline bool is_written(const c10::Argument& argument) {
  return argument.alias_info() && argument.alias_info()->isWrite();
}

// Work of the current stream of a device: after what is late there, and noted in the memory that it uses.
inline void begin_work(const c10::OperatorHandle& op, const std::vector<IValue>& given, c10::Device device) {
  const auto& arguments = op.schema().arguments();
  const int stream = stream_of(device.index());
  if (Tape* tape = tape_of(device.index())) {
    for (size_t i = 0; i < given.size(); ++i)
      each_tensor(given[i], [&](const at::Tensor& t) { if (t.is_cuda()) tape->use(t, is_written(arguments[i])); });
    return;
  }
  std::lock_guard<std::recursive_mutex> lock(mutex);
  catch_up(stream, INT64_MAX, false);
  const int64_t number = next_number(stream);
  for (size_t i = 0; i < given.size(); ++i)
    each_tensor(given[i], [&](const at::Tensor& t) {
      if (t.is_cuda()) note_use(t, stream, number, is_written(arguments[i]), op.schema().name());
    });
}

inline void fallback(const c10::OperatorHandle& op, Stack* stack) {
  ++counters.operators;
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  const std::string& name = schema.name();
  if (verbose) fprintf(stderr, "[pretend CUDA] %s.%s\n", name.c_str(), schema.overload_name().c_str());
  const size_t count = arguments.size(), begin = stack->size() - count;
  const std::vector<IValue> given(stack->begin() + begin, stack->end());
  Devices devices;
  for (const auto& value : given) each_tensor(value, [&](const at::Tensor& tensor) { devices.see(tensor); });
  TORCH_CHECK(!devices.cuda || !devices.cpu || mixing.count(name), "Expected all tensors to be on the same device, but "
              "found at least two devices, ", devices.cuda ? c10::str(*devices.cuda) : "", " and cpu! (", name, ")");
  const c10::Device device = devices.cuda.value_or(c10::Device(c10::kCUDA, current));
  Tape* tape = tape_of(device.index());
  failure.maybe(false, tape, name.c_str());
  if (waiting.count(name)) {
    host_waits(name.c_str());
    wait_for_stream(stream_of(device.index()));
  }
  begin_work(op, given, device);
  const bool is_random = op.hasTag(at::Tag::nondeterministic_seeded);
  // An output that is to be resized gets its memory when its size is known.
  std::vector<bool> hollow(count);
  for (size_t i = 0; i < count; ++i) {
    if (!is_written(arguments[i]) || !given[i].isTensor()) continue;
    const at::Tensor tensor = given[i].toTensor();
    hollow[i] = tensor.defined() && tensor.is_cuda() && (arguments[i].is_out() || tensor.numel() == 0);
  }
  // `dry`: for the shapes of the answers. Of zeros, which no kernel refuses; changes nothing.
  const auto compute = [op, given, hollow, is_random, device](bool dry) {
    Stack own;
    std::vector<at::Tensor> outs(hollow.size());
    for (size_t i = 0; i < given.size(); ++i) {
      if (hollow[i]) {
        outs[i] = at::empty({0}, given[i].toTensor().options().device(at::kCPU));
        own.push_back(outs[i]);
        continue;
      }
      own.push_back(map(given[i], [&](const at::Tensor& tensor) {
        const at::Tensor same = here(tensor);
        return dry && same.defined() ? same.clone().zero_() : same;
      }));
    }
    {
      std::optional<Draws> draws;
      if (is_random) draws.emplace(device.index(), dry);
      at::AutoDispatchBelowADInplaceOrView below;
      op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &own);
    }
    for (size_t i = 0; i < hollow.size(); ++i) {
      if (!hollow[i]) continue;
      const at::Tensor to = given[i].toTensor();
      if (to.sizes() != outs[i].sizes()) resize_(to, outs[i].sizes(), outs[i].suggest_memory_format());
      if (!dry) here(to).copy_(outs[i]);
    }
    return own;
  };
  bool has_new = false;
  for (const auto& answer : schema.returns()) has_new |= !is_written(answer);
  const bool any_hollow = std::count(hollow.begin(), hollow.end(), true) > 0;
  Stack made;
  if (!tape || has_new || any_hollow) made = compute(tape);
  std::vector<IValue> answers;
  for (size_t i = 0; i < schema.returns().size(); ++i) {
    const auto& answer = schema.returns()[i];
    if (!is_written(answer)) {
      TORCH_CHECK(!answer.alias_info(), "pretend CUDA: ", name, " is a view that is not registered");
      answers.push_back(map(made[i], [&](const at::Tensor& tensor) { return there(tensor, device); }));
      continue;
    }
    const auto same = std::find_if(arguments.begin(), arguments.end(), [&](const auto& argument) {
      return is_written(argument) && argument.alias_info()->beforeSets() == answer.alias_info()->beforeSets();
    });
    TORCH_CHECK(same != arguments.end(), "pretend CUDA: no argument for an answer of ", name);
    answers.push_back(given[same - arguments.begin()]);
  }
  if (tape) {
    for (const auto& answer : answers) each_tensor(answer, [&](const at::Tensor& t) { tape->use(t, true); });
    tape->add([compute, answers, has_new] {
      const Stack now = compute(false);
      if (!has_new) return;
      for (size_t i = 0; i < answers.size(); ++i) {
        std::vector<at::Tensor> to, from;
        each_tensor(answers[i], [&](const at::Tensor& tensor) { to.push_back(here(tensor)); });
        each_tensor(now[i], [&](const at::Tensor& tensor) { from.push_back(tensor); });
        for (size_t k = 0; k < to.size(); ++k)
          if (to[k].defined() && to[k].const_data_ptr() != from[k].const_data_ptr()) to[k].copy_(from[k]);
      }
    });
  } else {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    const int stream = stream_of(device.index());
    for (size_t i = 0; i < answers.size(); ++i)
      if (!is_written(schema.returns()[i]))
        each_tensor(answers[i], [&](const at::Tensor& t) { note_use(t, stream, states[stream].last, true, name); });
  }
  torch::jit::drop(*stack, count);
  for (auto& answer : answers) stack->push_back(std::move(answer));
}

// A copy between host and device that need not block, on the device's current stream.
inline void copy_late(const at::Tensor& to, const at::Tensor& from) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const bool to_device = to.is_cuda();
  const at::Tensor& remote = to_device ? to : from;
  const at::Tensor& local = to_device ? from : to;
  const int stream = stream_of(remote.device().index());
  if (!to_device) catch_up(stream, INT64_MAX, false);
  const int64_t number = next_number(stream);
  note_use(remote, stream, number, to_device, "a copy between host and device");
  std::function<void()> copy;
  if (to_device) {
    copy = [to, from] { here(to).copy_(from); };
  } else {
    // What the device has now arrives later; until then nothing is there.
    copy = [to, value = here(from).clone()] { to.copy_(value); };
    if (to.is_floating_point()) to.fill_(NAN); else to.fill_(0);
  }
  const auto* host = static_cast<const char*>(local.const_data_ptr());
  states[stream].late.push_back({number, to_device, host, local.nbytes(), std::move(copy)});
}

inline at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  ++counters.operators;
  const auto device = to.is_cuda() ? to.device() : from.device();
  const int stream = stream_of(device.index());
  Tape* tape = tape_of(device.index());
  failure.maybe(false, tape, "copy_");
  if (verbose) fprintf(stderr, "[pretend CUDA] copy_ %s\n", c10::str(from.device(), " ", to.device()).c_str());
  const bool crosses = to.is_cuda() != from.is_cuda();
  const bool blocks = crosses && (!non_blocking || !pinned.has((to.is_cuda() ? from : to).const_data_ptr()));
  if (blocks) {
    ++counters.blocking_copies;
    host_waits(to.is_cuda() ? "a copy from pageable memory, or one that blocks" : "a copy to the host");
    wait_for_stream(stream);
  }
  if (tape) {
    for (const at::Tensor& tensor : {to, from})
      if (tensor.is_cuda()) tape->use(tensor, tensor.is_same(to));
    tape->add([to, from, crosses] { crosses ? copy_late(to, from) : (void)here(to).copy_(here(from)); });
    return to;
  }
  if (crosses && !blocks) {
    copy_late(to, from);
    return to;
  }
  {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    catch_up(stream, INT64_MAX, false);
    const int64_t number = next_number(stream);
    if (to.is_cuda()) note_use(to, stream, number, true, "copy_");
    if (from.is_cuda()) note_use(from, stream, number, false, "copy_");
  }
  here(to).copy_(here(from));
  return to;
}

inline at::Scalar item(const at::Tensor& tensor) {
  host_waits("item");
  const int stream = stream_of(tensor.device().index());
  wait_for_stream(stream);
  {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    note_use(tensor, stream, next_number(stream), false, "item");
  }
  return at::native::_local_scalar_dense_cpu(here(tensor));
}

inline void record_stream(at::Tensor& tensor, at::Stream stream) {
  allocator.recordStream(tensor.storage().data_ptr(), stream);
}

using Sizes = c10::SymIntArrayRef;
using MaybeDevice = std::optional<at::Device>;

inline c10::OptionalDeviceGuard on(const MaybeDevice& device) {
  return c10::OptionalDeviceGuard(device && device->has_index() ? device : std::nullopt);
}
inline at::Tensor empty(Sizes size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, MaybeDevice device,
                        std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const auto guard = on(device);
  const c10::DispatchKeySet keys(c10::DispatchKey::CUDA);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator, keys, c10::dtype_or_default(dtype),
                                   format);
}
inline at::Tensor empty_strided(Sizes size, Sizes strides, std::optional<at::ScalarType> dtype,
                                std::optional<at::Layout>, MaybeDevice device, std::optional<bool>) {
  const auto guard = on(device);
  const c10::DispatchKeySet keys(c10::DispatchKey::CUDA);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(strides), &allocator,
                                           keys, c10::dtype_or_default(dtype));
}
inline at::Tensor view(const at::Tensor& tensor, Sizes size) {
  return at::native::view(tensor, C10_AS_INTARRAYREF_SLOW(size));
}
inline at::Tensor as_strided(const at::Tensor& tensor, Sizes size, Sizes strides, std::optional<c10::SymInt> offset) {
  const auto start = offset ? std::optional(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(tensor, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(strides),
                                           start);
}
inline at::Tensor reshape_alias(const at::Tensor& tensor, Sizes size, Sizes strides) {
  return at::native::_reshape_alias(tensor, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(strides));
}
inline const at::Tensor& resize(const at::Tensor& tensor, Sizes size, std::optional<at::MemoryFormat> format) {
  return resize_(tensor, C10_AS_INTARRAYREF_SLOW(size), format);
}
inline at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage, c10::SymInt offset, Sizes size, Sizes strides) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(strides), offset.expect_int());
  return tensor;
}
inline at::Tensor& set_tensor(at::Tensor& tensor, const at::Tensor& source) {
  return set_storage(tensor, source.storage(), source.storage_offset(), source.sym_sizes(), source.sym_strides());
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_local_scalar_dense", item);
  m.impl("view", view);
  m.impl("as_strided", as_strided);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("resize_", resize);
  m.impl("record_stream", record_stream);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  // libtorch has one kernel of these for all devices, which calls stubs that each device fills.
  for (const char* name : {"fill_.Scalar", "fill_.Tensor", "masked_fill", "masked_fill_.Scalar", "convolution",
                           "convolution_backward", "repeat_interleave.Tensor"}) {
    try {
      m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
    } catch (const std::exception&) {
    }
  }
}

}  // namespace pretend
