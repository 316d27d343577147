// The ATen calls that a TorchScript module makes of a sample, as JSON. The interpreter here runs the program and
// knows of each value whether it follows the input: calls on such tensors and on weights are noted, everything
// else is computed away. Errors as in shim.cpp.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/runtime/operator.h>
#include <limits>
#include <set>
#include <sstream>
#include <stdexcept>
#include <unordered_map>

#include "guarded.h"
#include "script.h"

namespace {

using c10::FunctionSchema;
using c10::IValue;
using c10::TypePtr;
using torch::jit::Block;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Stack;
using torch::jit::Value;
namespace attr = c10::attr;
namespace prim = c10::prim;

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

IValue list(const c10::ListType& type, const Stack& items) {
  c10::impl::GenericList list(type.getElementType());
  for (const auto& item : items) list.push_back(item);
  return list;
}

// Keys and values in turn.
IValue dict(const c10::DictType& type, const Stack& items) {
  c10::impl::GenericDict dict(type.getKeyType(), type.getValueType());
  for (size_t i = 0; i + 1 < items.size(); i += 2) dict.insert_or_assign(items[i], items[i + 1]);
  return dict;
}

class Tracer {
 public:
  // `other` has the integers that a run on a sample of another size has seen.
  Tracer(const Module& module, const std::vector<int64_t>* other) : other_(other) {
    visit_tensors(module, "", [&](const std::string& name, const at::Tensor& tensor, bool) {
      weights_.emplace(tensor.unsafeGetTensorImpl(), name);
    });
    for (const auto& [name, child] : module.named_modules()) paths_.emplace(child._ivalue().get(), name);
  }

  std::string run(const Module& module, const at::Tensor& xs) {
    const auto method = module.get_method("forward");
    const auto& formal = method.function().getSchema().arguments();
    std::vector<Item> arguments = {{module._ivalue(), {}, ""}, {xs, {}, ""}};
    for (size_t i = 2; i < formal.size(); i++) {
      if (!formal[i].default_value()) refuse("forward wants more than one tensor: `" + formal[i].name() + "`");
      arguments.push_back({*formal[i].default_value(), {}, ""});
    }
    const auto input = tensor_made(xs);
    const auto answer = enter(method.function(), arguments).at(0).value;
    if (!answer.isTensor()) refuse("forward answers a " + answer.tagKind() + " and not one tensor");
    const auto output = made_.find(answer.toTensor().unsafeGetTensorImpl());
    if (output == made_.end()) refuse("its answer does not follow its input");
    return "{\"input\":" + number(input) + ",\"output\":" + number(output->second) + ",\"nodes\":[" + nodes_ +
        "],\"values\":[" + values_ + "]}";
  }

  const std::vector<int64_t>& seen() const { return seen_; }
  const std::vector<at::Tensor>& constants() const { return constants_; }

 private:
  void set(const Value* value, Item item) { items_[value] = std::move(item); }
  void set(const Value* value, IValue plain) { set(value, Item{std::move(plain), {}, ""}); }

  const Item& of(const Value* value) const {
    const auto found = items_.find(value);
    if (found == items_.end()) refuse("`" + value->debugName() + "` is used before it is made");
    return found->second;
  }

  // What the function answers, in a frame of its own.
  std::vector<Item> enter(torch::jit::Function& function, const std::vector<Item>& arguments) {
    auto* plain = torch::jit::tryToGraphFunction(function);
    if (!plain) refuse(function.qualname().qualifiedName() + ", which has no code");
    plain->ensure_defined();
    const auto graph = plain->graph();
    std::unordered_map<const Value*, Item> frame;
    std::swap(frame, items_);
    for (size_t i = 0; i < arguments.size(); i++) set(graph->inputs()[i], arguments[i]);
    run(graph->block());
    std::vector<Item> answers;
    for (const auto* output : graph->outputs()) answers.push_back(of(output));
    std::swap(frame, items_);
    return answers;
  }

  void enter(Node* node) {
    std::vector<Item> arguments;
    for (const auto* input : node->inputs()) arguments.push_back(of(input));
    std::vector<Item> answers;
    if (node->kind() == prim::CallMethod) {
      const auto object = arguments[0].value.toObject();
      const auto before = path_;
      if (const auto known = paths_.find(object.get()); known != paths_.end()) path_ = known->second;
      answers = enter(object->type()->getMethod(node->s(attr::name)), arguments);
      path_ = before;
    } else {
      auto& function = *node->input(0)->type()->expectRef<c10::FunctionType>().function();
      arguments.erase(arguments.begin());
      answers = enter(function, arguments);
    }
    for (size_t i = 0; i < answers.size(); i++) set(node->outputs()[i], answers[i]);
  }

  void run(Block* block) {
    for (Node* node : block->nodes()) visit(node);
  }

  // An integer that a control structure depends on.
  const IValue& decided(const Value* value, const char* what) const {
    const auto& item = of(value);
    if (!item.sizes.empty()) refuse(std::string(what) + " that depends on the size of its input");
    if (!item.opaque.empty()) refuse(std::string(what) + " that depends on " + item.opaque);
    return item.value;
  }

  Stack stack(const Node* node) const {
    Stack stack;
    for (const auto* input : node->inputs()) stack.push_back(of(input).value);
    return stack;
  }

  void visit(Node* node) {
    switch (node->kind()) {
      // A function is a constant without a value.
      case prim::Constant: return set(node->output(), torch::jit::toIValue(node->output()).value_or(IValue()));
      case prim::GetAttr: return set(node->output(), of(node->input()).value.toObject()->getAttr(node->s(attr::name)));
      case prim::SetAttr: refuse("its forward sets the attribute `" + node->s(attr::name) + "`");
      case prim::RaiseException: refuse("its forward raises an error");
      case prim::unchecked_cast:
      case prim::unchecked_unwrap_optional: return set(node->output(), of(node->input()));
      case prim::Uninitialized: return set(node->output(), IValue::uninitialized());
      case prim::If: {
        const bool taken = decided(node->input(), "an `if`").toBool();
        auto* block = node->blocks()[taken ? 0 : 1];
        run(block);
        for (size_t i = 0; i < node->outputs().size(); i++) set(node->outputs()[i], Item(of(block->outputs()[i])));
        return;
      }
      case prim::Loop: return loop(node);
      case prim::CallMethod:
      case prim::CallFunction: return enter(node);
      default: break;
    }
    std::vector<Item> inputs;
    for (const auto* input : node->inputs()) inputs.push_back(of(input));
    Stack stack = this->stack(node);
    std::vector<std::string> sizes;
    std::string opaque;
    for (const auto& input : inputs) {
      if (!input.opaque.empty()) opaque = input.opaque;
      for (const auto& size : input.sizes) {
        if (!size.empty() && opaque.empty()) opaque = std::string("the size of its input by ") + node->kind().toQualString();
      }
    }
    switch (node->kind()) {
      case prim::ListConstruct:
        for (const auto& input : inputs) sizes.push_back(input.sizes.empty() ? "" : input.sizes[0]);
        if (node->output()->type()->expectRef<c10::ListType>().getElementType()->kind() == c10::TypeKind::IntType) opaque = "";
        stack = {list(node->output()->type()->expectRef<c10::ListType>(), stack)};
        break;
      case prim::TupleConstruct: stack = {c10::ivalue::Tuple::create(stack)}; break;
      case prim::DictConstruct: stack = {dict(node->output()->type()->expectRef<c10::DictType>(), stack)}; break;
      case prim::TupleUnpack: stack = stack[0].toTupleRef().elements().vec(); break;
      case prim::ListUnpack:
        stack = stack[0].toListRef().vec();
        if (stack.size() != node->outputs().size()) refuse("a list of " + std::to_string(stack.size()) + " where another count is wanted");
        for (size_t i = 0; i < node->outputs().size(); i++) {
          const bool follows = i < inputs[0].sizes.size() && !inputs[0].sizes[i].empty();
          set(node->outputs()[i], {stack[i], follows ? std::vector{inputs[0].sizes[i]} : std::vector<std::string>{}, inputs[0].opaque});
        }
        return;
      case prim::isinstance: {
        const auto& types = node->tys(attr::types);
        const auto own = stack[0].type();
        stack = {std::any_of(types.begin(), types.end(), [&](const TypePtr& type) { return own->isSubtypeOf(*type); })};
        break;
      }
      default: {
        if (!node->maybeOperator()) refuse(std::string(node->kind().toQualString()) + ", which is no operator of ATen");
        if (is_call(node->getOperator().schema(), stack)) return call(node, inputs);
        if (measure(node, inputs) || count(node, inputs)) return;
        run_plain(node, inputs, stack, opaque);
      }
    }
    if (stack.size() != node->outputs().size()) refuse(std::string(node->kind().toQualString()) + " answers otherwise than it says");
    if (std::all_of(sizes.begin(), sizes.end(), [](const std::string& size) { return size.empty(); })) sizes.clear();
    for (size_t i = 0; i < stack.size(); i++) set(node->outputs()[i], {stack[i], sizes, opaque});
  }

  void loop(Node* node) {
    constexpr int64_t kMost = 10000;
    auto* body = node->blocks()[0];
    const auto most = decided(node->inputs()[0], "a loop").toInt();
    bool goes_on = decided(node->inputs()[1], "a loop").toBool();
    std::vector<Item> carried;
    for (size_t i = 2; i < node->inputs().size(); i++) carried.push_back(of(node->inputs()[i]));
    for (int64_t turn = 0; goes_on && turn < most; turn++) {
      if (turn == kMost) refuse("a loop of more than 10000 turns");
      set(body->inputs()[0], turn);
      for (size_t i = 0; i < carried.size(); i++) set(body->inputs()[i + 1], carried[i]);
      run(body);
      goes_on = decided(body->outputs()[0], "a loop").toBool();
      for (size_t i = 0; i < carried.size(); i++) carried[i] = of(body->outputs()[i + 1]);
    }
    for (size_t i = 0; i < carried.size(); i++) set(node->outputs()[i], carried[i]);
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

  int64_t read(int64_t now, bool* follows) {
    *follows = other_ && (seen_.size() >= other_->size() || (*other_)[seen_.size()] != now);
    seen_.push_back(now);
    return now;
  }

  // Sizes of tensors that follow the input.
  bool measure(Node* node, const std::vector<Item>& inputs) {
    const auto& name = node->getOperator().schema().name();
    const bool is_numel = name == "aten::numel";
    const bool is_size = name == "aten::size" || name == "aten::len" || is_numel;
    if (!is_size || !inputs[0].value.isTensor() || !is_made(inputs[0].value.toTensor())) return false;
    const auto tensor = inputs[0].value.toTensor();
    const auto id = number(made_.at(tensor.unsafeGetTensorImpl()));
    std::vector<std::string> sizes;
    bool any = false;
    for (int64_t i = 0; i < tensor.dim(); i++) {
      bool follows;
      read(tensor.size(i), &follows);
      any |= follows;
      sizes.push_back(follows ? tagged("size", "[" + id + "," + number(i) + "]") : "");
    }
    const auto one = [&](int64_t value, const std::string& size) {
      set(node->output(), {value, size.empty() ? std::vector<std::string>{} : std::vector{size}, ""});
    };
    if (is_numel) {
      std::string product = tagged("int", "1");
      for (int64_t i = 0; i < tensor.dim(); i++) {
        product = tagged("call", "[\"mul\",[" + product + "," + (sizes[i].empty() ? tagged("int", number(tensor.size(i))) : sizes[i]) + "]]");
      }
      one(tensor.numel(), any ? product : "");
    } else if (inputs.size() == 2) {
      const auto dim = c10::maybe_wrap_dim(inputs[1].value.toInt(), tensor.dim());
      one(tensor.size(dim), sizes[dim]);
    } else if (name == "aten::len") {
      one(tensor.size(0), sizes[0]);
    } else {
      set(node->output(), {c10::List<int64_t>(tensor.sizes()), any ? sizes : std::vector<std::string>{}, ""});
    }
    return true;
  }

  // Arithmetic on integers that follow sizes, and what is done with lists of them.
  bool count(Node* node, const std::vector<Item>& inputs) {
    static const std::unordered_map<std::string, const char*> kArithmetic = {
        {"aten::add", "add"}, {"aten::sub", "sub"}, {"aten::mul", "mul"}, {"aten::floordiv", "floordiv"},
        {"aten::remainder", "mod"}, {"aten::neg", "neg"}, {"prim::min", "min"}, {"prim::max", "max"}};
    const bool any = std::any_of(inputs.begin(), inputs.end(), [](const Item& item) { return !item.sizes.empty(); });
    const bool clear = std::all_of(inputs.begin(), inputs.end(), [](const Item& item) { return item.opaque.empty(); });
    if (!any || !clear) return false;
    const auto& name = node->getOperator().schema().name();
    const auto all = [&](auto&& test) { return std::all_of(inputs.begin(), inputs.end(), test); };
    const auto operation = kArithmetic.find(name);
    Item made;
    if (operation != kArithmetic.end() && all([](const Item& item) { return item.value.isInt(); })) {
      const auto operand = [](const Item& item) { return item.sizes.empty() ? tagged("int", number(item.value.toInt())) : item.sizes[0]; };
      made.sizes = {tagged("call", "[\"" + std::string(operation->second) + "\"," + joined(inputs, operand) + "]")};
    } else if (name == "aten::Int" || name == "prim::NumToTensor" || name == "aten::IntImplicit") {
      made.sizes = inputs[0].sizes;
    } else if (name == "aten::__getitem__" && inputs[0].value.isIntList() && inputs[1].sizes.empty()) {
      const auto& sizes = inputs[0].sizes;
      const auto size = sizes[c10::maybe_wrap_dim(inputs[1].value.toInt(), sizes.size())];
      if (!size.empty()) made.sizes = {size};
    } else if (name == "aten::slice" && inputs[0].value.isIntList() && inputs.size() == 4) {
      // The same slice of the sizes' places.
      c10::List<int64_t> places;
      for (size_t i = 0; i < inputs[0].sizes.size(); i++) places.push_back(i);
      Stack stack{places, inputs[1].value, inputs[2].value, inputs[3].value};
      node->getOperation()(stack);
      for (const int64_t place : stack[0].toIntVector()) made.sizes.push_back(inputs[0].sizes[place]);
    } else if (name == "aten::add" && inputs[0].value.isIntList()) {
      for (const auto& item : inputs) {
        for (size_t i = 0; i < item.value.toIntVector().size(); i++) made.sizes.push_back(item.sizes.empty() ? "" : item.sizes[i]);
      }
    } else if (name != "aten::len" || !inputs[0].value.isIntList()) {
      return false;
    }
    if (std::all_of(made.sizes.begin(), made.sizes.end(), [](const std::string& size) { return size.empty(); })) made.sizes.clear();
    Stack stack;
    for (const auto& input : inputs) stack.push_back(input.value);
    node->getOperation()(stack);
    made.value = stack[0];
    set(node->output(), made);
    return true;
  }

  // What is no call: constants, and properties of tensors that no sample changes.
  void run_plain(Node* node, const std::vector<Item>& inputs, Stack& stack, std::string& opaque) {
    static const std::set<std::string> kProperties = {
        "aten::dim", "prim::dtype", "prim::device", "prim::layout", "prim::is_cuda", "prim::requires_grad", "prim::is_sparse",
        "prim::is_quantized", "prim::is_nested", "aten::is_floating_point", "aten::is_complex", "aten::__is__", "aten::__isnot__"};
    const auto& schema = node->getOperator().schema();
    const bool is_generic = std::none_of(schema.arguments().begin(), schema.arguments().end(), [](const c10::Argument& one) {
      return is_tensor(one.type());
    });
    const auto follows = [&](const at::Tensor& tensor) { return is_made(tensor); };
    if (!is_generic && !kProperties.count(schema.name())) {
      for (const auto& input : inputs) {
        if (any_tensor(input.value, follows)) opaque = std::string("the values of its input by ") + schema.name();
      }
    }
    if (!opaque.empty() && schema.is_mutable()) refuse(schema.name() + " on " + opaque);
    if (node->isNondeterministic()) refuse(schema.name() + ", which draws random numbers");
    node->getOperation()(stack);
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

  void call(Node* node, const std::vector<Item>& inputs) {
    const auto& written = node->getOperator().schema();
    const auto name = written.name() + (written.overload_name().empty() ? "" : "." + written.overload_name());
    if (written.name().rfind("aten::", 0) != 0) refuse(name + ", which is no operator of ATen");
    const bool is_dropout = written.name().find("dropout") != std::string::npos;
    if (!is_dropout && node->isNondeterministic()) refuse(name + ", which draws random numbers");
    const auto& schema = *functional(written);
    if (&schema != &written) check_alone(inputs[0].value.toTensor(), name);
    std::string args;
    for (size_t i = 0; i < inputs.size(); i++) {
      const auto& formal = schema.arguments()[i];
      if (is_dropout && formal.name() == "train" && inputs[i].value.toBool()) refuse(name + " in training");
      if (i > 0) args += ",";
      args += "{\"name\":" + json_text(formal.name()) + ",\"value\":" + argument(inputs[i], formal, name) + ",\"is_keyword\":" +
          (formal.kwarg_only() ? "true" : "false") + "}";
    }
    Stack stack = this->stack(node);
    node->getOperation()(stack);
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
      set(node->outputs()[i], stack[i]);
    }
    if (is_list && stack.size() != 1) refuse(name + ", which answers several lists");
    if (!nodes_.empty()) nodes_ += ",";
    nodes_ += "{\"path\":" + json_text(path_) + ",\"op\":" + json_text(schema.name().substr(6)) + ",\"overload\":" + json_text(schema.overload_name()) + ",\"args\":[" + args +
        "],\"outputs\":" + joined(outputs, [](int64_t id) { return number(id); }) + ",\"is_list\":" + (is_list ? "true" : "false") + "}";
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

  const std::vector<int64_t>* other_;
  std::vector<int64_t> seen_;
  std::unordered_map<const Value*, Item> items_;
  std::unordered_map<const c10::TensorImpl*, std::string> weights_;
  std::unordered_map<const c10::ivalue::Object*, std::string> paths_;
  // Of the module whose method runs.
  std::string path_;
  std::unordered_map<const c10::TensorImpl*, int64_t> made_;
  // Keeps addresses from being taken again.
  std::vector<at::Tensor> kept_;
  std::vector<at::Tensor> constants_;
  int64_t count_ = 0;
  std::string nodes_, values_;
};

}  // namespace

extern "C" {

// The calls that `module`, in evaluation mode, makes of `xs`, as JSON: see src/pytorch/export/flat.rs. `other` is a
// sample whose sizes differ wherever they may. `constant` gets the tensors that the state_dict lacks, in their order;
// they are the receiver's to free.
char* tikhonov_script_flat(
    const Module* module, const at::Tensor* xs, const at::Tensor* other, void* context,
    void (*take)(void*, const void*, size_t), void (*constant)(void*, at::Tensor*)) {
  return guarded([&] {
    const at::NoGradGuard untracked;
    Tracer first(*module, nullptr);
    first.run(*module, *other);
    Tracer tracer(*module, &first.seen());
    const auto json = tracer.run(*module, *xs);
    take(context, json.data(), json.size());
    for (const auto& tensor : tracer.constants()) constant(context, new at::Tensor(tensor));
  });
}

}  // extern "C"
