//! `tikhonov predict`: predictions for pictures or for the rows of a table.

mod masks;

use std::io::{BufWriter, StdoutLock, Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tch::{Device, Tensor, no_grad};

use super::{TrainedOptions, outputs};
use crate::config::RunConfig;
use crate::data::normalize::NormalizeSpec;
use crate::data::sources::CsvSpec;
use crate::data::{Dataset, SourceSpec, pictures};
use crate::libtorch::catch_panics;
use crate::libtorch::machine::keep_memory;
use crate::nn::model::features;
use crate::tasks::tta::Tta;
use crate::tasks::{Prediction, TaskSpec};
use crate::train::session::loader;
use crate::util::console::print_err;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml;

/// Predict with a trained run.
///
/// Pictures are brought to the network's size as the run's own were. Tables (.csv) need the columns that the
/// run was trained on. A segmentation run writes a mask for each picture, upright and of its size, computed
/// in tiles that overlap. What cannot be read is reported and skipped; the exit code is then 3.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    pub trained: TrainedOptions,
    /// Pictures and folders of pictures, or a table
    #[arg(required = true, value_name = "IN")]
    pub inputs: Vec<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// Classes per sample, the most probable first
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub top: u16,
    /// Average the answers to a picture and to its flips (and quarter turns)
    #[arg(long, value_enum, default_value_t = Tta::None)]
    pub tta: Tta,
    /// Also write what this layer gives, [N, …], into the file of -o: by the prefix of its parameters or its name in
    /// the model
    #[arg(long, value_name = "LAYER", requires = "output")]
    pub embed: Option<String>,
    #[command(flatten)]
    pub masks: masks::MaskOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Csv,
    Json,
}

pub fn run(options: &Options) -> Result<()> {
    let mut trained = options.trained.open()?;
    let tap = options.embed.as_ref().map(|layer| trained.plan.model.listen(layer)).transpose()?;
    let (spec, model) = (&trained.config.spec, &trained.plan.model);
    let task = spec.task.build();
    if matches!(spec.task, TaskSpec::Segmentation(_)) {
        if options.embed.is_some() || options.tta != Tta::None {
            let message = "masks are computed in tiles, without --embed and --tta; `eval --tta` scores what that would give";
            return Err(fail(ExitCode::Usage, message));
        }
        return masks::run(options, &trained, &*task);
    }
    match (&options.embed, &options.masks.output) {
        (Some(_), Some(file)) => {
            outputs::may_write(file, options.inputs.iter().map(PathBuf::as_path), options.masks.force)?
        }
        _ => masks::none(&options.masks, &options.trained.run)?,
    }
    let network = trained.network()?;

    let set = inputs(spec, trained.weights.features(), model.input(), &options.inputs)?;
    keep_memory();
    let classes = trained.weights.classes().unwrap_or_default().to_vec();
    let thresholds = trained.thresholds();
    if thresholds.is_empty() && task.answers_labels() {
        print_err!(
            "no validation set chose thresholds for these weights: a class is found from a probability of 0.5 on"
        );
    }
    let mut printer = Printer::new(options, classes, thresholds);
    for note in &set.notes {
        print_err!("{note}");
    }
    if let Some(temperature) = trained.temperature {
        print_err!("logits are divided by the temperature {temperature:.4} that `calibrate` found");
    }
    let mut answered = 0;
    let loader = loader(spec, network.device(), &set, false)?;
    options.tta.check(&*task, loader.shape())?;
    let answer_to = |tta: Tta, xs: &Tensor| tta.forward(&*task, &network, xs, trained.temperature);
    let mut embedded = Vec::new();
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let answer = catch_panics(|| {
            no_grad(|| {
                let xs = task.make_inference_input(batch.xs);
                if let Some(tap) = tap {
                    let (answer, layer) = features(tap, false, || answer_to(Tta::None, &xs));
                    embedded.extend(layer.map(|layer| layer.to_device(Device::Cpu)));
                    if options.tta == Tta::None {
                        return answer;
                    }
                }
                answer_to(options.tta, &xs)
            })
        })??;
        let outputs = loader.in_data_units(&answer.outputs);
        for (index, prediction) in batch.indices.iter().zip(task.predictions(&outputs)?) {
            let index = *index as usize;
            let name = set.names.get(index).cloned().unwrap_or_else(|| format!("row {}", index + 1));
            printer.print(&name, prediction)?;
            answered += 1;
        }
        printer.out.flush()?;
    }
    if let (Some(file), false) =
        (options.embed.as_ref().and(options.masks.output.as_ref()), embedded.is_empty())
    {
        outputs::write_npy(&Tensor::cat(&embedded, 0), file)?;
    }
    let left_out = set.left_out();
    for skipped in &left_out {
        print_err!("{skipped}");
    }
    match left_out.len() {
        0 => Ok(()),
        count => {
            let message = format!("{count} of {} inputs could not be answered", answered + count);
            Err(fail(ExitCode::Data, message))
        }
    }
}

/// One table, or pictures.
fn inputs(spec: &RunConfig, features: &[String], shape: &[i64], paths: &[PathBuf]) -> Result<Dataset> {
    if spec.data.normalize == NormalizeSpec::Auto {
        let message = "data.normalize: `auto` is of the training set, which is not read here; give the run folder, whose \
                       config has the numbers, or `--set data.normalize={mean: […], std: […]}`";
        return Err(fail(ExitCode::Usage, message));
    }
    match (&spec.data.train, paths) {
        (SourceSpec::Csv(table), [path]) => table.rows(path, features),
        (SourceSpec::Csv(_), _) => Err(fail(ExitCode::Usage, "give one table at a time")),
        // Generated: its columns have the names that the run's coefficients have.
        (SourceSpec::Line(_) | SourceSpec::Linear(_), paths) => {
            let columns = features.join(", ");
            let table = |path: &PathBuf| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("csv"));
            match paths {
                [path] if table(path) && !features.is_empty() => {
                    let spec: CsvSpec = yaml::decode(&json!({"file": path, "target": []}))?;
                    spec.rows(path, features)
                }
                _ => Err(fail(
                    ExitCode::Usage,
                    format!("this run answers for the rows of one .csv with the columns {columns}"),
                )),
            }
        }
        _ => {
            let (mode, fit) = spec.data.picture_rules(shape)?;
            pictures(paths, mode, &fit, spec.data.exif())
        }
    }
}

struct Printer<'a> {
    options: &'a Options,
    classes: Vec<String>,
    /// By class, of `multi_label`; 0.5 each where there are none.
    thresholds: Vec<f64>,
    has_header: bool,
    /// Flushed after each batch.
    out: BufWriter<StdoutLock<'static>>,
}

impl<'a> Printer<'a> {
    fn new(options: &'a Options, classes: Vec<String>, thresholds: Vec<f64>) -> Self {
        Self { options, classes, thresholds, has_header: false, out: BufWriter::new(stdout().lock()) }
    }

    fn print(&mut self, name: &str, prediction: Prediction) -> Result<()> {
        let (header, cells) = self.cells(prediction);
        match self.options.format {
            Format::Json => {
                let mut object = json!({ "input": name });
                if header.first().is_some_and(|name| name == "labels") {
                    let mut cells = header.into_iter().zip(cells);
                    object["labels"] = cells.next().map_or(Value::Null, |(_, labels)| labels);
                    object["probabilities"] = Value::Object(cells.collect());
                    writeln!(self.out, "{object}")?;
                    return Ok(());
                }
                // Classes are one list, the most probable first; the first of them has keys of its own as well.
                let is_list = self.options.top > 1 && header.first().is_some_and(|name| name == "class");
                let classes: Value = cells
                    .chunks(2)
                    .map(|pair| json!({"class": pair[0], "probability": pair.get(1)}))
                    .collect();
                for (name, cell) in header.into_iter().zip(cells).filter(|(name, _)| !is_later(name)) {
                    object[name] = cell;
                }
                if is_list {
                    object["classes"] = classes;
                }
                writeln!(self.out, "{object}")?;
            }
            Format::Csv => {
                let mut row = csv::Writer::from_writer(Vec::new());
                if !std::mem::replace(&mut self.has_header, true) {
                    row.write_record(["input"].into_iter().chain(header.iter().map(String::as_str)))?;
                }
                row.write_record([name.to_owned()].into_iter().chain(cells.iter().map(exact)))?;
                self.out.write_all(&row.into_inner()?)?;
            }
            Format::Table => {
                // Of any number of classes the names, and the probabilities of those found.
                let mut cells: Vec<_> = cells.iter().map(plain).collect();
                if header.first().is_some_and(|name| name == "labels") {
                    cells.truncate(1);
                }
                writeln!(self.out, "{name}  {}", cells.join("  "))?;
            }
        }
        Ok(())
    }

    /// Column names and values.
    fn cells(&self, prediction: Prediction) -> (Vec<String>, Vec<Value>) {
        match prediction {
            Prediction::Classes(classes) => {
                let mut cells = (Vec::new(), Vec::new());
                for (rank, (class, probability)) in
                    classes.into_iter().take(self.options.top.into()).enumerate()
                {
                    let name = self.classes.get(class).cloned().unwrap_or_else(|| class.to_string());
                    let suffix = if rank == 0 { String::new() } else { format!("_{}", rank + 1) };
                    cells.0.extend([format!("class{suffix}"), format!("probability{suffix}")]);
                    cells.1.extend([json!(name), json!(probability)]);
                }
                cells
            }
            Prediction::Labels(probabilities) => {
                let name =
                    |class: usize| self.classes.get(class).cloned().unwrap_or_else(|| class.to_string());
                let is_found = |(class, probability): &(usize, &f64)| {
                    **probability >= self.thresholds.get(*class).copied().unwrap_or(0.5)
                };
                let found = probabilities.iter().enumerate().filter(is_found);
                let found: Vec<String> = found.map(|(class, _)| name(class)).collect();
                let mut cells = (vec!["labels".to_owned()], vec![json!(found)]);
                for (class, probability) in probabilities.iter().enumerate() {
                    cells.0.push(name(class));
                    cells.1.push(json!(probability));
                }
                cells
            }
            Prediction::Values(values) => {
                values.into_iter().enumerate().map(|(i, value)| (format!("y{i}"), json!(value))).unzip()
            }
        }
    }
}

/// Whether a column is of a class after the first.
fn is_later(column: &str) -> bool {
    column.starts_with("class_") || column.starts_with("probability_")
}

/// A cell for programs: every digit.
fn exact(cell: &Value) -> String {
    match cell {
        Value::Array(labels) => labels.iter().map(exact).collect::<Vec<_>>().join(";"),
        cell => cell.as_str().map_or_else(|| cell.to_string(), str::to_owned),
    }
}

/// A cell of the table: probabilities and values with four decimals.
fn plain(cell: &Value) -> String {
    match cell {
        Value::String(text) => text.clone(),
        Value::Array(labels) if labels.is_empty() => "-".into(),
        Value::Array(_) => exact(cell),
        number => number.as_f64().map_or_else(|| number.to_string(), |value| format!("{value:.4}")),
    }
}
