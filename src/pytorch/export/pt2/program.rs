//! The program of a `.pt2` archive: its graph as JSON, by the schema 8.17 of torch/_export/serde/schema.py.
//!
//! Only the input has symbols for sizes; other tensors carry the sizes of one run, which no reader of PyTorch
//! 2.11 minds.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value as Json, json};
use tch::Tensor;

use super::extent::{Extent, STRIDED, float, identifier, inferred, meta, meta_of, number};
use crate::libtorch::script::Role;
use crate::nn::model::{Model, Op, Sides};
use crate::pytorch::export::flat::{BATCH, FlatGraph, FlatNode, FlatValue, ValueId};

/// What the input is called.
pub const INPUT: &str = "x";

/// A tensor that the archive stores.
pub struct Stored<'a> {
    pub name: &'a str,
    pub tensor: &'a Tensor,
    pub role: Role,
}

/// `models/model.json`.
pub fn program(graph: &FlatGraph, model: &Model, stored: &[Stored]) -> Result<Json> {
    let mut writer = Writer::new(graph, model, stored)?;
    graph.nodes.iter().try_for_each(|node| writer.node(node))?;
    let mut output = writer.value(graph.output)?.to_owned();
    if graph.output == graph.input {
        // An output of its own.
        output = writer.fresh("clone");
        let call = json!({
            "target": "torch.ops.aten.clone.default",
            "inputs": [{"name": "self", "arg": tensor(INPUT), "kind": POSITIONAL}],
            "outputs": [tensor(&output)], "metadata": {}, "is_hop_single_tensor_return": null, "name": output,
        });
        writer.nodes.push(call);
        let meta = writer.tensors[INPUT].clone();
        writer.tensors.insert(output.clone(), meta);
    }
    Ok(writer.finish(&output))
}

const POSITIONAL: i64 = 1;
const KEYWORD: i64 = 2;

fn tensor(name: &str) -> Json {
    json!({"as_tensor": {"name": name}})
}

struct Writer<'a> {
    graph: &'a FlatGraph,
    /// The class of each layer, by path.
    classes: HashMap<&'a str, &'a str>,
    /// Names of values, by number.
    values: Vec<Option<String>>,
    /// Names of stored tensors in the graph.
    stored: HashMap<&'a str, String>,
    inputs: Vec<Json>,
    specs: Vec<Json>,
    nodes: Vec<Json>,
    tensors: Map<String, Json>,
    integers: Map<String, Json>,
    /// Nodes that are integers, by what they are.
    known: HashMap<String, (String, Extent)>,
    /// The input's dimensions.
    extents: Vec<Extent>,
    sides: Option<Sides>,
    names: BTreeSet<String>,
    paths: Vec<String>,
}

impl<'a> Writer<'a> {
    fn new(graph: &'a FlatGraph, model: &'a Model, stored: &'a [Stored]) -> Result<Self> {
        let layers = model.root().leaves().into_iter().filter_map(|leaf| match &leaf.op {
            Op::Layer(spec) => Some((leaf.path.as_str(), spec.layer().torch_module(&leaf.input).class)),
            _ => None,
        });
        let info = graph.info(graph.input)?;
        let mut extents: Vec<_> = info.shape.iter().map(|&side| Extent::fixed(side)).collect();
        extents[0] = Extent::symbol("s0", 1, BATCH);
        if let (Some(sides), [_, _, height, width]) = (graph.sides, info.shape.as_slice()) {
            extents[2] = Extent::symbol("s1", sides.multiple, *height);
            extents[3] = Extent::symbol("s2", sides.multiple, *width);
        }
        let mut writer = Self {
            graph,
            classes: layers.collect(),
            values: vec![None; graph.values.len()],
            stored: HashMap::new(),
            inputs: Vec::new(),
            specs: Vec::new(),
            nodes: Vec::new(),
            tensors: Map::new(),
            integers: Map::new(),
            known: HashMap::new(),
            extents,
            sides: graph.sides,
            names: BTreeSet::from([INPUT.to_owned()]),
            paths: Vec::new(),
        };
        for Stored { name, tensor: own, role } in stored {
            let prefix = match role {
                Role::Parameter => "p_",
                Role::Buffer => "b_",
                Role::Constant => "c_",
            };
            let value = writer.unique(&format!("{prefix}{}", identifier(name)));
            let arg = json!({"name": value});
            writer.inputs.push(tensor(&value));
            writer.specs.push(match role {
                Role::Parameter => json!({"parameter": {"arg": arg, "parameter_name": name}}),
                Role::Buffer => json!({"buffer": {"arg": arg, "buffer_name": name, "persistent": true}}),
                Role::Constant => json!({"tensor_constant": {"arg": arg, "tensor_constant_name": name}}),
            });
            let meta = meta(&own.size(), own.kind(), *role == Role::Parameter)?;
            writer.tensors.insert(value.clone(), meta);
            writer.stored.insert(name, value);
        }
        writer.inputs.push(tensor(INPUT));
        writer.specs.push(json!({"user_input": {"arg": tensor(INPUT)}}));
        writer.tensors.insert(INPUT.into(), meta_of(&writer.extents, info.dtype, false)?);
        writer.values[graph.input] = Some(INPUT.into());
        Ok(writer)
    }

    fn unique(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut number = 1;
        while !self.names.insert(name.clone()) {
            number += 1;
            name = format!("{wanted}_{number}");
        }
        name
    }

    fn fresh(&mut self, op: &str) -> String {
        self.unique(identifier(op).trim_matches('_'))
    }

    fn value(&self, id: ValueId) -> Result<&str> {
        self.values.get(id).and_then(Option::as_deref).context("a tensor is used before it is made")
    }

    fn node(&mut self, node: &FlatNode) -> Result<()> {
        let overload = if node.overload.is_empty() { "default" } else { &node.overload };
        let target = format!("torch.ops.aten.{}.{overload}", node.op);
        let mut inputs = Vec::new();
        for arg in &node.args {
            if arg.is_keyword && arg.value == FlatValue::None {
                continue;
            }
            // A size that the others leave open.
            let is_shape = ["reshape", "view", "_unsafe_view"].contains(&node.op.as_str());
            let value = match &arg.value {
                FlatValue::List(values) if is_shape && inferred(values).is_some() => {
                    json!({"as_ints": inferred(values)})
                }
                value => {
                    self.argument(value, &target).with_context(|| format!("`{}` of {target}", arg.name))?
                }
            };
            let kind = if arg.is_keyword { KEYWORD } else { POSITIONAL };
            inputs.push(json!({"name": arg.name, "arg": value, "kind": kind}));
        }
        let name = self.fresh(&node.op);
        let mut outputs = Vec::new();
        for (place, &id) in node.outputs.iter().enumerate() {
            let several = node.is_list || node.outputs.len() > 1;
            let output = if several { self.unique(&format!("{name}_{place}")) } else { name.clone() };
            let info = self.graph.info(id)?;
            self.tensors.insert(output.clone(), meta(&info.shape, info.dtype, false)?);
            self.values[id] = Some(output.clone());
            outputs.push(output);
        }
        let outputs = match node.is_list {
            true => {
                json!([{"as_tensors": outputs.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()}])
            }
            false => outputs.iter().map(|name| tensor(name)).collect(),
        };
        let metadata = json!({"nn_module_stack": self.stack(&node.path)});
        self.nodes.push(json!({
            "target": target, "inputs": inputs, "outputs": outputs, "metadata": metadata,
            "is_hop_single_tensor_return": null, "name": name,
        }));
        Ok(())
    }

    /// Every module around the call, the root first: `torch.export.unflatten` rebuilds them.
    fn stack(&mut self, path: &str) -> String {
        let mut stack = "L__self__,,tikhonov.Net".to_owned();
        let ends = path.match_indices('.').map(|(at, _)| at).chain((!path.is_empty()).then_some(path.len()));
        for end in ends {
            let part = &path[..end];
            let class = self.classes.get(part).map_or("torch.nn.Module".to_owned(), |class| {
                match class.strip_prefix("nn.") {
                    Some(_) => format!("torch.{class}"),
                    None => format!("tikhonov.{class}"),
                }
            });
            stack += &format!(";L__self___{},{part},{class}", identifier(part));
            if !self.paths.iter().any(|known| known == part) {
                self.paths.push(part.to_owned());
            }
        }
        stack
    }

    fn argument(&mut self, value: &FlatValue, target: &str) -> Result<Json> {
        let name = |writer: &Self, value: &FlatValue| -> Result<Option<String>> {
            Ok(match value {
                FlatValue::Tensor(id) => Some(writer.value(*id)?.to_owned()),
                FlatValue::Weight(name) | FlatValue::Constant(name) => {
                    let stored = writer.stored.get(name.as_str());
                    Some(stored.with_context(|| format!("`{name}` is not in the file"))?.clone())
                }
                _ => None,
            })
        };
        Ok(match value {
            FlatValue::None => json!({"as_none": true}),
            FlatValue::Bool(flag) => json!({"as_bool": flag}),
            FlatValue::Int(number) => json!({"as_int": number}),
            FlatValue::Float(number) => json!({"as_float": float(*number)}),
            FlatValue::Text(text) => json!({"as_string": text}),
            FlatValue::Dtype(kind) => json!({"as_scalar_type": number(*kind)?}),
            FlatValue::Layout(_) => json!({"as_layout": STRIDED}),
            FlatValue::MemoryFormat(format) => {
                let formats = ["contiguous_format", "channels_last", "channels_last_3d", "preserve_format"];
                let place =
                    formats.iter().position(|known| known == format).context("no such memory format")?;
                json!({"as_memory_format": place + 1})
            }
            FlatValue::Device(device) => {
                let (kind, index) = device
                    .split_once(':')
                    .map_or((device.as_str(), None), |(kind, index)| (kind, Some(index)));
                let index = index.map(str::parse::<i64>).transpose().context("the device")?;
                json!({"as_device": {"type": kind, "index": index}})
            }
            FlatValue::Ints(numbers) => json!({"as_ints": numbers}),
            FlatValue::Floats(numbers) => {
                json!({"as_floats": numbers.iter().map(|&one| float(one)).collect::<Vec<_>>()})
            }
            FlatValue::Bools(flags) => json!({"as_bools": flags}),
            FlatValue::Tensor(_) | FlatValue::Weight(_) | FlatValue::Constant(_) => {
                tensor(&name(self, value)?.context("a tensor without a name")?)
            }
            FlatValue::Size(..) | FlatValue::Call(..) => match self.integer(value)? {
                (Some(name), _) => json!({"as_sym_int": {"as_name": name}}),
                (None, extent) => json!({"as_int": extent.value}),
            },
            FlatValue::List(values) => {
                let is_number = |value: &FlatValue| {
                    matches!(value, FlatValue::Int(_) | FlatValue::Size(..) | FlatValue::Call(..))
                };
                if !values.is_empty() && values.iter().all(is_number) {
                    let mut list = Vec::new();
                    for value in values {
                        list.push(match self.integer(value)? {
                            (Some(name), _) => json!({"as_name": name}),
                            (None, extent) => json!({"as_int": extent.value}),
                        });
                    }
                    return Ok(json!({"as_sym_ints": list}));
                }
                let names = values.iter().map(|value| name(self, value)).collect::<Result<Vec<_>>>()?;
                if values.iter().zip(&names).any(|(value, name)| name.is_none() && *value != FlatValue::None)
                {
                    bail!("a list of {values:?} for {target}");
                }
                if names.iter().all(Option::is_some) {
                    return Ok(
                        json!({"as_tensors": names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()}),
                    );
                }
                let optional = names.iter().map(|name| match name {
                    Some(name) => tensor(name),
                    None => json!({"as_none": true}),
                });
                json!({"as_optional_tensors": optional.collect::<Vec<_>>()})
            }
        })
    }

    /// The node that computes an integer; no name for a constant.
    fn integer(&mut self, value: &FlatValue) -> Result<(Option<String>, Extent)> {
        let key = format!("{value:?}");
        if let Some((name, extent)) = self.known.get(&key) {
            return Ok((Some(name.clone()), extent.clone()));
        }
        let (target, inputs, extent) = match value {
            FlatValue::Int(number) => return Ok((None, Extent::fixed(*number))),
            FlatValue::Size(id, dim) => {
                let info = self.graph.info(*id)?;
                let side = *info.shape.get(*dim).context("a size that the tensor has not")?;
                let extent = match *dim {
                    dim if *id == self.graph.input => self.extents[dim].clone(),
                    0 if side == BATCH => self.extents[0].clone(),
                    _ => Extent::fixed(side),
                };
                let name = self.value(*id)?;
                let inputs = json!([
                    {"name": "self", "arg": tensor(name), "kind": POSITIONAL},
                    {"name": "dim", "arg": {"as_int": dim}, "kind": POSITIONAL},
                ]);
                ("torch.ops.aten.sym_size.int".to_owned(), inputs, extent)
            }
            FlatValue::Call(op, values) => {
                let mut inputs = Vec::new();
                let mut extents = Vec::new();
                for (name, value) in ["a", "b"].iter().zip(values) {
                    let (node, extent) = self.integer(value)?;
                    let arg = match node {
                        Some(node) => json!({"as_sym_int": {"as_name": node}}),
                        None => json!({"as_int": extent.value}),
                    };
                    inputs.push(json!({"name": name, "arg": arg, "kind": POSITIONAL}));
                    extents.push(extent);
                }
                let first = extents.first().context("arithmetic on nothing")?;
                let extent = first.call(op, extents.get(1))?;
                let target = match op.as_str() {
                    "max" | "min" => format!("torch.sym_{op}"),
                    _ => format!("_operator.{op}"),
                };
                (target, Json::from(inputs), extent)
            }
            other => bail!("{other:?} is no integer"),
        };
        let name = self.fresh(target.rsplit('.').next().filter(|last| *last != "int").unwrap_or("sym_size"));
        self.nodes.push(json!({
            "target": target, "inputs": inputs, "outputs": [{"as_sym_int": {"as_name": name}}],
            "metadata": {}, "is_hop_single_tensor_return": null, "name": name,
        }));
        self.integers.insert(name.clone(), extent.json());
        self.known.insert(key, (name.clone(), extent.clone()));
        Ok((Some(name), extent))
    }

    fn finish(self, output: &str) -> Json {
        let mut ranges = Map::new();
        let mut guards = Vec::new();
        ranges.insert("s0".into(), json!({"min_val": 1, "max_val": null}));
        if let Some(Sides { multiple, least }) = self.sides {
            for (dim, (symbol, least)) in [("s1", least[0]), ("s2", least[1])].into_iter().enumerate() {
                ranges.insert(symbol.into(), json!({"min_val": least / multiple, "max_val": null}));
                // Where there are sample inputs, PyTorch reads guards in place of ranges.
                let size = format!("L['{INPUT}'].size()[{}]", dim + 2);
                guards.extend((multiple > 1).then(|| format!("{size} % {multiple} == 0")));
                guards.extend((least > 1).then(|| format!("{size} >= {least}")));
            }
        }
        let leaf = json!({"type": null, "context": null, "children_spec": []});
        let tuple =
            |children: Json| json!({"type": "builtins.tuple", "context": "null", "children_spec": children});
        let named = json!({"type": "builtins.dict", "context": "[]", "children_spec": []});
        let in_spec = json!([1, tuple(json!([tuple(json!([leaf])), named]))]);
        let signature = json!({
            "inputs": [], "outputs": [], "in_spec": in_spec.to_string(), "out_spec": json!([1, leaf]).to_string(),
            "forward_arg_names": [INPUT],
        });
        let mut modules = vec![json!({"fqn": "", "signature": signature})];
        modules.extend(self.paths.iter().map(|path| json!({"fqn": path, "signature": null})));
        json!({
            "graph_module": {
                "graph": {
                    "inputs": self.inputs,
                    "outputs": [tensor(output)],
                    "nodes": self.nodes,
                    "tensor_values": self.tensors,
                    "sym_int_values": self.integers,
                    "sym_bool_values": {},
                    "is_single_tensor_return": false,
                    "custom_obj_values": {},
                    "sym_float_values": {},
                },
                "signature": {"input_specs": self.specs, "output_specs": [{"user_output": {"arg": tensor(output)}}]},
                "module_call_graph": modules,
                "metadata": {},
                "treespec_namedtuple_fields": {},
            },
            "opset_version": {"aten": 10},
            "range_constraints": ranges,
            "schema_version": {"major": 8, "minor": 17},
            "verifiers": ["TRAINING"],
            "torch_version": "2.11.0",
            "guards_code": guards,
        })
    }
}
