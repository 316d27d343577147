// The calls of a flat list as they are noted, in JSON: see src/pytorch/export/flat.rs.

#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/runtime/operator.h>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <unordered_map>

#include "script.h"

namespace {

using c10::FunctionSchema;
using c10::IValue;
using c10::TypePtr;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Stack;

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error(why); }

std::string json_text(const std::string& text) {
  std::ostringstream out;
  out << '"';
  for (const unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out << '\\' << c;
    } else if (c < 0x20) {
      char code[8];
      snprintf(code, sizeof code, "\\u%04x", c);
      out << code;
    } else {
      out << c;
    }
  }
  out << '"';
  return out.str();
}

std::string tagged(const char* tag, const std::string& value) { return std::string("{\"") + tag + "\":" + value + "}"; }

template <typename L, typename F>
std::string joined(const L& list, F&& text) {
  std::string out = "[";
  for (const auto& one : list) {
    if (out.size() > 1) out += ",";
    out += text(one);
  }
  return out + "]";
}

std::string number(int64_t value) { return std::to_string(value); }

// As text: JSON has no infinity.
std::string number(double value) {
  std::ostringstream out;
  out.precision(std::numeric_limits<double>::max_digits10);
  out << value;
  return json_text(out.str());
}

std::string dtype_name(c10::ScalarType type) { return json_text(c10::getDtypeNames(type).first); }

// A value of the program.
struct Item {
  IValue value;
  // JSON of the integers that follow the input's sizes: of an integer its own, of a list one per element; empty for a
  // constant.
  std::vector<std::string> sizes;
  // Why it is neither a constant nor such integers; empty where it is.
  std::string opaque;
};

bool is_tensor(const TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType: return true;
    case c10::TypeKind::ListType: return is_tensor(type->expectRef<c10::ListType>().getElementType());
    case c10::TypeKind::OptionalType: return is_tensor(type->expectRef<c10::OptionalType>().getElementType());
    default: return false;
  }
}

c10::TypeKind plain_kind(TypePtr type) {
  while (const auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
  return type->kind();
}



// Runs the operator on the arguments in `stack`, which its answers take the place of.
void perform(const Node* node, Stack& stack) {
  // Operators of any number of arguments want it on top.
  if (node->getOperator().schema().is_vararg()) stack.emplace_back(static_cast<int64_t>(stack.size()));
  node->getOperation()(stack);
}

// The tensors that are known, and the calls that made them.
class Calls {
 public:
  explicit Calls(const Module& module) {
    visit_tensors(module, "", [&](const std::string& name, const at::Tensor& tensor, bool) {
      weights_.emplace(tensor.unsafeGetTensorImpl(), name);
    });
  }

  // Those that state_dict() lacks.
  const std::vector<at::Tensor>& constants() const { return constants_; }

  // Makes tensors of tensors that are not constants.
  bool is_call(const FunctionSchema& schema, const Stack& stack) const {
    const auto& returns = schema.returns();
    if (std::none_of(returns.begin(), returns.end(), [](const c10::Argument& one) { return is_tensor(one.type()); })) return false;
    for (size_t i = 0; i < stack.size() && i < schema.arguments().size(); i++) {
      if (!is_tensor(schema.arguments()[i].type())) continue;
      if (any_tensor(stack[i], [&](const at::Tensor& tensor) { return is_made(tensor) || weight(tensor); })) return true;
    }
    return false;
  }

  const std::string* weight(const at::Tensor& tensor) const {
    const auto found = weights_.find(tensor.unsafeGetTensorImpl());
    return found == weights_.end() ? nullptr : &found->second;
  }

  bool is_made(const at::Tensor& tensor) const { return made_.count(tensor.unsafeGetTensorImpl()) > 0; }

  template <typename F>
  static bool any_tensor(const IValue& value, F&& test) {
    if (value.isTensor()) return value.toTensor().defined() && test(value.toTensor());
    if (!value.isList()) return false;
    for (const IValue& one : value.toListRef()) {
      if (any_tensor(one, test)) return true;
    }
    return false;
  }

  int64_t tensor_made(const at::Tensor& tensor) {
    const int64_t id = count_++;
    made_[tensor.unsafeGetTensorImpl()] = id;
    kept_.push_back(tensor);
    if (id > 0) values_ += ",";
    values_ += "{\"shape\":" + joined(tensor.sizes(), [](int64_t side) { return number(side); }) + ",\"dtype\":" + dtype_name(tensor.scalar_type()) + "}";
    return id;
  }

  std::string tensor(const at::Tensor& tensor) {
    if (!tensor.defined()) return "\"none\"";
    const auto* impl = tensor.unsafeGetTensorImpl();
    if (const auto made = made_.find(impl); made != made_.end()) return tagged("tensor", number(made->second));
    if (const auto* name = weight(tensor)) return tagged("weight", json_text(*name));
    auto place = std::find_if(constants_.begin(), constants_.end(), [&](const at::Tensor& known) { return known.unsafeGetTensorImpl() == impl; });
    if (place == constants_.end()) place = constants_.insert(place, tensor);
    return tagged("constant", json_text("constant_" + number(place - constants_.begin())));
  }

  std::string argument(const Item& item, const c10::Argument& formal, const std::string& callee) {
    const auto& value = item.value;
    if (!item.opaque.empty()) refuse("`" + formal.name() + "` of " + callee + " depends on " + item.opaque);
    if (value.isNone()) return "\"none\"";
    if (value.isTensor()) return tensor(value.toTensor());
    if (value.isBool()) return tagged("bool", value.toBool() ? "true" : "false");
    if (value.isInt()) {
      const int64_t integer = value.toInt();
      if (!item.sizes.empty()) return item.sizes[0];
      switch (plain_kind(formal.real_type())) {
        case c10::TypeKind::ScalarTypeType: return tagged("dtype", dtype_name(static_cast<c10::ScalarType>(integer)));
        case c10::TypeKind::LayoutType:
          if (static_cast<c10::Layout>(integer) != c10::kStrided) break;
          return tagged("layout", "\"strided\"");
        case c10::TypeKind::MemoryFormatType: {
          static const char* const kNames[] = {"contiguous_format", "preserve_format", "channels_last", "channels_last_3d"};
          if (integer < 0 || integer > 3) break;
          return tagged("memory_format", json_text(kNames[integer]));
        }
        case c10::TypeKind::FloatType: return tagged("float", number(static_cast<double>(integer)));
        default: return tagged("int", number(integer));
      }
    }
    if (value.isDouble()) return tagged("float", number(value.toDouble()));
    if (value.isString()) return tagged("text", json_text(value.toStringRef()));
    if (value.isDevice()) return tagged("device", json_text(value.toDevice().str()));
    if (value.isIntList()) {
      const auto list = value.toIntVector();
      if (item.sizes.empty()) return tagged("ints", joined(list, [](int64_t one) { return number(one); }));
      size_t place = 0;
      return tagged("list", joined(list, [&](int64_t one) {
        const auto& size = item.sizes[place++];
        return size.empty() ? tagged("int", number(one)) : size;
      }));
    }
    if (value.isDoubleList()) return tagged("floats", joined(value.toDoubleVector(), [](double one) { return number(one); }));
    if (value.isBoolList()) return tagged("bools", joined(value.toBoolList(), [](bool one) { return std::string(one ? "true" : "false"); }));
    if (value.isList()) {
      return tagged("list", joined(value.toListRef(), [&](const IValue& one) {
        if (!one.isNone() && !one.isTensor()) refuse("`" + formal.name() + "` of " + callee + " is a list of " + one.tagKind());
        return one.isNone() ? std::string("\"none\"") : tensor(one.toTensor());
      }));
    }
    refuse("`" + formal.name() + "` of " + callee + " is a " + value.tagKind());
  }

  // Whether the call changes its first argument; the schema of the counterpart that does not.
  static const FunctionSchema* functional(const FunctionSchema& schema) {
    const auto& name = schema.name();
    auto* found = &schema;
    if (!schema.is_mutable()) return found;
    if (name.back() != '_') refuse(name + ", which writes into its arguments");
    const auto handle = c10::Dispatcher::singleton().findSchema({name.substr(0, name.size() - 1), schema.overload_name()});
    if (!handle || handle->schema().is_mutable() || handle->schema().arguments().size() != schema.arguments().size()) {
      refuse(name + ", which changes a tensor in place");
    }
    return &handle->schema();
  }

  // Notes the call that `node` of the module `path` makes, and answers what it does.
  Stack note(Node* node, const std::vector<Item>& inputs, const std::string& path) {
    const auto& written = node->getOperator().schema();
    const auto name = written.name() + (written.overload_name().empty() ? "" : "." + written.overload_name());
    if (written.name().rfind("aten::", 0) != 0) refuse(name + ", which is no operator of ATen");
    const bool is_dropout = written.name().find("dropout") != std::string::npos;
    if (!is_dropout && node->isNondeterministic()) refuse(name + ", which draws random numbers");
    const auto& schema = *functional(written);
    // In evaluation a dropout changes nothing.
    if (&schema != &written && !is_dropout) check_alone(inputs[0].value.toTensor(), name);
    std::string args;
    for (size_t i = 0; i < inputs.size(); i++) {
      const auto& formal = schema.arguments()[i];
      if (is_dropout && formal.name() == "train" && inputs[i].value.toBool()) refuse(name + " in training");
      if (i > 0) args += ",";
      args += "{\"name\":" + json_text(formal.name()) + ",\"value\":" + argument(inputs[i], formal, name) + ",\"is_keyword\":" +
          (formal.kwarg_only() ? "true" : "false") + "}";
    }
    Stack stack;
    for (const auto& input : inputs) stack.push_back(input.value);
    perform(node, stack);
    std::vector<int64_t> outputs;
    bool is_list = false;
    for (size_t i = 0; i < stack.size(); i++) {
      if (stack[i].isTensorList()) {
        auto list = stack[i].toTensorList();
        is_list = true;
        for (size_t k = 0; k < list.size(); k++) {
          list.set(k, fresh(list.get(k)));
          outputs.push_back(tensor_made(list.get(k)));
        }
      } else {
        if (!stack[i].isTensor() || !stack[i].toTensor().defined()) refuse(name + ", which answers a " + stack[i].tagKind());
        if (&schema == &written) stack[i] = fresh(stack[i].toTensor());
        outputs.push_back(tensor_made(stack[i].toTensor()));
      }
    }
    if (is_list && stack.size() != 1) refuse(name + ", which answers several lists");
    if (!nodes_.empty()) nodes_ += ",";
    nodes_ += "{\"path\":" + json_text(path) + ",\"op\":" + json_text(schema.name().substr(6)) + ",\"overload\":" +
        json_text(schema.overload_name()) + ",\"args\":[" + args + "],\"outputs\":" + joined(outputs, [](int64_t id) { return number(id); }) + ",\"is_list\":" + (is_list ? "true" : "false") + "}";
    return stack;
  }

  // An operator may hand back its argument, such as dropout in evaluation: its answer is a tensor of its own here.
  at::Tensor fresh(const at::Tensor& tensor) const { return is_made(tensor) || weight(tensor) ? tensor.clone() : tensor; }

  // A tensor that is changed in place must share its memory with none that is known.
  void check_alone(const at::Tensor& tensor, const std::string& name) const {
    if (const auto* own = weight(tensor)) refuse(name + " changes `" + *own + "`");
    if (!is_made(tensor)) refuse(name + " changes a constant");
    for (const auto& known : kept_) {
      if (known.unsafeGetTensorImpl() != tensor.unsafeGetTensorImpl() && known.is_alias_of(tensor)) {
        refuse(name + " changes a tensor that shares its memory with another");
      }
    }
  }

 protected:
  std::unordered_map<const c10::TensorImpl*, int64_t> made_;
  std::string nodes_, values_;

 private:
  std::unordered_map<const c10::TensorImpl*, std::string> weights_;
  // Keeps addresses from being taken again.
  std::vector<at::Tensor> kept_;
  std::vector<at::Tensor> constants_;
  int64_t count_ = 0;
};

}  // namespace
