// TorchScript modules: built from source text, saved, loaded and run. Errors as in shim.cpp.

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/passes/frozen_linear_transpose.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include "guarded.h"
#include "script.h"

using torch::jit::Module;

extern "C" {

// A module of a class of its own, called `name` (the last part is what Python shows), in the compilation unit
// of `peer`.
char* tikhonov_script_new(const char* name, const Module* peer, Module** module) {
  return guarded([&] {
    const c10::QualifiedName qualified(name);
    auto unit = peer ? peer->_ivalue()->compilation_unit() : std::make_shared<torch::jit::CompilationUnit>();
    *module = new Module(qualified, unit, /*shouldMangle=*/true);
    (*module)->register_attribute("training", c10::BoolType::get(), true);
  });
}

void tikhonov_script_free(Module* module) { delete module; }

// `role` is 0 for a parameter, 1 for a buffer, 2 for a constant, which state_dict() does not list.
char* tikhonov_script_add_tensor(Module* module, const char* name, const at::Tensor* tensor, int role) {
  return guarded([&] {
    const auto own = tensor->detach().clone();
    if (role == 0) {
      module->register_parameter(name, own.set_requires_grad(true), false);
    } else if (role == 1) {
      module->register_buffer(name, own);
    } else {
      module->register_attribute(name, c10::TensorType::get(), own);
    }
  });
}

char* tikhonov_script_add_child(Module* module, const char* name, const Module* child) {
  return guarded([&] { module->register_module(name, *child); });
}

// A list attribute: `kind` is 0 for C strings, 1 for double, 2 for int64_t.
char* tikhonov_script_add_list(Module* module, const char* name, int kind, size_t count, const void* values) {
  return guarded([&] {
    if (kind == 0) {
      c10::List<std::string> list;
      for (size_t i = 0; i < count; i++) list.push_back(static_cast<const char* const*>(values)[i]);
      module->register_attribute(name, c10::ListType::ofStrings(), list);
    } else if (kind == 1) {
      const auto numbers = static_cast<const double*>(values);
      module->register_attribute(name, c10::ListType::ofFloats(), c10::List<double>(c10::ArrayRef<double>(numbers, count)));
    } else {
      const auto numbers = static_cast<const int64_t*>(values);
      module->register_attribute(name, c10::ListType::ofInts(), c10::List<int64_t>(c10::ArrayRef<int64_t>(numbers, count)));
    }
  });
}

char* tikhonov_script_define(Module* module, const char* source) {
  return guarded([&] { module->define(source); });
}

// Hands the bytes of the file to `take`, piece by piece. Nothing is written here: the archive's writer throws
// in its destructor where it cannot write, which ends the process. So its name leaves no trace in the file,
// too.
char* tikhonov_script_save(
    const Module* module, const char* extra_name, const char* extra, void* context,
    void (*take)(void*, const void*, size_t)) {
  return guarded([&] {
    const std::function<size_t(const void*, size_t)> writer = [&](const void* bytes, size_t count) {
      take(context, bytes, count);
      return count;
    };
    torch::jit::ExportModule(*module, writer, {{extra_name, extra}});
  });
}

// `cuda` is the index of a GPU, or -1 for the CPU.
char* tikhonov_script_load(const char* path, int64_t cuda, Module** module) {
  return guarded([&] {
    const auto device = cuda < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(cuda));
    *module = new Module(torch::jit::import_ir_module(std::make_shared<torch::jit::CompilationUnit>(), path, device));
  });
}

// Every operator as written: the optimising executor changes plans, and with them the rounding, after the
// first runs.
char* tikhonov_script_forward(const Module* module, const at::Tensor* xs, at::Tensor** ys) {
  return guarded([&] {
    const torch::jit::GraphOptimizerEnabledGuard plain(false);
    const auto answer = module->get_method("forward")({*xs});
    TORCH_CHECK(answer.isTensor(), "forward returns ", answer.tagKind(), " and not one tensor");
    *ys = new at::Tensor(answer.toTensor());
  });
}

char* tikhonov_script_train(Module* module, bool on) {
  return guarded([&] { module->train(on); });
}

// The mode of the module at `path` alone.
char* tikhonov_script_train_at(Module* module, const char* path, bool on) {
  return guarded([&] {
    for (const auto& [name, child] : module->named_modules()) {
      if (name == path && child.hasattr("training")) Module(child).setattr("training", on);
    }
  });
}

char* tikhonov_script_to(Module* module, const at::Tensor* like) {
  return guarded([&] {
    // As .to(dtype) does in Python: counters stay what they are.
    const at::NoGradGuard untracked;
    visit_tensors(*module, "", [&](const std::string&, at::Tensor tensor, bool) {
      if (tensor.is_floating_point()) tensor.set_data(tensor.to(like->scalar_type()));
    });
  });
}

// The module with its weights as constants, in eval mode; `optimize` adds of optimize_for_inference what a
// file can hold: its oneDNN weights and cuDNN operators belong to the machine that runs them.
char* tikhonov_script_freeze(
    Module* module, bool optimize, const char* const* kept, size_t count, Module** frozen) {
  return guarded([&] {
    module->eval();
    std::vector<std::string> attributes;
    for (size_t i = 0; i < count; i++) {
      if (module->hasattr(kept[i])) attributes.emplace_back(kept[i]);
    }
    auto result = torch::jit::freeze(*module, attributes);
    if (optimize) {
      auto graph = result.get_method("forward").graph();
      torch::jit::FrozenLinearTranspose(graph);
    }
    *frozen = new Module(result);
  });
}

// Calls `visit` with each tensor that state_dict() lists; the tensor is the receiver's to free.
char* tikhonov_script_tensors(
    const Module* module, void* context, void (*visit)(void*, const char* name, bool is_parameter, at::Tensor*)) {
  return guarded([&] {
    visit_tensors(*module, "", [&](const std::string& name, const at::Tensor& tensor, bool is_parameter) {
      visit(context, name.c_str(), is_parameter, new at::Tensor(tensor));
    });
  });
}

// Calls `visit` with the path and the class of each module, parents first.
char* tikhonov_script_modules(const Module* module, void* context, void (*visit)(void*, const char*, const char*)) {
  return guarded([&] {
    for (const auto& [name, child] : module->named_modules()) {
      visit(context, name.c_str(), child.type()->name()->name().c_str());
    }
  });
}

}  // extern "C"
