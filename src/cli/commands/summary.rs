//! `tikhonov summary`: the network layer by layer, the penalty that each parameter gets, and what `balance` means
//! for each class.

use std::collections::HashMap;
use std::io::Write;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{ConfigOptions, assignment};
use crate::config::Config;
use crate::data::Split;
use crate::data::balance::{self, ClassBalance};
use crate::nn::layers::Param;
use crate::nn::model::{Model, ModelSpec, Rates, Summary};
use crate::penalty::{FreezeUntil, Lambda, ParamGroup, Term};
use crate::train::session::ModelPlan;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::{self, Document};

/// Show the layers, parameters and penalties of a config, or the layers of a network.
#[derive(Args, Debug)]
pub struct Options {
    /// A YAML file, a run folder, or the name of a shipped config such as `quickstart`
    #[arg(required_unless_present = "model")]
    config: Option<String>,
    /// A shipped network (`tikhonov models` lists them) or a model file, without a config
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "config")]
    model: Option<String>,
    /// An argument of the network given by --model, such as classes=5 (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment, requires = "model")]
    arg: Vec<String>,
    /// Override one key of the config; VALUE is YAML (repeatable): --set optimizer.sgd.lr=0.05
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment, conflicts_with = "model")]
    set: Vec<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// One penalty group: its λs and how many values they act on.
#[derive(Serialize)]
struct GroupRow<'a> {
    label: &'a str,
    /// The learning rate where the groups have several, before the schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    freeze_until: Option<FreezeUntil>,
    /// λ and mode of every form, by their keys in YAML.
    #[serde(flatten)]
    terms: Map<String, Value>,
    parameters: Vec<&'a str>,
    values: i64,
}

pub fn run(options: &Options) -> Result<()> {
    if let Some(model) = &options.model {
        let summary = Summary::new(&network(model, &options.arg)?, |_| Rates::default());
        let mut out = std::io::stdout().lock();
        match options.json {
            true => serde_json::to_writer_pretty(&mut out, &summary)?,
            false => write!(out, "{}", summary.text().trim_end())?,
        }
        return Ok(writeln!(out)?);
    }
    let config = options.config.clone().unwrap_or_default();
    let config = ConfigOptions { config, set: options.set.clone() }.load([])?;
    let ModelPlan { model, groups } = ModelPlan::of(&config)?;
    let balanced = balanced(&config, &model)?;
    let trainable: Vec<&Param> = model.params().iter().filter(|param| param.is_trainable()).collect();
    // One rate for all is the optimiser's: nothing to tell apart.
    let lr = config.spec.optimizer.lr();
    let lr = groups.iter().any(ParamGroup::has_own_rate).then_some(lr);
    let rows: Vec<GroupRow> = groups.iter().map(|group| row(group, lr, &trainable)).collect();
    let of = |group| Rates { penalty: Some(words(group)), lr: lr.map(|lr| rate(lr, group)) };
    let rates: HashMap<&str, Rates> = groups
        .iter()
        .flat_map(|group| group.param_indices.iter().map(move |&member| (member, of(group))))
        .map(|(member, rates)| (trainable[member].name.as_str(), rates))
        .collect();
    let summary = Summary::new(&model, |name| rates.get(name).cloned().unwrap_or_default());

    let mut out = std::io::stdout().lock();
    if options.json {
        let mut report = json!(summary);
        report["groups"] = json!(rows);
        if !balanced.is_empty() {
            report["balance"] = json!(balanced);
        }
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", summary.text())?;
        for (group, row) in groups.iter().zip(&rows) {
            let (tensors, values) = (row.parameters.len(), row.values);
            let rate = lr.map_or_else(String::new, |lr| format!("lr {}, ", rate(lr, group)));
            let words = words(group);
            writeln!(out, "group {}: {rate}{words} on {values} values in {tensors} tensors", row.label)?;
        }
        for line in balance::lines(&balanced) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// What `balance` means for each class of the training set, which is read for it.
fn balanced(config: &Config, model: &Model) -> Result<Vec<ClassBalance>> {
    let spec = &config.spec;
    if spec.balance.is_none() {
        return Ok(Vec::new());
    }
    config.validate_data(&[Split::Train])?;
    let train = spec.data.open_only(Split::Train, spec.seed, None)?;
    let outputs = model.output().iter().product::<i64>() as usize;
    train.map_or_else(|| Ok(Vec::new()), |train| spec.balance.of(&train, outputs))
}

/// The network of `--model` with the arguments of `--arg`.
fn network(name: &str, assignments: &[String]) -> Result<Model> {
    let is_file = name.ends_with(".yaml") || name.ends_with(".yml");
    let mut spec = json!({if is_file { "file" } else { "name" }: name, "args": {}});
    for (key, value) in assignments.iter().filter_map(|assignment| assignment.split_once('=')) {
        let document = Document::parse(format!("--arg {key}"), format!("value: {value}"))?;
        spec["args"][key] = document.value("value").cloned().unwrap_or_default();
    }
    let spec: ModelSpec = yaml::decode(&spec).map_err(|invalid| fail(ExitCode::Usage, invalid))?;
    Model::from_spec(&spec)
}

fn row<'a>(group: &'a ParamGroup, lr: Option<f64>, trainable: &[&'a Param]) -> GroupRow<'a> {
    let members = || group.param_indices.iter().map(|&member| trainable[member]);
    GroupRow {
        label: &group.label,
        lr: lr.map(|lr| lr * group.lr),
        freeze_until: group.freeze_until,
        terms: group.terms.iter().flat_map(keys).collect(),
        parameters: members().map(|param| param.name.as_str()).collect(),
        values: members().map(Param::count).sum(),
    }
}

/// `1e-4`, or `1e-4 after epoch 3`.
fn rate(lr: f64, group: &ParamGroup) -> String {
    let until = group.freeze_until.map_or_else(String::new, |until| format!(" after {until}"));
    // Factors multiplied, without the digits that binary fractions add.
    let lr: f64 = format!("{:.4e}", lr * group.lr).parse().unwrap_or(lr * group.lr);
    format!("{lr:e}{until}")
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
