//! Python source of layers: the PyTorch module of each, and values in Python's syntax.

use super::args::Pair;

/// The PyTorch module of a layer: `nn.Conv2d(3, 16, 3, padding=1)`.
#[derive(Clone, Debug, PartialEq)]
pub struct TorchModule {
    /// `nn.Conv2d`, or a class of our own.
    pub class: &'static str,
    /// The function that the module goes through, and its further arguments: `nn.Parameter`, as in
    /// `nn.Parameter(torch.full((16, 1, 1), 1e-06))`.
    pub within: Option<(&'static str, String)>,
    pub args: Vec<Arg>,
    /// The source of a class that torch.nn lacks.
    pub definition: Option<&'static str>,
}

/// One argument of a constructor in Python's syntax.
#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    pub name: &'static str,
    pub value: String,
    /// None for one that is given by its position.
    pub default: Option<String>,
}

impl TorchModule {
    pub fn new(class: &'static str) -> Self {
        Self { class, within: None, args: Vec::new(), definition: None }
    }

    /// A class of our own, in full.
    pub fn defined(class: &'static str, definition: &'static str) -> Self {
        Self { definition: Some(definition), ..Self::new(class) }
    }

    /// The same, as the first argument of `function`; `rest` are the others: `, dim=1`.
    pub fn within(mut self, function: &'static str, rest: impl Into<String>) -> Self {
        self.within = Some((function, rest.into()));
        self
    }

    /// `class(args)`, with the function around it where there is one.
    pub fn expression(&self, args: &str) -> String {
        match &self.within {
            Some((function, rest)) => format!("{function}({}({args}){rest})", self.class),
            None => format!("{}({args})", self.class),
        }
    }

    /// An argument given by position: those without a default come first.
    pub fn with(mut self, name: &'static str, value: impl Literal) -> Self {
        self.args.push(Arg { name, value: value.literal(), default: None });
        self
    }

    /// An argument given by name, and only where it is not PyTorch's default.
    pub fn or<T: Literal>(mut self, name: &'static str, value: T, default: T) -> Self {
        self.args.push(Arg { name, value: value.literal(), default: Some(default.literal()) });
        self
    }
}

/// A value in Python's syntax.
pub trait Literal {
    fn literal(&self) -> String;
}

impl Literal for i64 {
    fn literal(&self) -> String {
        self.to_string()
    }
}

impl Literal for f64 {
    fn literal(&self) -> String {
        format!("{self:?}")
    }
}

impl Literal for bool {
    fn literal(&self) -> String {
        if *self { "True".into() } else { "False".into() }
    }
}

impl Literal for &str {
    fn literal(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Literal for &[i64] {
    fn literal(&self) -> String {
        format!("{self:?}")
    }
}

impl<T: Literal + PartialEq> Literal for Pair<T> {
    fn literal(&self) -> String {
        let [height, width] = &self.0;
        match height == width {
            true => height.literal(),
            false => format!("({}, {})", height.literal(), width.literal()),
        }
    }
}

impl<T: Literal> Literal for Option<T> {
    fn literal(&self) -> String {
        self.as_ref().map_or_else(|| "None".into(), Literal::literal)
    }
}

/// `self.bias`, or `None` for a layer without.
pub fn tensor(name: &str, is_there: bool) -> String {
    if is_there { format!("self.{name}") } else { "None".into() }
}
