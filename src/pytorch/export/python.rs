//! A network as Python source: `nn.Module` classes whose `state_dict()` has the names of our weights.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::classes::{Class, Classes, Part};
use super::plan::{Module, is_plain};
use super::{About, ExportOptions, Exporter, TrainedNetwork};
use crate::nn::layers::{Arg, TorchModule};
use crate::nn::model::{Model, Op};
use crate::util::atomic_file;
use crate::util::exit_code::{ExitCode, fail};

/// Columns of the source.
const WIDTH: usize = 100;
/// Layers that repeat more often than this become a loop.
const FEW: usize = 2;

/// `--to python`.
pub struct Python;

impl Exporter for Python {
    fn extension(&self) -> &'static str {
        "py"
    }

    fn help(&self) -> &'static str {
        "nn.Module source that loads the weights with strict=True"
    }

    fn options(&self) -> &'static [&'static str] {
        &[]
    }

    fn refusal(&self, option: &str) -> Option<&'static str> {
        let is_dtype = ["--half", "--bf16"].contains(&option);
        is_dtype.then_some(
            "source code has no dtype: leave --half and --bf16 out, and write Net().half() in Python",
        )
    }

    /// A name that can be imported.
    fn default_file(&self, name: &str) -> PathBuf {
        let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        PathBuf::from(name.chars().map(word).collect::<String>()).with_extension(self.extension())
    }

    fn write(&self, from: &TrainedNetwork, _options: &ExportOptions, path: &Path) -> Result<String> {
        write(path, &from.model, &from.name, &from.remarks(), &from.about)?;
        Ok("source of class Net".into())
    }

    /// It holds no weights.
    fn notes(&self, from: &TrainedNetwork, _options: &ExportOptions) -> Vec<String> {
        from.target_note().into_iter().collect()
    }
}

/// Writes the source of `model` to `path`. `title` and `notes` are for its docstring, `about` becomes
/// constants of the file. Exit 2 where a layer has a name that no
/// PyTorch module can have.
pub fn write(path: &Path, model: &Model, title: &str, notes: &[String], about: &About) -> Result<()> {
    let module = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("net");
    let text = source(model, module, title, notes, about)?;
    atomic_file::write_bytes(path, text.as_bytes())
}

/// The source; it says of itself that it can be imported as `module`.
pub fn source(model: &Model, module: &str, title: &str, notes: &[String], about: &About) -> Result<String> {
    if let Op::Script(script) = &model.root().op {
        let message = format!(
            "this network is the program {}, which has a source already: its author's. Export the weights, or --to torchscript",
            script.file
        );
        return Err(fail(ExitCode::Usage, message));
    }
    let root = Module::of(model.root(), true);
    let classes = Classes::of(&root).map_err(|path| {
        let message = format!(
            "`{path}` cannot be written in Python: nn.Module has that name already; rename the layer"
        );
        fail(ExitCode::Usage, message)
    })?;
    let mut text = head(model, module, title, notes);
    let mut definitions: Vec<&str> = Vec::new();
    for leaf in model.root().leaves() {
        let Op::Layer(spec) = &leaf.op else { continue };
        let definition = spec.layer().torch_module(&leaf.input).definition;
        definitions.extend(definition.filter(|definition| !definitions.contains(definition)));
    }
    let bodies: Vec<String> = classes.all.iter().map(|class| declaration(class, &classes.all)).collect();
    let uses =
        |what: &str| definitions.iter().any(|d| d.contains(what)) || bodies.iter().any(|b| b.contains(what));
    if uses("torch.") {
        text += "import torch\n";
    }
    if uses("F.") {
        text += "import torch.nn.functional as F\n";
    }
    text += "from torch import nn\n";
    let layers = model.root().leaves().into_iter().filter_map(|leaf| match &leaf.op {
        Op::Layer(spec) => spec.layer().torch_module(&leaf.input).within,
        _ => None,
    });
    let functions: BTreeSet<_> =
        layers.map(|(function, _)| function).filter(|name| !name.starts_with("nn.")).collect();
    if !functions.is_empty() {
        let names: Vec<_> = functions.into_iter().collect();
        text += &format!("from torch.nn.utils.parametrizations import {}\n", names.join(", "));
    }
    for (index, (name, fact)) in about.facts().into_iter().enumerate() {
        // JSON's lists of texts and numbers are Python's.
        let start = if index == 0 { "\n" } else { "" };
        text += &format!("{start}{} = {}\n", name.to_uppercase(), fact.json());
    }
    for part in definitions.into_iter().map(str::to_owned).chain(bodies) {
        text += &format!("\n\n{part}");
    }
    Ok(text)
}

fn head(model: &Model, module: &str, title: &str, notes: &[String]) -> String {
    let is_word = module.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && is_plain(module);
    let import = match is_word && !module.is_empty() {
        true => format!("from {module} import Net"),
        false => "from net import Net  # once this file is called net.py".to_owned(),
    };
    let mut text = format!(
        "\"\"\"{}: {:?} to {:?}, for each sample of a batch. Written by tikhonov {}.\n\n    \
         from safetensors.torch import load_file\n    {import}\n\n    net = Net()\n    \
         net.load_state_dict(load_file(\"model.safetensors\"), strict=True)\n    net.eval()\n",
        title.replace(['"', '\\'], "'"),
        model.input(),
        model.output(),
        env!("CARGO_PKG_VERSION"),
    );
    if !notes.is_empty() {
        text.push('\n');
    }
    for note in notes {
        text += &format!("{}\n", note.replace(['"', '\\'], "'"));
    }
    text + "\"\"\"\n\n"
}

fn declaration(class: &Class, all: &[Class]) -> String {
    let mut values = Values { class, all, next: 0 };
    let base = match &class.base {
        Some(Part::Twin(twin)) => twin.class,
        Some(Part::Sequential(_)) => "nn.Sequential",
        _ => "nn.Module",
    };
    let params: Vec<_> = class.params.iter().map(|(name, _)| format!(", {name}")).collect();
    let mut text = format!("class {}({base}):\n    def __init__(self{}):\n", class.name, params.concat());
    let start = match &class.base {
        Some(Part::Twin(twin)) => {
            let own = Part::Twin(TorchModule { within: None, ..twin.clone() });
            let mut lines = replace_call(&values.lines(&own, 8), "super().__init__");
            lines.extend(twin.within.as_ref().map(|(function, rest)| format!("{function}(self{rest})")));
            lines
        }
        Some(part) => replace_call(&values.lines(part, 8), "super().__init__"),
        None => vec!["super().__init__()".to_owned()],
    };
    push(&mut text, 8, &start);
    for (name, part) in &class.members {
        let mut lines = values.lines(part, 16);
        let assigned = match is_plain(name) {
            true => format!("self.{name} = {}", lines[0]),
            false => format!("self.add_module(\"{name}\", {}", lines[0]),
        };
        lines[0] = assigned;
        if let (false, Some(last)) = (is_plain(name), lines.last_mut()) {
            last.push(')');
        }
        push(&mut text, 8, &lines);
    }
    for (name, lines) in &class.methods {
        text += &format!("\n    def {name}(self, x):\n");
        push(&mut text, 8, lines);
        text += "        return x\n";
    }
    text
}

fn push(text: &mut String, indent: usize, lines: &[String]) {
    for line in lines {
        *text += &format!("{:indent$}{line}\n", "");
    }
}

/// `nn.Conv2d(…)` as `super().__init__(…)`.
fn replace_call(lines: &[String], callee: &str) -> Vec<String> {
    let mut lines = lines.to_vec();
    if let Some((_, rest)) = lines[0].split_once('(') {
        lines[0] = format!("{callee}({rest}");
    }
    lines
}

/// Walks the parts of a class in the order of its values.
struct Values<'a> {
    class: &'a Class,
    all: &'a [Class],
    next: usize,
}

impl Values<'_> {
    /// The value at `index`: an argument of the class, or what the first instance has.
    fn value(&self, index: usize, arg: &Arg) -> (String, bool) {
        match self.class.slots.get(index).copied().flatten() {
            Some(param) => (self.class.params[param].0.clone(), true),
            None => (arg.value.clone(), false),
        }
    }

    /// The lines of an expression that starts at column `indent`.
    fn lines(&mut self, part: &Part, indent: usize) -> Vec<String> {
        match part {
            Part::Twin(twin) => vec![self.twin(twin)],
            Part::Class { class, values } => {
                let start = self.next;
                self.next += values.len();
                let class = &self.all[*class];
                let args: Vec<_> = class
                    .params
                    .iter()
                    .map(|(_, index)| self.value(start + index, &values[*index]).0)
                    .collect();
                vec![format!("{}({})", class.name, args.join(", "))]
            }
            Part::Sequential(parts) => {
                let items: Vec<_> = parts.iter().map(|part| self.lines(part, indent + 4)).collect();
                let items = loops(items);
                let is_short = items.iter().all(|item| item.len() == 1);
                let flat: Vec<_> = items.iter().map(|item| item.concat()).collect();
                let line = format!("nn.Sequential({})", flat.join(", "));
                if is_short && indent + line.len() <= WIDTH {
                    return vec![line];
                }
                let mut lines = vec!["nn.Sequential(".to_owned()];
                for item in items {
                    let last = item.len() - 1;
                    for (index, line) in item.iter().enumerate() {
                        lines.push(format!("    {line}{}", if index == last { "," } else { "" }));
                    }
                }
                lines.push(")".into());
                lines
            }
        }
    }

    fn twin(&mut self, twin: &TorchModule) -> String {
        let mut args = Vec::new();
        for arg in &twin.args {
            let (value, is_param) = self.value(self.next, arg);
            self.next += 1;
            match &arg.default {
                None => args.push(value),
                Some(default) if is_param || *default != value => args.push(format!("{}={value}", arg.name)),
                Some(_) => {}
            }
        }
        twin.expression(&args.join(", "))
    }
}

/// Runs of equal items, or of equal groups of items, as loops.
fn loops(items: Vec<Vec<String>>) -> Vec<Vec<String>> {
    const LONGEST: usize = 8;
    let mut short = Vec::new();
    let mut at = 0;
    while at < items.len() {
        let times = |period: usize| {
            let group = &items[at..(at + period).min(items.len())];
            items[at..].chunks(period).take_while(|chunk| *chunk == group).count()
        };
        let best = (1..=LONGEST.min(items.len() - at)).max_by_key(|&period| match times(period) {
            // The shortest of equals.
            times if times > FEW => (times * period, std::cmp::Reverse(period)),
            _ => (0, std::cmp::Reverse(period)),
        });
        let period = best.unwrap_or(1);
        let times = times(period);
        let group = &items[at..at + period];
        if times <= FEW || group.iter().any(|item| item.len() > 1) {
            short.push(items[at].clone());
            at += 1;
            continue;
        }
        let range = format!("for _ in range({times})");
        if period == 1 {
            short.push(vec![format!("*({} {range})", group[0][0])]);
        } else {
            let mut lines = vec![
                "*(".to_owned(),
                "    layer".into(),
                format!("    {range}"),
                "    for layer in (".into(),
            ];
            lines.extend(group.iter().map(|item| format!("        {},", item[0])));
            lines.extend(["    )".into(), ")".into()]);
            short.push(lines);
        }
        at += period * times;
    }
    short
}
