//! Writes a network and its weights anew with the channels that are kept.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor, no_grad};

use super::Slices;
use super::flow::{Site, Sum, Verdict};
use crate::nn::layers::LayerSpec;
use crate::nn::layers::channels::Kept;
use crate::nn::model::{Model, Node, Op, join};
use crate::util::yaml;

pub struct Rewritten {
    /// The `layers` of a model file.
    pub layers: Value,
    pub weights: BTreeMap<String, Tensor>,
    pub slices: BTreeMap<String, Slices>,
}

pub fn rewrite(model: &Model, weights: &BTreeMap<String, Tensor>, verdict: &Verdict) -> Result<Rewritten> {
    let written = Rewritten { layers: Value::Null, weights: BTreeMap::new(), slices: BTreeMap::new() };
    let mut writer = Writer { old: weights, verdict, sites: verdict.sites.iter(), written };
    let layers = no_grad(|| writer.children(&model.root().children))?;
    Ok(Rewritten { layers, ..writer.written })
}

struct Writer<'a> {
    old: &'a BTreeMap<String, Tensor>,
    verdict: &'a Verdict,
    /// Those of the layers to come.
    sites: std::slice::Iter<'a, Site>,
    written: Rewritten,
}

impl Writer<'_> {
    /// A list where the labels are its numbers, else a mapping.
    fn children(&mut self, nodes: &[Node]) -> Result<Value> {
        let mut entries = Vec::new();
        self.entries(nodes, &mut entries)?;
        if entries.iter().enumerate().all(|(index, (label, _))| *label == index.to_string()) {
            return Ok(Value::Array(entries.into_iter().map(|(_, value)| value).collect()));
        }
        let mut map = Map::new();
        for (label, value) in entries {
            // Silent names may occur more than once, where they come from a repeat.
            let free = (2..).map(|number| format!("{label}_{number}")).find(|label| !map.contains_key(label));
            let label = if map.contains_key(&label) { free.unwrap_or_default() } else { label };
            map.insert(label, value);
        }
        Ok(Value::Object(map))
    }

    fn entries(&mut self, nodes: &[Node], into: &mut Vec<(String, Value)>) -> Result<()> {
        for node in nodes {
            if let (Op::Like(upsample), [resized]) = (&node.op, node.children.as_slice()) {
                // What it resizes is written before it.
                self.entries(&resized.children, into)?;
                into.push((node.label.clone(), brief(&LayerSpec::Upsample(upsample.clone()))?));
                continue;
            }
            into.push((node.label.clone(), self.node(node)?));
        }
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<Value> {
        Ok(match &node.op {
            Op::Layer(_) => self.layer(node)?,
            Op::Sequential => json!({"sequential": self.children(&node.children)?}),
            Op::Concat => json!({"concat": self.children(&node.children)?}),
            Op::Join(join) => {
                let mut parts = Map::new();
                for (key, part) in ["layers", "shortcut"].into_iter().zip(&node.children) {
                    parts.insert(key.to_owned(), self.children(&part.children)?);
                }
                json!({join.word(): parts})
            }
            Op::Script(_) | Op::Like(_) | Op::Auxiliary(_) => Value::Null,
        })
    }

    fn layer(&mut self, node: &Node) -> Result<Value> {
        let Op::Layer(spec) = &node.op else { return Ok(Value::Null) };
        let site = self.sites.next().context("a layer that was not followed")?;
        let [inputs, outputs] = [&site.inputs, &site.outputs].map(|classes| self.verdict.kept(classes));
        let kept = Kept { inputs: &inputs, outputs: &outputs };
        let spec = spec.layer().with_channels(&node.input, kept).unwrap_or_else(|| spec.clone());
        for param in node.params() {
            let mut tensor = self.old.get(&param.name).with_context(|| param.name.clone())?.shallow_clone();
            let name = param.name.rsplit('.').next().unwrap_or_default();
            let mut slices = Slices::new();
            match (&site.sum, name) {
                (Some(sum), "weight") => {
                    tensor = self.with_stand_ins(&tensor, site, sum, &inputs)?;
                    slices.push((sum.output_dim, indices(&outputs)));
                    slices.push((sum.input_dim, indices(&inputs)));
                }
                (Some(sum), "bias") => {
                    tensor = self.with_constants(&tensor, node, site, sum, &inputs)?;
                    slices.push((0, indices(&outputs)));
                }
                // Of what channels are tied to there is one per channel, or one for all.
                (None, _) => {
                    let dim = tensor.size().iter().position(|extent| *extent == outputs.len() as i64);
                    slices.extend(dim.map(|dim| (dim as i64, indices(&outputs))));
                }
                _ => {}
            }
            let kind = tensor.kind();
            for (dim, indices) in &slices {
                tensor = tensor.f_index_select(*dim, indices)?;
            }
            self.written.weights.insert(param.name.clone(), tensor.f_to_kind(kind)?.f_contiguous()?);
            self.written.slices.insert(param.name, slices);
        }
        brief(&spec)
    }

    /// The bias with what the constant inputs that are removed add.
    fn with_constants(
        &self,
        bias: &Tensor,
        node: &Node,
        site: &Site,
        sum: &Sum,
        inputs: &[bool],
    ) -> Result<Tensor> {
        if !sum.folds {
            return Ok(bias.shallow_clone());
        }
        let taken = |index: usize| (!inputs[index]).then_some(sum.constants[index]).flatten().unwrap_or(0.0);
        let taken: Vec<f64> = (0..site.inputs.len()).map(taken).collect();
        let name = join(&node.path, "weight");
        let weight = self.old.get(&name).with_context(|| name.clone())?.f_to_kind(Kind::Double)?;
        let flat = weight.f_movedim_int(sum.input_dim, 1)?.f_flatten(2.min(weight.dim() as i64 - 1), -1)?;
        let summed =
            if weight.dim() > 2 { flat.f_sum_dim_intlist(&[2i64][..], false, Kind::Double)? } else { flat };
        let added = summed.f_matmul(&Tensor::from_slice(&taken))?;
        Ok(bias.f_to_kind(Kind::Double)?.f_add(&added)?.f_to_kind(bias.kind())?)
    }

    /// The weight with the columns of removed constants added to those of the constants that say them.
    fn with_stand_ins(&self, weight: &Tensor, site: &Site, sum: &Sum, inputs: &[bool]) -> Result<Tensor> {
        if sum.folds {
            return Ok(weight.shallow_clone());
        }
        let wide = weight.f_to_kind(Kind::Double)?.copy();
        let mut is_changed = false;
        for (index, class) in site.inputs.iter().enumerate() {
            let (Some(value), Some(by), false) =
                (sum.constants[index], self.verdict.stand_in.get(class), inputs[index])
            else {
                continue;
            };
            if value == 0.0 {
                continue;
            }
            let is_by =
                |other: &usize| site.inputs[*other] == *by && sum.constants[*other].is_some_and(|v| v != 0.0);
            // Where nothing says it, no output that is kept depends on it.
            let Some(by) = (0..site.inputs.len()).find(is_by) else { continue };
            let share = value / sum.constants[by].unwrap_or(1.0);
            let column = wide.f_select(sum.input_dim, index as i64)?.f_mul_scalar(share)?;
            let _ = wide.f_select(sum.input_dim, by as i64)?.f_add_(&column)?;
            is_changed = true;
        }
        Ok(if is_changed { wide.f_to_kind(weight.kind())? } else { weight.shallow_clone() })
    }
}

/// A layer without the arguments that it has anyway: `relu`, `{conv2d: {out_channels: 16, kernel_size: 3}}`.
fn brief(spec: &LayerSpec) -> Result<Value> {
    let whole = serde_json::to_value(spec)?;
    let Value::Object(mut call) = whole.clone() else { return Ok(whole) };
    let kind = spec.kind();
    let is_same = |args: &Map<String, Value>| {
        let call = json!({kind: args});
        let decoded = match LayerSpec::is_activation(kind) {
            true => yaml::decode(&call).map(LayerSpec::Activation),
            false => yaml::decode(&call),
        };
        decoded.is_ok_and(|spec| serde_json::to_value(&spec).is_ok_and(|value| value == whole))
    };
    let Some(Value::Object(args)) = call.get_mut(kind) else { return Ok(whole) };
    for name in args.keys().cloned().collect::<Vec<_>>() {
        let mut fewer = args.clone();
        fewer.shift_remove(&name);
        if is_same(&fewer) {
            *args = fewer;
        }
    }
    Ok(if args.is_empty() { kind.into() } else { Value::Object(call) })
}

fn indices(kept: &[bool]) -> Tensor {
    let indices: Vec<i64> = (0..).zip(kept).filter(|(_, kept)| **kept).map(|(index, _)| index).collect();
    Tensor::from_slice(&indices)
}
