//! The calls of an exported program as the text of a TorchScript `forward`, batch norms and dropouts in
//! training form.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;

use super::{Archive, Place, dtype, is_word, key, list, modules};

/// What Python calls `path` inside the module.
fn place(path: &str) -> String {
    path.split('.').filter(|segment| !segment.is_empty()).fold("self".to_owned(), |place, segment| {
        match segment.starts_with(|first: char| first.is_ascii_digit()) {
            true => format!("getattr({place}, \"{segment}\")"),
            false => format!("{place}.{segment}"),
        }
    })
}

/// The calls as the text of `forward`.
pub struct Source<'a> {
    root: &'a Place<'a>,
    lines: Vec<String>,
    /// What the graph's names are in the text.
    names: HashMap<&'a str, String>,
    /// The names of the state_dict of stored tensors, by the graph's.
    stored: HashMap<&'a str, &'a str>,
    count: usize,
}

impl<'a> Source<'a> {
    pub fn of(archive: &'a Archive, root: &'a Place<'a>) -> Result<String> {
        let signature = &archive.program["graph_module"]["signature"];
        let mut source =
            Self { root, lines: Vec::new(), names: HashMap::new(), stored: HashMap::new(), count: 0 };
        for spec in list(&signature["input_specs"])? {
            let kind = key(spec)?;
            let name = spec[kind][match kind {
                "parameter" => "parameter_name",
                "buffer" => "buffer_name",
                _ => "tensor_constant_name",
            }]
            .as_str();
            if let (Some(value), Some(name)) = (spec[kind]["arg"]["name"].as_str(), name) {
                source.names.insert(value, place(name));
                source.stored.insert(value, name);
            }
        }
        source.names.insert(archive.argument()?, "x".into());
        let nodes = list(&archive.graph()["nodes"])?;
        for node in nodes {
            source.node(node).with_context(|| format!("its call {}", node["name"]))?;
        }
        let [output] = list(&signature["output_specs"])? else {
            bail!("it answers several tensors, or changes buffers; export one answer, after net.eval()")
        };
        ensure!(key(output)? == "user_output", "it answers a {}; export it after net.eval()", key(output)?);
        let output = output["user_output"]["arg"]["as_tensor"]["name"].as_str();
        let output = source.name(output.context("its answer is no tensor")?)?;
        // A list without elements has no type of its own.
        let empty = ["int", "float", "bool", "Tensor"].map(|kind| format!("no_{kind}: List[{kind}] = []"));
        let lines: String = empty.iter().chain(&source.lines).map(|line| format!("    {line}\n")).collect();
        Ok(format!("def forward(self, x: Tensor) -> Tensor:\n{lines}    return {output}\n"))
    }

    fn name(&self, value: &str) -> Result<String> {
        self.names.get(value).cloned().with_context(|| format!("`{value}` is used and not made"))
    }

    fn fresh(&mut self) -> String {
        self.count += 1;
        format!("v{}", self.count)
    }

    /// `self.training` of the innermost module around the call that has tensors.
    fn training(&self, node: &Json) -> String {
        let modules = modules(node);
        let own = modules.iter().rev().find(|(path, _)| !path.is_empty() && self.root.child(path).is_some());
        own.map_or("self.training".into(), |(path, _)| format!("{}.training", place(path)))
    }

    fn node(&mut self, node: &'a Json) -> Result<()> {
        let target = node["target"].as_str().context("it calls nothing")?;
        let inputs = list(&node["inputs"])?;
        let Some(operator) = target.strip_prefix("torch.ops.aten.") else {
            return self.arithmetic(node, target);
        };
        let op = operator.split('.').next().unwrap_or_default();
        let names = inputs.iter().filter_map(|input| input["name"].as_str());
        ensure!(std::iter::once(op).chain(names).all(is_word), "{target} is no operator of ATen");
        if op.starts_with("_assert") || op.starts_with("sym_constrain") {
            return Ok(());
        }
        let stored = |at: usize| -> Option<&'a str> {
            let value = inputs.get(at)?["arg"]["as_tensor"]["name"].as_str()?;
            self.stored.get(value).copied()
        };
        if let (Some(name), true) = (stored(0), op.ends_with('_')) {
            // Batch norms count their batches below.
            ensure!(name.ends_with("num_batches_tracked"), "it changes `{name}`; export it after net.eval()");
            return self.outputs(node, |_| place(name));
        }
        if op == "sym_size" {
            let [tensor, dim] = inputs else { bail!("{target} with {} arguments", inputs.len()) };
            let (tensor, dim) = (self.argument(&tensor["arg"])?, self.argument(&dim["arg"])?);
            return self.assign(node, &format!("{tensor}.size({dim})"));
        }
        let is_statistics =
            |arg: &&Json| arg["name"] == "running_mean" && key(&arg["arg"]).ok() == Some("as_tensor");
        let statistics =
            inputs.iter().find(is_statistics).and_then(|arg| arg["arg"]["as_tensor"]["name"].as_str());
        let owner = match statistics {
            Some(value) => {
                let name = self.stored.get(value).copied().context("its running statistics are computed")?;
                Some(name.rsplit_once('.').map_or("", |(path, _)| path))
            }
            None => None,
        };
        let training = match owner {
            Some(path) => format!("{}.training", place(path)),
            None => self.training(node),
        };
        let mut arguments = Vec::new();
        for input in inputs {
            let name = input["name"].as_str().unwrap_or_default();
            // Without running statistics a batch norm always takes those of the batch.
            let is_mode = ["training", "train"].contains(&name) && !(op == "batch_norm" && owner.is_none());
            let value = if is_mode { training.clone() } else { self.argument(&input["arg"])? };
            arguments.push(if input["kind"] == 2 { format!("{name}={value}") } else { value });
        }
        if let Some(path) = owner {
            let tracked = if path.is_empty() { Some(self.root) } else { self.root.child(path) };
            if tracked
                .is_some_and(|place| place.tensors.iter().any(|(name, _)| name == "num_batches_tracked"))
            {
                let place = place(path);
                self.lines.push(format!("if {place}.training:"));
                self.lines.push(format!("    {place}.num_batches_tracked.add_(1)"));
            }
        }
        match op {
            "_native_batch_norm_legit_no_training" => {
                let [x, weight, bias, mean, variance, momentum, eps] = arguments.as_slice() else {
                    bail!("{target} with {} arguments", arguments.len())
                };
                let call = format!(
                    "torch.batch_norm({x}, {weight}, {bias}, {mean}, {variance}, {training}, {momentum}, {eps}, True)"
                );
                let name = self.fresh();
                self.lines.push(format!("{name} = {call}"));
                let first =
                    list(&node["outputs"])?.first().and_then(|output| output["as_tensor"]["name"].as_str());
                self.names.insert(first.context("it answers nothing")?, name);
                Ok(())
            }
            _ if op.starts_with("native_batch_norm") || op.starts_with("_native_batch_norm") => {
                bail!(
                    "{target} is a batch norm in training, taken apart; export the network after net.eval()"
                )
            }
            _ => self.assign(node, &format!("torch.{op}({})", arguments.join(", "))),
        }
    }

    /// Calls that are no ATen's: arithmetic on sizes.
    fn arithmetic(&mut self, node: &'a Json, target: &str) -> Result<()> {
        ensure!(
            ["_operator.", "torch.sym_", "math.trunc"].iter().any(|known| target.starts_with(known)),
            "{target} is no operator of ATen, and cannot be trained"
        );
        let mut operands = Vec::new();
        for input in list(&node["inputs"])? {
            operands.push(self.argument(&input["arg"])?);
        }
        let infix = |op: &str| match operands.as_slice() {
            [a, b] => Ok(format!("({a} {op} {b})")),
            _ => bail!("{target} with {} operands", operands.len()),
        };
        let text = match target {
            "_operator.add" => infix("+")?,
            "_operator.sub" => infix("-")?,
            "_operator.mul" => infix("*")?,
            "_operator.floordiv" => infix("//")?,
            "_operator.truediv" => infix("/")?,
            "_operator.mod" => infix("%")?,
            "_operator.pow" => infix("**")?,
            "_operator.eq" => infix("==")?,
            "_operator.ne" => infix("!=")?,
            "_operator.ge" => infix(">=")?,
            "_operator.gt" => infix(">")?,
            "_operator.le" => infix("<=")?,
            "_operator.lt" => infix("<")?,
            "_operator.and_" => infix("and")?,
            "_operator.neg" => format!("(-{})", operands.join("")),
            "torch.sym_max" => format!("max({})", operands.join(", ")),
            "torch.sym_min" => format!("min({})", operands.join(", ")),
            "torch.sym_float" => format!("float({})", operands.join("")),
            "math.trunc" | "torch.sym_int" => format!("int({})", operands.join("")),
            _ => bail!("{target} is no operator of ATen, and cannot be trained"),
        };
        self.assign(node, &text)
    }

    fn assign(&mut self, node: &'a Json, call: &str) -> Result<()> {
        let outputs = list(&node["outputs"])?;
        let names: Vec<_> = outputs.iter().map(|_| self.fresh()).collect();
        match names.as_slice() {
            [] => self.lines.push(call.to_owned()),
            names => self.lines.push(format!("{} = {call}", names.join(", "))),
        }
        self.outputs(node, |at| names[at].clone())
    }

    fn outputs(&mut self, node: &'a Json, text: impl Fn(usize) -> String) -> Result<()> {
        for (at, output) in list(&node["outputs"])?.iter().enumerate() {
            let kind = key(output)?;
            let value = &output[kind];
            match kind {
                "as_none" => {}
                "as_tensor" => {
                    self.names.insert(value["name"].as_str().context("no name")?, text(at));
                }
                "as_sym_int" | "as_sym_bool" | "as_sym_float" => {
                    self.names.insert(value["as_name"].as_str().context("no name")?, text(at));
                }
                "as_tensors" => {
                    for (place, tensor) in list(value)?.iter().enumerate() {
                        let name = tensor["name"].as_str().context("no name")?;
                        self.names.insert(name, format!("{}[{place}]", text(at)));
                    }
                }
                other => bail!("it answers {other}"),
            }
        }
        Ok(())
    }

    fn argument(&self, arg: &Json) -> Result<String> {
        let kind = key(arg)?;
        let value = &arg[kind];
        let text = |value: &Json| value.as_str().map(str::to_owned).context("a name is missing");
        let tensor = |value: &Json| self.name(&text(&value["name"])?);
        let joined = |parts: Result<Vec<String>>| parts.map(|parts| format!("[{}]", parts.join(", ")));
        let literals = |kind: &str, one: &dyn Fn(&Json) -> Result<String>| match list(value)? {
            [] => Ok(format!("no_{kind}")),
            values => joined(values.iter().map(one).collect()),
        };
        let mixed = |value: &Json| match value["as_name"].as_str() {
            Some(name) => self.name(name),
            None => literal(value.as_object().and_then(|map| map.values().next()).unwrap_or(value)),
        };
        Ok(match kind {
            "as_none" => "None".into(),
            "as_tensor" => tensor(value)?,
            "as_tensors" => literals("Tensor", &tensor)?,
            "as_optional_tensors" => {
                let one = |value: &Json| match key(value)? {
                    "as_none" => Ok("None".into()),
                    _ => tensor(&value["as_tensor"]),
                };
                literals("Tensor", &one)?
            }
            "as_int" | "as_bool" => literal(value)?,
            "as_float" => float(value)?,
            "as_ints" => literals("int", &literal)?,
            "as_bools" => literals("bool", &literal)?,
            "as_floats" => literals("float", &float)?,
            "as_string" => serde_json::to_string(value)?,
            "as_sym_int" | "as_sym_bool" | "as_sym_float" => mixed(value)?,
            "as_sym_ints" => literals("int", &mixed)?,
            "as_scalar_type" => dtype(value)?.1.to_string(),
            "as_memory_format" => match value.as_i64() {
                Some(1) => "0".into(),
                Some(4) => "1".into(),
                Some(format @ (2 | 3)) => format.to_string(),
                _ => bail!("the memory format {value} is not known"),
            },
            "as_layout" if *value == 7 => "0".into(),
            // One network, one device.
            "as_device" => "x.device".into(),
            other => bail!("its argument {other} cannot be trained"),
        })
    }
}

fn literal(value: &Json) -> Result<String> {
    match value {
        Json::Bool(true) => Ok("True".into()),
        Json::Bool(false) => Ok("False".into()),
        Json::Number(number) if number.is_f64() => float(value),
        Json::Number(number) => Ok(number.to_string()),
        other => bail!("{other} is no number"),
    }
}

fn float(value: &Json) -> Result<String> {
    match (value.as_f64(), value.as_str()) {
        (Some(number), _) => Ok(format!("{number:?}")),
        (_, Some("Infinity")) => Ok("float(\"inf\")".into()),
        (_, Some("-Infinity")) => Ok("float(\"-inf\")".into()),
        (_, Some("NaN")) => Ok("float(\"nan\")".into()),
        _ => bail!("{value} is no number"),
    }
}
