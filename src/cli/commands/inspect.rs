//! `tikhonov inspect`: what a checkpoint file holds, without running any of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde_json::{Map, Value as Json, json};
use tch::{Kind, Tensor};

use crate::nn::model::thousands;
use crate::pytorch::reader::{Container, ROOT};
use crate::pytorch::weights::{Part, Unreadable, Weights, dtype, open_python, read_weights_lenient};
use crate::train::initial_weights::{is_pythons, no_weights};
use crate::util::exit_code::{ExitCode, WithExitCode};
use crate::util::terminal;

/// Show what a checkpoint holds: .pth, .pt, TorchScript, safetensors or ONNX, detected by content.
///
/// Prints the container, where in the file the weights are, what else it holds (epoch, accuracy …), and
/// every tensor. Objects of unknown classes are shown by their class name; nothing in the file is ever run.
#[derive(Args, Debug)]
pub struct Options {
    /// The file; of a checkpoint's or a run's folder its weights
    file: PathBuf,
    /// Dotted path of the weights in the file, instead of the part with the most tensors
    #[arg(long)]
    key: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let file = file(&options.file)?;
    let part = Part { keys: options.key.clone().into_iter().collect(), ..Part::default() };
    let (weights, unreadable) = read_weights_lenient(&file, &part)?;
    let program = match weights.container {
        Container::Export | Container::TorchScript => {
            let read = || open_python(&file)?.program();
            read().with_exit_code(ExitCode::Checkpoint, || options.file.display())?
        }
        _ => Map::new(),
    };
    let rows = (weights.tensors.iter())
        .map(|(name, tensor)| Row::new(name, tensor, &weights))
        .collect::<Result<Vec<_>>>()
        .with_exit_code(ExitCode::Checkpoint, || options.file.display())?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if options.json {
        serde_json::to_writer_pretty(&mut out, &as_json(&weights, &rows, &unreadable, &program))?;
        writeln!(out)?;
    } else {
        if file != options.file {
            writeln!(out, "file       {}", file.display())?;
        }
        print(&mut out, &weights, &rows, &unreadable, &program)?;
    }
    out.flush()?;
    Ok(())
}

/// The file itself; of a checkpoint's folder its weights, of a run's folder those of the best checkpoint,
/// else the last.
fn file(path: &Path) -> Result<PathBuf> {
    const WEIGHTS: &str = "model.safetensors";
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let candidates = [WEIGHTS, "checkpoints/best/model.safetensors", "checkpoints/last/model.safetensors"];
    let found = candidates.iter().map(|candidate| path.join(candidate)).find(|file| file.is_file());
    let found = found.or_else(|| is_pythons(path).then(|| path.to_owned()));
    found.with_exit_code(ExitCode::Checkpoint, || no_weights(path))
}

/// One tensor. The statistics leave NaN out; of complex numbers they take both parts.
struct Row<'a> {
    name: &'a str,
    shape: Vec<i64>,
    dtype: &'static str,
    values: usize,
    /// Minimum, mean, maximum; None where there is no number.
    range: Option<[f64; 3]>,
    nan: i64,
}

impl<'a> Row<'a> {
    fn new(name: &'a str, tensor: &Tensor, weights: &Weights) -> Result<Row<'a>> {
        let (range, nan) = statistics(tensor)?;
        let stored = weights.widened.iter().find(|(widened, _)| widened == name).map(|(_, dtype)| *dtype);
        let dtype = stored.or(dtype(tensor.kind())).map_or("quantized", |dtype| dtype.name());
        Ok(Row { name, shape: tensor.size(), dtype, values: tensor.numel(), range, nan })
    }
}

/// (minimum, mean, maximum) over all numbers that are not NaN, and how many are, in pieces: a copy of a large
/// tensor in double precision would take more memory than the file.
fn statistics(tensor: &Tensor) -> Result<(Option<[f64; 3]>, i64)> {
    const PIECE: i64 = 1 << 20;
    let real = if tensor.is_complex() { tensor.f_view_as_real()? } else { tensor.shallow_clone() };
    let flat = real.f_reshape([-1])?;
    let len = flat.numel() as i64;
    let (mut low, mut high, mut sum, mut count) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0);
    for start in (0..len).step_by(PIECE as usize) {
        let piece = flat.f_narrow(0, start, PIECE.min(len - start))?.f_to_kind(Kind::Double)?;
        let numbers = piece.f_masked_select(&piece.f_isnan()?.f_logical_not()?)?;
        if numbers.numel() > 0 {
            low = low.min(numbers.f_min()?.f_double_value(&[])?);
            high = high.max(numbers.f_max()?.f_double_value(&[])?);
            sum += numbers.f_sum(Kind::Double)?.f_double_value(&[])?;
            count += numbers.numel() as i64;
        }
    }
    Ok(((count > 0).then(|| [low, sum / count as f64, high]), len - count))
}

fn as_json(weights: &Weights, rows: &[Row], unreadable: &[Unreadable], program: &Map<String, Json>) -> Json {
    // JSON has no infinity; as text it survives.
    let number = |x: f64| if x.is_finite() { json!(x) } else { json!(x.to_string()) };
    let mut tensors: Vec<Json> = rows
        .iter()
        .map(|row| {
            let [min, mean, max] = row.range.map_or([Json::Null, Json::Null, Json::Null], |range| range.map(number));
            json!({"name": row.name, "shape": row.shape, "dtype": row.dtype, "min": min, "mean": mean, "max": max, "nan": row.nan})
        })
        .collect();
    tensors.extend(unreadable.iter().map(|tensor| {
        json!({"name": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype, "error": tensor.reason})
    }));
    json!({
        "container": weights.container.name(),
        "structure": weights.structure,
        "key": weights.key,
        "others": weights.others.iter().map(|(path, count)| json!({"key": path, "tensors": count})).collect::<Vec<_>>(),
        "modules": weights.modules.iter().map(|module| {
            json!({"path": module.path, "class": module.class, "attributes": module.attributes})
        }).collect::<Vec<_>>(),
        "metadata": weights.metadata,
        "program": program,
        "values": rows.iter().map(|row| row.values).sum::<usize>(),
        "tensors": tensors,
    })
}

fn print(
    out: &mut impl Write,
    weights: &Weights,
    rows: &[Row],
    unreadable: &[Unreadable],
    program: &Map<String, Json>,
) -> Result<()> {
    writeln!(out, "container  {}", weights.container.name())?;
    writeln!(out, "structure  {}", weights.structure)?;
    for (path, count) in weights.others.iter().take(8) {
        let root = if path == ROOT { ", the file's root" } else { "" };
        writeln!(out, "           also {path}{root}: {count} tensors (--key '{path}' takes it instead)")?;
    }
    let values: usize = rows.iter().map(|row| row.values).sum();
    writeln!(out, "holds      {} tensors, {} values", rows.len(), thousands(values as u64))?;
    if !unreadable.is_empty() {
        writeln!(out, "           {} more that cannot be loaded, below", unreadable.len())?;
    }
    let nan: i64 = rows.iter().map(|row| row.nan).sum();
    if nan > 0 {
        writeln!(out, "NaN        {nan} values are not a number")?;
    }
    for (key, value) in weights.metadata.iter().chain(program) {
        writeln!(out, "  {key}: {value}")?;
    }
    writeln!(out)?;

    let shapes: Vec<String> = rows.iter().map(|row| format!("{:?}", row.shape)).collect();
    let width = |cells: &mut dyn Iterator<Item = usize>, least: usize| cells.max().unwrap_or(0).max(least);
    let name_width = width(&mut rows.iter().map(|row| terminal::width(&plain(row.name))), 4);
    let shape_width = width(&mut shapes.iter().map(String::len), 5);
    writeln!(
        out,
        "{:name_width$}  {:shape_width$}  {:10}  {:>11}  {:>11}  {:>11}  {:>5}",
        "name", "shape", "dtype", "min", "mean", "max", "NaN"
    )?;
    for (row, shape) in rows.iter().zip(&shapes) {
        let [min, mean, max] =
            row.range.map_or_else(|| ["-"; 3].map(String::from), |range| range.map(number));
        writeln!(
            out,
            "{}  {shape:shape_width$}  {:10}  {min:>11}  {mean:>11}  {max:>11}  {:>5}",
            terminal::padded(&plain(row.name), name_width),
            row.dtype,
            row.nan
        )?;
    }
    if !weights.modules.is_empty() {
        writeln!(out, "\nmodules, as they were pickled:")?;
    }
    for module in &weights.modules {
        let values = module.attributes.iter().map(|(key, value)| format!("  {}={value}", plain(key)));
        writeln!(out, "{}  {}{}", plain(&module.path), plain(&module.class), values.collect::<String>())?;
    }
    if !unreadable.is_empty() {
        writeln!(out, "\ncannot be loaded:")?;
    }
    for tensor in unreadable {
        writeln!(out, "{}  {:?}  {}  {}", plain(&tensor.name), tensor.shape, tensor.dtype, tensor.reason)?;
    }
    Ok(())
}

fn number(x: f64) -> String {
    let size = x.abs();
    if size != 0.0 && !(1e-3..1e6).contains(&size) { format!("{x:.3e}") } else { format!("{x:.5}") }
}

/// A name of an untrusted file, without what a terminal would obey.
fn plain(name: &str) -> String {
    if name.chars().any(char::is_control) { name.escape_debug().to_string() } else { name.to_owned() }
}
