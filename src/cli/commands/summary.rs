//! `tikhonov summary`: the network layer by layer, and the penalty that each parameter gets.

use std::collections::HashMap;
use std::io::Write;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::ConfigOptions;
use crate::nn::layers::Param;
use crate::nn::model::Summary;
use crate::penalty::{Lambda, ParamGroup, Term};
use crate::train::session::ModelPlan;

/// Show the layers, parameters and penalties of a config.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub config: ConfigOptions,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// One penalty group: its λs and how many values they act on.
#[derive(Serialize)]
struct GroupRow<'a> {
    label: &'a str,
    /// λ and mode of every form, by their keys in YAML.
    #[serde(flatten)]
    terms: Map<String, Value>,
    parameters: Vec<&'a str>,
    values: i64,
}

pub fn run(options: &Options) -> Result<()> {
    let config = options.config.load([])?;
    let ModelPlan { model, groups } = ModelPlan::of(&config)?;
    let trainable: Vec<&Param> = model.params().iter().filter(|param| param.is_trainable()).collect();
    let rows: Vec<GroupRow> = groups.iter().map(|group| row(group, &trainable)).collect();
    let penalties: HashMap<&str, String> = groups
        .iter()
        .flat_map(|group| group.param_indices.iter().map(move |&member| (member, words(group))))
        .map(|(member, words)| (trainable[member].name.as_str(), words))
        .collect();
    let summary = Summary::new(&model, |name| penalties.get(name).cloned());

    let mut out = std::io::stdout().lock();
    if options.json {
        let mut report = json!(summary);
        report["groups"] = json!(rows);
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", summary.text())?;
        for (group, row) in groups.iter().zip(&rows) {
            let (tensors, values) = (row.parameters.len(), row.values);
            writeln!(out, "group {}: {} on {values} values in {tensors} tensors", row.label, words(group))?;
        }
    }
    Ok(())
}

fn row<'a>(group: &'a ParamGroup, trainable: &[&'a Param]) -> GroupRow<'a> {
    let members = || group.param_indices.iter().map(|&member| trainable[member]);
    GroupRow {
        label: &group.label,
        terms: group.terms.iter().flat_map(keys).collect(),
        parameters: members().map(|param| param.name.as_str()).collect(),
        values: members().map(Param::count).sum(),
    }
}

fn keys(term: &Term) -> impl Iterator<Item = (String, Value)> {
    let lambda = (term.form.key().to_owned(), json!(term.lambda));
    let mode = term.mode_key.map(|key| (key.to_owned(), json!(term.form.mode())));
    std::iter::once(lambda).chain(mode)
}

/// `l2 1e-4, l1 1e-5 (proximal)`, or `none`.
fn words(group: &ParamGroup) -> String {
    let parts: Vec<_> = group
        .active()
        .map(|term| match term.form.mode() {
            Some("plain") | None => format!("{} {}", term.form.key(), number(term.lambda)),
            Some(mode) => format!("{} {} ({mode})", term.form.key(), number(term.lambda)),
        })
        .collect();
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

fn number(lambda: Lambda) -> String {
    match lambda {
        Lambda::Constant(lambda) => format!("{lambda:e}"),
        Lambda::Ramp(ramp) => format!("{:e} to {:e}", ramp.start, ramp.end),
        Lambda::Auto { auto } => format!("tuned from {:e}", auto.start),
    }
}
