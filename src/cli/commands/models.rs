//! `tikhonov models`: the shipped networks.

use std::io::Write;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::nn::layers::shown;
use crate::nn::model::{Model, ModelSource, ModelSpec, Rates, Summary, family, thousands};
use crate::util::terminal::table;

/// List the shipped networks: family, parameters, multiply-adds, input, weights that fit.
#[derive(Args, Debug)]
pub struct Options {
    /// Only those whose name or family has this part
    filter: Option<String>,
    /// As JSON, with the arguments
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    family: &'static str,
    /// Trainable values.
    parameters: i64,
    /// For one sample.
    multiply_adds: Option<u64>,
    /// The shape of one sample.
    input: Vec<i64>,
    output: Vec<i64>,
    /// The files of published weights that fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<String>,
    args: Map<String, Value>,
}

pub fn run(options: &Options) -> Result<()> {
    let wanted = options.filter.as_deref().unwrap_or_default();
    let names = family::names();
    let names = names.into_iter().filter(|(family, name)| name.contains(wanted) || family.contains(wanted));
    let rows = names.map(|(family, name)| row(family, name)).collect::<Result<Vec<_>>>()?;
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
        return Ok(());
    }
    let cells = rows.iter().map(|row| {
        vec![
            row.name.clone(),
            row.family.to_owned(),
            shown(&row.input),
            row.published.clone().unwrap_or_default(),
            thousands(row.parameters.unsigned_abs()),
            row.multiply_adds.map_or_else(String::new, thousands),
        ]
    });
    let heads = ["model", "file", "input", "weights that fit", "parameters", "multiply-adds"];
    writeln!(out, "{}", table(&heads, 4, cells.collect()))?;
    writeln!(out, "`tikhonov summary --model NAME` shows the layers, `tikhonov init DIR` writes the files")?;
    Ok(())
}

fn row(family: &'static str, name: String) -> Result<Row> {
    let spec =
        ModelSpec { source: ModelSource::Shipped { name: name.clone(), args: Map::new() }, init_from: None };
    let summary = Summary::new(&Model::from_spec(&spec)?, |_| Rates::default());
    Ok(Row {
        published: family::published(&name),
        args: family::declared(&name).unwrap_or_default(),
        family,
        parameters: summary.trainable,
        multiply_adds: summary.multiply_adds,
        input: summary.input,
        output: summary.output,
        name,
    })
}
