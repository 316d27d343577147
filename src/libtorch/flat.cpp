// The ATen calls that a TorchScript module makes of a sample. The interpreter here runs the program and knows of each
// value whether it follows the input: calls on such tensors and on weights are noted, everything else is computed
// away. Errors as in shim.cpp.

#include <torch/csrc/jit/ir/constants.h>
#include <set>

#include "flat.h"
#include "guarded.h"

namespace {

using torch::jit::Block;
using torch::jit::Value;
namespace attr = c10::attr;
namespace prim = c10::prim;

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

class Tracer : public Calls {
 public:
  // `other` has the integers that a run on a sample of another size has seen.
  Tracer(const Module& module, const std::vector<int64_t>* other) : Calls(module), other_(other) {
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
        if (is_call(node->getOperator().schema(), stack)) {
          const auto answers = note(node, inputs, path_);
          for (size_t i = 0; i < answers.size(); i++) set(node->outputs()[i], answers[i]);
          return;
        }
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
      perform(node, stack);
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
    perform(node, stack);
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
    perform(node, stack);
  }

  const std::vector<int64_t>* other_;
  std::vector<int64_t> seen_;
  std::unordered_map<const Value*, Item> items_;
  std::unordered_map<const c10::ivalue::Object*, std::string> paths_;
  // Of the module whose method runs.
  std::string path_;
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
