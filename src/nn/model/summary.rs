//! The output of `tikhonov summary`: a table, and a structure for `--json`.

use std::fmt::Write;

use serde::Serialize;

use super::Model;
use super::scripted::Script;
use super::tree::{Node, Op};
use crate::nn::layers::{Param, ParamKind, Shape, shown};
use crate::util::terminal::table;

/// A network in numbers. Shapes are without the batch dimension.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub model: String,
    pub input: Shape,
    pub output: Shape,
    pub layers: Vec<Row>,
    pub parameters: Vec<ParameterRow>,
    /// Trainable values.
    pub trainable: i64,
    /// Values of buffers, such as running statistics.
    pub buffers: i64,
    /// Multiply-accumulates of convolutions and linear layers for one sample, without auxiliary heads; None for a
    /// scripted network.
    pub multiply_adds: Option<u64>,
}

/// One layer.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its place; a name that starts with `_` is no part of the parameter names.
    pub path: String,
    pub layer: String,
    pub output: Shape,
    /// Trainable values.
    pub params: i64,
    /// None in a scripted network.
    pub multiply_adds: Option<u64>,
    /// Of an auxiliary head, which only training uses.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub auxiliary: bool,
}

/// One trainable tensor.
#[derive(Clone, Debug, Serialize)]
pub struct ParameterRow {
    pub name: String,
    pub kind: ParamKind,
    pub shape: Vec<i64>,
    pub count: i64,
    /// Not trained.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
    /// Its penalty, such as `l2 1e-4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub penalty: Option<String>,
    /// Its learning rate, such as `1e-4`, or `1e-4 after epoch 3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<String>,
}

/// What a config says of one parameter's training, in words.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// Such as `l2 1e-4`.
    pub penalty: Option<String>,
    pub lr: Option<String>,
}

impl Model {
    /// One row for each layer, concat, residual and its relatives, in the order of computation.
    pub fn summary(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        walk(&self.root, false, &mut rows);
        rows
    }
}

fn walk(node: &Node, auxiliary: bool, rows: &mut Vec<Row>) {
    let auxiliary = auxiliary || matches!(node.op, Op::Auxiliary(_));
    for child in &node.children {
        walk(child, auxiliary, rows);
    }
    let layer = match &node.op {
        Op::Layer(spec) => spec.kind(),
        Op::Script(script) => return rows.extend(scripted(script)),
        Op::Sequential => return,
        Op::Join(join) => join.word(),
        Op::Concat => "concat",
        Op::Like(_) => "upsample",
        Op::Auxiliary(_) => "aux",
    };
    let trainable = |node: &Node| {
        node.params().iter().filter(|param| param.kind != ParamKind::Buffer).map(|param| param.count()).sum()
    };
    rows.push(Row {
        path: node.place.clone(),
        layer: layer.to_owned(),
        output: node.output.clone(),
        params: trainable(node),
        multiply_adds: Some(node.multiply_adds()),
        auxiliary,
    });
}

/// One row for each module that has tensors, without output shapes and operations.
fn scripted(script: &Script) -> impl Iterator<Item = Row> {
    script.modules.iter().map(|(path, class)| {
        let own = |param: &&Param| param.name.rsplit_once('.').map_or("", |(owner, _)| owner) == path;
        let trainable = script.params.iter().filter(own).filter(|param| param.kind != ParamKind::Buffer);
        Row {
            path: path.clone(),
            layer: class.clone(),
            output: Shape::new(),
            params: trainable.map(Param::count).sum(),
            multiply_adds: None,
            auxiliary: false,
        }
    })
}

impl Summary {
    /// `rates` gives the words for a parameter's penalty and rate.
    pub fn new(model: &Model, rates: impl Fn(&str) -> Rates) -> Self {
        let layers = model.summary();
        let buffers = model.params().iter().filter(|param| param.kind == ParamKind::Buffer);
        let buffers = buffers.map(|param| param.count()).sum();
        let parameters = model
            .params()
            .iter()
            .filter(|param| param.kind != ParamKind::Buffer)
            .map(|param| {
                let Rates { penalty, lr } = rates(&param.name);
                ParameterRow {
                    name: param.name.clone(),
                    kind: param.kind,
                    shape: param.shape.clone(),
                    count: param.count(),
                    frozen: param.frozen,
                    penalty,
                    lr,
                }
            })
            .collect();
        Self {
            model: model.name().to_string(),
            input: model.input().to_vec(),
            output: model.output().to_vec(),
            multiply_adds: (layers.iter().filter(|row| !row.auxiliary))
                .try_fold(0u64, |sum, row| row.multiply_adds.map(|more| sum.saturating_add(more))),
            layers,
            parameters,
            trainable: model.parameter_count(),
            buffers,
        }
    }

    /// The tables for a terminal.
    pub fn text(&self) -> String {
        let layers = self.layers.iter().map(|row| {
            vec![
                row.path.clone(),
                row.layer.clone(),
                if row.output.is_empty() { String::new() } else { shown(&row.output) },
                thousands(row.params as u64),
                row.multiply_adds.map_or_else(String::new, thousands),
            ]
        });
        let mut text = format!("{}: {} to {}\n\n", self.model, shown(&self.input), shown(&self.output));
        text += &table(&["layer", "type", "output", "parameters", "multiply-adds"], 3, layers.collect());
        let labelled = self.parameters.iter().any(|row| row.penalty.is_some());
        let rated = self.parameters.iter().any(|row| row.lr.is_some());
        let parameters = self.parameters.iter().map(|row| {
            let mut cells = vec![row.name.clone(), shown(&row.shape)];
            if rated {
                cells.push(row.lr.clone().unwrap_or_default());
            }
            if labelled {
                let word = if row.frozen { "frozen" } else { "none" };
                cells.push(row.penalty.clone().unwrap_or_else(|| word.into()));
            }
            cells.push(thousands(row.count as u64));
            cells
        });
        let has_heads = self.layers.iter().any(|row| row.auxiliary);
        let frozen: i64 = self.parameters.iter().filter(|row| row.frozen).map(|row| row.count).sum();
        text.push('\n');
        let mut head = vec!["parameter", "shape"];
        head.extend(rated.then_some("lr"));
        head.extend(labelled.then_some("penalty"));
        head.push("values");
        text += &table(&head, head.len() - 1, parameters.collect());
        let _ = write!(
            text,
            "\n{} parameters{}, {} values in buffers, {} per sample{}\n",
            thousands(self.trainable as u64),
            if frozen > 0 { format!(" and {} frozen ones", thousands(frozen as u64)) } else { String::new() },
            thousands(self.buffers as u64),
            match self.multiply_adds {
                Some(count) => format!("{} multiply-adds", thousands(count)),
                None => "an unknown number of multiply-adds".to_owned(),
            },
            if has_heads { " without the auxiliary heads, which only training uses" } else { "" }
        );
        text
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
