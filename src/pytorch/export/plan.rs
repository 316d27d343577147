//! A network as PyTorch sees it: modules by the dotted segments of the parameter names, and what each
//! computes.
//!
//! The tree of a model has more nodes than names: silent sequences, composites and layers without tensors
//! belong to the module around them.

use crate::nn::layers::{Param, ParamKind, Upsample};
use crate::nn::model::{Join, Node, Op, join};

/// What Python has under one prefix of the parameter names.
#[derive(Debug)]
pub struct Module<'a> {
    /// The last segment of the path; empty at the root.
    pub name: String,
    pub path: String,
    /// The node that is called so first.
    pub node: &'a Node,
    /// The layer whose tensors are the module's own.
    pub own: Option<&'a Node>,
    /// The layers that are bare parameters of the module.
    pub parameters: Vec<&'a Node>,
    pub children: Vec<Module<'a>>,
    /// `forward`; others where the tree enters one module at several places.
    pub methods: Vec<Vec<Step<'a>>>,
    /// Whether the modules of auxiliary heads are wanted.
    heads: bool,
}

/// What happens to `x`.
#[derive(Debug)]
pub enum Step<'a> {
    /// A layer whose tensors are the module's own.
    Own(&'a Node),
    /// A layer without tensors.
    Plain(&'a Node),
    /// A method of the child with this index.
    Call { child: usize, method: usize },
    /// The layers and the shortcut, or `x`.
    Join { join: Join, layers: Vec<Step<'a>>, shortcut: Option<Vec<Step<'a>>> },
    /// All on the same `x`, joined along the channels.
    Concat(Vec<Vec<Step<'a>>>),
    /// The output of `layers`, resized to the height and width of `x`.
    Like { layers: Vec<Step<'a>>, upsample: &'a Upsample },
}

impl<'a> Module<'a> {
    /// `heads`: whether the modules of auxiliary heads are there too; no forward calls them.
    pub fn of(root: &'a Node, heads: bool) -> Self {
        let mut module = Self::new(root, heads);
        let forward = module.inside(root);
        module.methods.push(forward);
        module
    }

    fn new(node: &'a Node, heads: bool) -> Self {
        let name = node.path.rsplit('.').next().unwrap_or_default().to_owned();
        Self {
            name,
            path: node.path.clone(),
            node,
            own: None,
            parameters: Vec::new(),
            children: Vec::new(),
            methods: Vec::new(),
            heads,
        }
    }

    /// The tensors of the module itself, by their own names.
    pub fn tensors(&self) -> Vec<Param> {
        let layers = self.own.iter().chain(&self.parameters);
        let mut tensors: Vec<Param> = layers
            .flat_map(|node| match &node.op {
                Op::Layer(spec) => spec.layer().params(&node.input),
                _ => Vec::new(),
            })
            .collect();
        tensors.sort_by_key(|param| param.kind == ParamKind::Buffer);
        tensors
    }

    fn steps(&mut self, node: &'a Node) -> Vec<Step<'a>> {
        match node.op {
            Op::Auxiliary(_) if !self.heads => Vec::new(),
            Op::Auxiliary(_) => {
                self.entered(node);
                Vec::new()
            }
            _ => self.entered(node),
        }
    }

    fn entered(&mut self, node: &'a Node) -> Vec<Step<'a>> {
        if node.path == self.path {
            return self.inside(node);
        }
        if matches!(node.op, Op::Layer(_)) && node.params().is_empty() {
            return vec![Step::Plain(node)];
        }
        let known = self.children.iter().position(|child| child.path == node.path);
        let child = known.unwrap_or_else(|| {
            self.children.push(Self::new(node, self.heads));
            self.children.len() - 1
        });
        let module = &mut self.children[child];
        let steps = module.inside(node);
        module.methods.push(steps);
        vec![Step::Call { child, method: module.methods.len() - 1 }]
    }

    fn inside(&mut self, node: &'a Node) -> Vec<Step<'a>> {
        match &node.op {
            // Written as it is, without a plan.
            Op::Script(_) => Vec::new(),
            Op::Layer(_) if node.params().is_empty() => vec![Step::Plain(node)],
            Op::Layer(_) => {
                if node.is_bare_parameter() {
                    self.parameters.push(node);
                } else {
                    self.own = Some(node);
                }
                vec![Step::Own(node)]
            }
            Op::Sequential => node.children.iter().flat_map(|child| self.steps(child)).collect(),
            Op::Join(join) => {
                let mut branches = node.children.iter().map(|branch| self.steps(branch));
                let layers = branches.next().unwrap_or_default();
                vec![Step::Join { join: *join, layers, shortcut: branches.next() }]
            }
            Op::Concat => vec![Step::Concat(node.children.iter().map(|branch| self.steps(branch)).collect())],
            // Inside its own module, which is called from nowhere.
            Op::Auxiliary(_) => node.children.iter().flat_map(|child| self.steps(child)).collect(),
            Op::Like(upsample) => {
                let layers = node.children.iter().flat_map(|child| self.steps(child)).collect();
                vec![Step::Like { layers, upsample }]
            }
        }
    }

    /// The places of its children in an `nn.Sequential`, where it is one: numbered from 0 and called in turn.
    pub fn slots(&self) -> Option<Vec<Slot<'a, '_>>> {
        let [forward] = self.methods.as_slice() else { return None };
        if self.own.is_some() || forward.is_empty() {
            return None;
        }
        let slot = |(index, step): (usize, &Step<'a>)| match step {
            Step::Call { child, method: 0 } => {
                let module = &self.children[*child];
                (module.methods.len() == 1 && module.name == index.to_string())
                    .then_some(Slot::Module(module))
            }
            Step::Plain(node) => {
                (node.path == join(&self.path, &index.to_string())).then_some(Slot::Plain(node))
            }
            _ => None,
        };
        forward.iter().enumerate().map(slot).collect()
    }
}

/// One place of an `nn.Sequential`.
#[derive(Clone, Copy, Debug)]
pub enum Slot<'a, 'm> {
    Module(&'m Module<'a>),
    Plain(&'a Node),
}

/// How one language says the steps.
pub trait Words {
    /// The lines for a layer whose tensors are the module's own.
    fn own(&mut self, node: &Node) -> String;
    /// The lines for a layer without tensors.
    fn plain(&mut self, node: &Node) -> String;
    /// The lines for a child's method.
    fn call(&mut self, child: &Module, method: &str) -> String;
    /// The line that brings `x` to the height and width that the variable `size` holds.
    fn resize(&mut self, upsample: &Upsample, size: &str) -> String;
}

/// Lines that turn `x` into the answer of `steps`.
pub fn lines(module: &Module, steps: &[Step], words: &mut impl Words) -> Vec<String> {
    let mut lines = Vec::new();
    write(module, steps, words, &mut 0, &mut lines);
    lines
}

fn write(module: &Module, steps: &[Step], words: &mut impl Words, names: &mut usize, into: &mut Vec<String>) {
    let add = |text: String, into: &mut Vec<String>| into.extend(text.lines().map(str::to_owned));
    let number = |names: &mut usize| {
        *names += 1;
        if *names == 1 { String::new() } else { names.to_string() }
    };
    for step in steps {
        match step {
            Step::Own(node) => add(words.own(node), into),
            Step::Plain(node) => add(words.plain(node), into),
            Step::Call { child, method } => {
                add(words.call(&module.children[*child], &method_name(*method)), into);
            }
            Step::Join { join, layers, shortcut } => {
                let n = number(names);
                into.push(format!("skip{n} = x"));
                write(module, layers, words, names, into);
                if let Some(shortcut) = shortcut {
                    into.push(format!("y{n} = x"));
                    into.push(format!("x = skip{n}"));
                    write(module, shortcut, words, names, into);
                    into.push(format!("x = {}", join.python(&format!("y{n}"), "x")));
                } else {
                    into.push(format!("x = {}", join.python("x", &format!("skip{n}"))));
                }
            }
            Step::Like { layers, upsample } => {
                let size = format!("size{}", number(names));
                into.push(format!("{size} = [x.size(2), x.size(3)]"));
                write(module, layers, words, names, into);
                add(words.resize(upsample, &size), into);
            }
            Step::Concat(branches) => {
                let n = number(names);
                into.push(format!("whole{n} = x"));
                let mut parts = Vec::new();
                for (index, branch) in branches.iter().enumerate() {
                    let part = format!("part{n}_{index}");
                    write(module, branch, words, names, into);
                    into.push(format!("{part} = x"));
                    if index + 1 < branches.len() {
                        into.push(format!("x = whole{n}"));
                    }
                    parts.push(part);
                }
                into.push(format!("x = torch.cat([{}], 1)", parts.join(", ")));
            }
        }
    }
}

/// `forward`, `forward_2`, …
pub fn method_name(index: usize) -> String {
    if index == 0 { "forward".into() } else { format!("forward_{}", index + 1) }
}

/// `self.conv1`, or `getattr(self, "0")` where the name is none of Python's.
pub fn attribute(name: &str) -> String {
    if is_plain(name) { format!("self.{name}") } else { format!("getattr(self, \"{name}\")") }
}

/// Whether `name` can be an attribute as it is written. Python changes names that start with `__` in a class.
pub fn is_plain(name: &str) -> bool {
    let is_other = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let starts_otherwise = name.starts_with(|c: char| c.is_ascii_digit()) || name.starts_with("__");
    !starts_otherwise && !name.contains(is_other) && !is_keyword(name)
}

/// Whether `name` is a word of Python.
pub fn is_keyword(name: &str) -> bool {
    KEYWORDS.contains(&name)
}

const KEYWORDS: [&str; 36] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def",
    "del", "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is",
    "lambda", "nonlocal", "not", "or", "pass", "print", "raise", "return", "try", "while", "with", "yield",
];
