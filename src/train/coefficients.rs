//! The coefficients of a linear model by the names of the table's columns: what a ridge or lasso regression
//! is fitted for.

use std::fmt;

use anyhow::Result;
use tch::{Kind, Tensor};

use crate::checkpoint::Checkpoints;
use crate::config::{COEFFICIENTS_FILE, RunConfig};
use crate::data::normalize::{Normalize, NormalizeSpec};
use crate::nn::layers::ParamKind;
use crate::nn::model::Model;
use crate::plot::digits;
use crate::util::terminal::table;

/// A table of more is a file's matter.
const SHOWN: usize = 20;

/// Of a model that is one linear layer, `y = intercept + Σ coefficient · column`.
#[derive(Clone, Debug)]
pub struct Coefficients {
    /// Whose weights they are, such as `best, epoch 8`.
    pub of: String,
    /// Whether the columns were normalised for the network.
    is_normalized: bool,
    /// Several outputs, by name, each with all its features in the order of the table.
    outputs: Vec<Output>,
}

#[derive(Clone, Debug)]
struct Output {
    /// A class, or `y0`, `y1` …
    name: String,
    intercept: f64,
    features: Vec<Feature>,
}

#[derive(Clone, Debug)]
struct Feature {
    name: String,
    /// Per unit of the column.
    coefficient: f64,
    /// Per standard deviation of the column, and in those of the target where that was normalised: the weight
    /// of the network, which the penalty shrinks.
    standardized: f64,
}

impl Coefficients {
    /// Those of the run's checkpoint `which`, which is `best` or `last`; None, and nothing is loaded, where
    /// the network is more than one linear layer, or the columns have no `names`.
    pub fn of(
        spec: &RunConfig,
        model: &Model,
        names: &[String],
        checkpoints: &Checkpoints,
        which: &str,
    ) -> Result<Option<Self>> {
        let (mut weight, mut bias) = (None, None);
        for param in model.params() {
            match param.kind {
                ParamKind::Weight if weight.is_none() && param.shape.len() == 2 => weight = Some(&param.name),
                ParamKind::Buffer | ParamKind::Weight => return Ok(None),
                _ if bias.is_none() && param.shape.len() == 1 => bias = Some(&param.name),
                _ => return Ok(None),
            }
        }
        let Some(weight) = weight.filter(|_| !names.is_empty() && model.root().leaves().len() == 1) else {
            return Ok(None);
        };
        let loaded = checkpoints.named(which)?;
        let weights = loaded.weights();
        let numbers = |name: &String| -> Result<Vec<f64>> {
            let values = weights.get(name).map(|tensor: &Tensor| tensor.to_kind(Kind::Double).reshape([-1]));
            Ok(values.map(Vec::<f64>::try_from).transpose()?.unwrap_or_default())
        };
        let values = numbers(weight)?;
        let biases = bias.map(numbers).transpose()?.unwrap_or_default();
        if values.is_empty() || !values.len().is_multiple_of(names.len()) {
            return Ok(None);
        }
        let normalize = match &spec.data.normalize {
            NormalizeSpec::Given(given) if given.mean.len() == names.len() => Some(given),
            _ => None,
        };
        let target = match &spec.data.normalize_target {
            NormalizeSpec::Given(given) => Some(given),
            _ => None,
        };
        let rows = values.chunks_exact(names.len()).enumerate();
        let outputs = rows.map(|(at, row)| {
            let name = loaded.state.classes.get(at).cloned().unwrap_or_else(|| format!("y{at}"));
            // y = mean + std · what the network says.
            let target = target.and_then(|target| Some((*target.mean.get(at)?, *target.std.get(at)?)));
            let bias = biases.get(at).copied().unwrap_or(0.0);
            output(name, names, row, bias, normalize, target.unwrap_or((0.0, 1.0)))
        });
        Ok(Some(Self {
            of: format!("{which}, epoch {}", loaded.state.epoch),
            is_normalized: normalize.is_some(),
            outputs: outputs.collect(),
        }))
    }

    /// A row per output and column, the intercept first; every digit.
    pub fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["output", "feature", "coefficient", "standardized"])?;
        for output in &self.outputs {
            writer.write_record([output.name.as_str(), "intercept", &output.intercept.to_string(), ""])?;
            for one in &output.features {
                let standardized =
                    if self.is_normalized { one.standardized.to_string() } else { String::new() };
                writer.write_record([
                    &output.name,
                    &one.name,
                    &one.coefficient.to_string(),
                    &standardized,
                ])?;
            }
        }
        Ok(String::from_utf8(writer.into_inner()?)?)
    }
}

fn output(
    name: String,
    names: &[String],
    row: &[f64],
    bias: f64,
    normalize: Option<&Normalize>,
    (mean, std): (f64, f64),
) -> Output {
    let scale = |at: usize| normalize.map_or((0.0, 1.0), |normalize| (normalize.mean[at], normalize.std[at]));
    let feature = |(at, name): (usize, &String)| Feature {
        name: name.clone(),
        coefficient: std * row[at] / scale(at).1,
        standardized: row[at],
    };
    let moved: f64 = row.iter().enumerate().map(|(at, weight)| weight * scale(at).0 / scale(at).1).sum();
    let intercept = mean + std * (bias - moved);
    Output { name, intercept, features: names.iter().enumerate().map(feature).collect() }
}

impl fmt::Display for Coefficients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "coefficients ({}); all of them in {COEFFICIENTS_FILE}", self.of)?;
        let several = self.outputs.len() > 1;
        let mut rows = Vec::new();
        for output in &self.outputs {
            let mut add = |feature: &str, value: f64, standardized: Option<f64>| {
                let mut row = if several { vec![output.name.clone()] } else { Vec::new() };
                row.extend([feature.to_owned(), digits(value, 6)]);
                if self.is_normalized {
                    row.push(standardized.map_or_else(String::new, |value| digits(value, 4)));
                }
                rows.push(row);
            };
            let mut sorted: Vec<&Feature> =
                output.features.iter().filter(|one| one.standardized != 0.0).collect();
            sorted.sort_by(|a, b| b.standardized.abs().total_cmp(&a.standardized.abs()));
            let room = (SHOWN / self.outputs.len()).max(3);
            let (zeros, hidden) = (output.features.len() - sorted.len(), sorted.len().saturating_sub(room));
            add("intercept", output.intercept, None);
            sorted.iter().take(room).for_each(|one| add(&one.name, one.coefficient, Some(one.standardized)));
            for (count, what) in [(hidden, "smaller ones"), (zeros, "exactly 0")] {
                if count > 0 {
                    let mut row = if several { vec![output.name.clone()] } else { Vec::new() };
                    row.push(format!("and {count} {what}"));
                    rows.push(row);
                }
            }
        }
        let mut head = if several { vec!["output"] } else { Vec::new() };
        head.extend(["column", "coefficient"]);
        if self.is_normalized {
            head.push("per std");
        }
        let right = head.iter().position(|word| *word == "coefficient").unwrap_or(1);
        for line in table(&head, right, rows).lines() {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}
