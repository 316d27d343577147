// What the files about TorchScript modules share.

#pragma once

#include <torch/csrc/jit/api/module.h>

namespace {

// Parameters, buffers, then the children: the order of PyTorch's state_dict().
template <typename F>
void visit_tensors(const torch::jit::Module& module, const std::string& prefix, F&& visit) {
  const auto type = module.type();
  const auto object = module._ivalue();
  const size_t count = type->numAttributes();
  for (const bool parameters : {true, false}) {
    for (size_t i = 0; i < count; i++) {
      if (parameters ? !type->is_parameter(i) : !type->is_buffer(i)) continue;
      const auto value = object->getSlot(i);
      if (value.isTensor() && value.toTensor().defined()) visit(prefix + type->getAttributeName(i), value.toTensor(), parameters);
    }
  }
  for (size_t i = 0; i < count; i++) {
    if (!type->getAttribute(i)->is_module()) continue;
    visit_tensors(torch::jit::Module(object->getSlot(i).toObject()), prefix + type->getAttributeName(i) + ".", visit);
  }
}

}  // namespace
