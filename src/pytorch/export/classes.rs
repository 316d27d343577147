//! Finds the classes of a network's Python source: modules of one structure share a class, whose arguments
//! are the values in which they differ.

use std::collections::HashSet;

use super::camel_case;
use super::plan::{self, Module, Slot, Words, attribute, is_plain, method_name};
use crate::nn::layers::{Arg, TorchModule, Upsample};
use crate::nn::model::{Node, Op};

/// An expression that makes a module.
#[derive(Clone, Debug)]
pub enum Part {
    Twin(TorchModule),
    Sequential(Vec<Part>),
    /// Of the class with this number: the values of all constructors inside, to be seen in order.
    Class {
        class: usize,
        values: Vec<Arg>,
    },
}

/// A class that the source declares.
#[derive(Debug)]
pub struct Class {
    pub name: String,
    /// The layer that it inherits from where it has tensors of its own.
    pub base: Option<Part>,
    /// Attributes in order: name, and what makes it in the first instance.
    pub members: Vec<(String, Part)>,
    /// Name and lines of each method.
    pub methods: Vec<(String, Vec<String>)>,
    /// The values of each instance, each as long as the constructors inside together have arguments.
    pub instances: Vec<Vec<Arg>>,
    /// Of each value: the argument of the class that it comes from, if any.
    pub slots: Vec<Option<usize>>,
    /// Names of the arguments, and the value of each.
    pub params: Vec<(String, usize)>,
    signature: String,
}

/// The classes of a network, inner ones first; the last is the network itself.
pub struct Classes {
    pub all: Vec<Class>,
    names: HashSet<String>,
}

/// What a module of PyTorch has already.
const RESERVED: &[&str] = &[
    "_apply",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_buffers",
    "_call_impl",
    "_compiled_call_impl",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_get_backward_hooks",
    "_get_backward_pre_hooks",
    "_get_name",
    "_is_full_backward_hook",
    "_load_from_state_dict",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_maybe_warn_non_full_backward_hook",
    "_modules",
    "_named_members",
    "_non_persistent_buffers_set",
    "_parameters",
    "_register_load_state_dict_pre_hook",
    "_register_state_dict_hook",
    "_replicate_for_data_parallel",
    "_save_to_state_dict",
    "_slow_forward",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_version",
    "_wrapped_call_impl",
    "T_destination",
    "add_module",
    "apply",
    "bfloat16",
    "buffers",
    "call_super_init",
    "children",
    "compile",
    "cpu",
    "cuda",
    "double",
    "dump_patches",
    "eval",
    "extra_repr",
    "float",
    "forward",
    "get_buffer",
    "get_extra_state",
    "get_parameter",
    "get_submodule",
    "half",
    "ipu",
    "load_state_dict",
    "modules",
    "mtia",
    "named_buffers",
    "named_children",
    "named_modules",
    "named_parameters",
    "parameters",
    "register_backward_hook",
    "register_buffer",
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook",
    "register_module",
    "register_parameter",
    "register_state_dict_post_hook",
    "register_state_dict_pre_hook",
    "requires_grad_",
    "set_extra_state",
    "set_submodule",
    "share_memory",
    "state_dict",
    "to",
    "to_empty",
    "train",
    "training",
    "type",
    "xpu",
    "zero_grad",
];

impl Classes {
    /// The error is the path of a layer whose name no module can have.
    pub fn of(root: &Module) -> Result<Self, String> {
        let names = ["F", "False", "Net", "None", "True"].map(str::to_owned);
        let mut classes = Self { all: Vec::new(), names: HashSet::from(names) };
        let twins = root.node.leaves().into_iter().map(twin);
        let defined = twins.filter(|twin| twin.definition.is_some());
        classes.names.extend(defined.map(|twin| twin.class.to_owned()));
        classes.class(root, "Net")?;
        classes.all.iter_mut().for_each(Class::find_params);
        Ok(classes)
    }

    /// The part that makes `module`; `parent` names it where it has no name of its own.
    fn part(&mut self, module: &Module, parent: &str) -> Result<Part, String> {
        if let (Some(node), [steps], []) = (module.own, module.methods.as_slice(), module.children.as_slice())
            && module.parameters.is_empty()
            && let [plan::Step::Own(_)] = steps.as_slice()
        {
            return Ok(Part::Twin(twin(node)));
        }
        if let Some(parts) = self.sequence(module, parent)? {
            return Ok(Part::Sequential(parts));
        }
        let class = self.class(module, parent)?;
        let values = self.all[class].instances.last().cloned().unwrap_or_default();
        Ok(Part::Class { class, values })
    }

    fn sequence(&mut self, module: &Module, parent: &str) -> Result<Option<Vec<Part>>, String> {
        let Some(slots) = module.slots() else { return Ok(None) };
        let parent = called(module, parent);
        let part = |slot: &Slot| match slot {
            Slot::Module(module) => self.part(module, &parent),
            Slot::Plain(node) => Ok(Part::Twin(twin(node))),
        };
        slots.iter().map(part).collect::<Result<_, _>>().map(Some)
    }

    fn class(&mut self, module: &Module, parent: &str) -> Result<usize, String> {
        let name = called(module, parent);
        let mut members = Vec::new();
        let is_root = module.path.is_empty();
        let sequence = if is_root { self.sequence(module, parent)? } else { None };
        let is_sequence = sequence.is_some();
        let base = match sequence {
            Some(parts) => Some(Part::Sequential(parts)),
            None => module.own.map(|node| Part::Twin(twin(node))),
        };
        let mut methods = Vec::new();
        if !is_sequence {
            for node in &module.parameters {
                for param in node.params() {
                    let name = param.name.rsplit('.').next().unwrap_or_default().to_owned();
                    if RESERVED.contains(&name.as_str()) || !is_plain(&name) {
                        return Err(param.name);
                    }
                    members.push((name, Part::Twin(twin(node))));
                }
            }
            for child in &module.children {
                if RESERVED.contains(&child.name.as_str()) && is_plain(&child.name) {
                    return Err(child.path.clone());
                }
                members.push((child.name.clone(), self.part(child, &name)?));
            }
            for (index, steps) in module.methods.iter().enumerate() {
                let mut words = Python { module, members: &mut members };
                let lines = plan::lines(module, steps, &mut words);
                methods.push((method_name(index), lines));
            }
        }
        let mut values = Vec::new();
        let mut signature = base.as_ref().map_or_else(String::new, |base| signature(base, &mut values));
        for (name, part) in &members {
            signature += &format!(";{name}={}", self::signature(part, &mut values));
        }
        signature += &format!("{methods:?}");
        if is_root {
            signature = "Net".into();
        }
        if let Some(known) = self.all.iter().position(|class| class.signature == signature) {
            self.all[known].instances.push(values);
            return Ok(known);
        }
        let name = if is_root { "Net".into() } else { self.fresh(&name) };
        self.all.push(Class {
            name,
            base,
            members,
            methods,
            instances: vec![values],
            slots: Vec::new(),
            params: Vec::new(),
            signature,
        });
        Ok(self.all.len() - 1)
    }

    fn fresh(&mut self, name: &str) -> String {
        let mut unique = name.to_owned();
        let mut number = 1;
        while !self.names.insert(unique.clone()) {
            number += 1;
            unique = format!("{name}{number}");
        }
        unique
    }
}

impl Class {
    /// Values that differ between instances become arguments; those that always go together become one.
    fn find_params(&mut self) {
        let count = self.instances.first().map_or(0, Vec::len);
        let column = |index: usize| -> Vec<&str> {
            self.instances.iter().map(|values| values[index].value.as_str()).collect()
        };
        let mut params: Vec<(String, usize)> = Vec::new();
        let mut slots = Vec::with_capacity(count);
        for index in 0..count {
            let values = column(index);
            let is_constant = values.iter().all(|value| *value == values[0]);
            let known = params.iter().position(|(_, first)| column(*first) == values);
            slots.push((!is_constant).then(|| known.unwrap_or(params.len())));
            if !is_constant && known.is_none() {
                params.push((String::new(), index));
            }
        }
        for at in 0..params.len() {
            let mut names: Vec<&str> = Vec::new();
            for (index, slot) in slots.iter().enumerate() {
                if *slot == Some(at) {
                    names.push(self.instances[0][index].name);
                }
            }
            let both = ["in_channels", "out_channels"].iter().all(|name| names.contains(name));
            let name = if both { "channels" } else { names[0] };
            let taken = |name: &str| params.iter().any(|(known, _)| known == name);
            let mut unique = name.to_owned();
            let mut number = 1;
            while taken(&unique) {
                number += 1;
                unique = format!("{name}_{number}");
            }
            params[at].0 = unique;
        }
        (self.params, self.slots) = (params, slots);
    }
}

/// The structure of a part; its values go to `values`.
fn signature(part: &Part, values: &mut Vec<Arg>) -> String {
    match part {
        Part::Twin(twin) => {
            values.extend(twin.args.iter().cloned());
            twin.expression("")
        }
        Part::Sequential(parts) => {
            let inner: Vec<_> = parts.iter().map(|part| signature(part, values)).collect();
            format!("[{}]", inner.join(","))
        }
        Part::Class { class, values: own } => {
            values.extend(own.iter().cloned());
            format!("#{class}")
        }
    }
}

fn twin(node: &Node) -> TorchModule {
    match &node.op {
        Op::Layer(spec) => spec.layer().torch_module(&node.input),
        _ => TorchModule::new("nn.Identity"),
    }
}

/// A name for the class of a module: the block of the model file that it comes from, else its own name.
fn called(module: &Module, parent: &str) -> String {
    let block = |node: &Node| {
        let rest = node.children.first()?.source.strip_prefix("blocks.")?;
        let block = rest.split('.').next()?;
        (!node.source.starts_with(&format!("blocks.{block}."))).then(|| camel_case(block))
    };
    let own = camel_case(&module.name);
    block(module.node).unwrap_or_else(|| match own.starts_with(|c: char| !c.is_ascii_digit()) {
        true => own,
        false => format!("{parent}Block"),
    })
}

/// Says the steps with attributes that are modules; layers without tensors become attributes as they come.
struct Python<'a> {
    module: &'a Module<'a>,
    members: &'a mut Vec<(String, Part)>,
}

impl Words for Python<'_> {
    fn own(&mut self, node: &Node) -> String {
        match &node.op {
            Op::Layer(spec) if node.is_bare_parameter() => spec.layer().torchscript(&node.input),
            _ => format!("x = {}.forward(self, x)", twin(node).class),
        }
    }

    fn plain(&mut self, node: &Node) -> String {
        let twin = twin(node);
        if twin.class == "nn.Identity" {
            return String::new();
        }
        // `_relu` and `relu` as they are called, numbers by what they are.
        let label = node.label.trim_start_matches('_').replace('-', "_");
        let wanted = match &node.op {
            Op::Layer(spec) if !label.starts_with(|first: char| first.is_ascii_alphabetic()) => spec.kind(),
            _ => label.as_str(),
        };
        let is_taken = |name: &str| {
            let tensors = self.module.tensors();
            !is_plain(name) || RESERVED.contains(&name) || tensors.iter().any(|param| param.name == name)
        };
        let mut name = wanted.to_owned();
        let mut number = 1;
        loop {
            let known = self.members.iter().find(|(known, _)| *known == name);
            match known {
                Some((_, Part::Twin(same))) if *same == twin => break,
                None if !is_taken(&name) => {
                    self.members.push((name.clone(), Part::Twin(twin)));
                    break;
                }
                _ => {
                    number += 1;
                    name = format!("{wanted}{number}");
                }
            }
        }
        format!("x = self.{name}(x)")
    }

    fn call(&mut self, child: &Module, method: &str) -> String {
        let place = attribute(&child.name);
        if method == "forward" { format!("x = {place}(x)") } else { format!("x = {place}.{method}(x)") }
    }

    fn resize(&mut self, upsample: &Upsample, size: &str) -> String {
        upsample.python_to(size)
    }
}
