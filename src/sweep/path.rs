//! The λ path of a convex problem: from the strongest penalty to the weakest, each trial from the weights of
//! the one before (Friedman, Hastie and Tibshirani 2010), and its coefficients as a table and a picture.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::{Design, Ending, Finished, Folder, Trial};
use crate::checkpoint::Checkpoints;
use crate::plot::png;
use crate::plot::{Kind, Lines, MOST_DIRECT, Series, spans_decades, standalone};
use crate::sweep::search_space::{Axis, Point};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

/// Coefficients of a table; a network with more has no path that one could read.
const MOST: usize = 2000;
/// In a sweep's folder.
const TABLE: &str = "path.csv";
/// Lines of a picture.
const LINES: usize = 40;

/// The points in the order of the path. Exit 2 unless one number is varied.
pub fn ordered(axes: &[Axis], mut points: Vec<Point>) -> Result<Vec<Point>> {
    let number = |point: &Point| point.first().and_then(Value::as_f64);
    if axes.len() != 1 || points.iter().any(|point| number(point).is_none()) {
        return Err(fail(
            ExitCode::Usage,
            "--path goes along one number: vary one key, such as penalty.l1=1:1e-4:log:50",
        ));
    }
    points.sort_by(|a, b| number(b).partial_cmp(&number(a)).unwrap_or(std::cmp::Ordering::Equal));
    Ok(points)
}

/// Where `trial` starts: at the last weights of the nearest stronger penalty, same seed and fold, that came
/// through.
pub fn start(folder: &Folder, design: &Design, finished: &[Finished], trial: &Trial) -> Option<String> {
    let through = |point: &usize| {
        let id = trial.id - (trial.point - point) * design.per_point();
        finished.iter().any(|one| one.trial == id && one.ending == Ending::Done).then_some(id)
    };
    let id = (0..trial.point).rev().find_map(|point| through(&point))?;
    let before = Trial { id, ..*trial };
    Some(folder.trial(&before).join("checkpoints/last").to_string_lossy().into_owned())
}

/// A trial's coefficients by name.
type Coefficients = Vec<(String, f64)>;

/// Writes `path.csv`, and `path.svg` and `path.png` of the first seed and fold. Networks of more than 2000
/// coefficients have none.
pub fn conclude(folder: &Folder, design: &Design, finished: &[Finished]) -> Result<()> {
    let mut rows: Vec<(&Finished, Coefficients)> = Vec::new();
    let mut sorted: Vec<&Finished> = finished.iter().filter(|one| one.ending == Ending::Done).collect();
    sorted.sort_by_key(|one| one.trial);
    for one in sorted {
        let trial = Trial { id: one.trial, point: 0, seed: one.seed, fold: one.fold };
        match coefficients(&folder.trial(&trial))? {
            Some(coefficients) => rows.push((one, coefficients)),
            None => return Ok(()),
        }
    }
    let Some((_, first)) = rows.first() else { return Ok(()) };
    let axis = &design.axes[0];
    let mut table = csv::Writer::from_writer(Vec::new());
    let names = first.iter().map(|(name, _)| name.as_str());
    table.write_record([axis.key.as_str(), "seed", "fold"].into_iter().chain(names))?;
    for (one, coefficients) in &rows {
        let fold = one.fold.map_or_else(String::new, |fold| fold.to_string());
        let head = [one.point[&axis.key].to_string(), one.seed.to_string(), fold];
        table
            .write_record(head.into_iter().chain(coefficients.iter().map(|(_, value)| value.to_string())))?;
    }
    folder.write(TABLE, &String::from_utf8(table.into_inner()?)?)?;
    if let Some(drawn) = figure_of(&folder.path).and_then(|lines| lines.draw()) {
        let drawing = standalone(&drawn.svg);
        folder.write("path.svg", &drawing)?;
        folder.write_bytes("path.png", &png::png(&drawing)?)?;
    }
    Ok(())
}

/// None where there are too many.
fn coefficients(run: &Path) -> Result<Option<Coefficients>> {
    let loaded = Checkpoints::of(run).named("last")?;
    let weights = loaded.weights();
    if weights.values().map(|tensor| tensor.numel()).sum::<usize>() > MOST {
        return Ok(None);
    }
    let features = &loaded.state.features;
    let mut coefficients = Vec::new();
    for (name, tensor) in &weights {
        let values = Vec::<f64>::try_from(tensor.to_kind(tch::Kind::Double).view([-1]))
            .with_exit_code(ExitCode::Checkpoint, || name.clone())?;
        let size = tensor.size();
        let named = size.len() == 2 && size[1] as usize == features.len();
        for (at, value) in values.into_iter().enumerate() {
            let name = match (named, size.first()) {
                (true, Some(1)) => format!("{name}.{}", features[at]),
                (true, _) => format!("{name}.{}.{}", at / features.len(), features[at % features.len()]),
                _ => format!("{name}.{at}"),
            };
            coefficients.push((name, value));
        }
    }
    Ok(Some(coefficients))
}

/// Each coefficient as a line over the penalty, which falls from left to right; the largest in the end by
/// name; biases are left out. None where nothing moves.
fn lines(key: &str, points: &[(f64, Coefficients)]) -> Option<Lines> {
    let last = &points.last()?.1;
    let mut order: Vec<usize> = (0..last.len()).filter(|at| !last[*at].0.contains("bias")).collect();
    order.sort_by(|a, b| last[*b].1.abs().total_cmp(&last[*a].1.abs()));
    let all = order.len();
    order.truncate(LINES);
    let series: Vec<Series> = (order.iter().enumerate())
        .map(|(place, &at)| Series {
            name: last[at].0.rsplit("weight.").next().unwrap_or_default().to_owned(),
            class: format!("c{}{}", place % 8, if place / 8 % 2 == 1 { " dash" } else { "" }),
            points: points.iter().filter_map(|(x, of)| Some((*x, of.get(at)?.1))).collect(),
            named: place < MOST_DIRECT,
        })
        .collect();
    let moves = series.iter().any(|one| one.points.iter().any(|point| point.1 != one.points[0].1));
    let title = match all {
        0..=MOST_DIRECT => "coefficients".to_owned(),
        _ => format!("coefficients, the {MOST_DIRECT} largest of {all} by name"),
    };
    let log = spans_decades(points.iter().map(|point| point.0));
    let x_kind = if log { Kind::Log } else { Kind::Linear };
    moves.then(|| Lines {
        title,
        x: key.to_owned(),
        x_kind,
        falls: true,
        kind: Kind::Linear,
        series,
        direct: MOST_DIRECT,
    })
}

/// The figure of a sweep's folder, by its `path.csv`; None where there is none that can be read.
pub fn figure_of(folder: &Path) -> Option<Lines> {
    let mut reader = csv::Reader::from_path(folder.join(TABLE)).ok()?;
    let head = reader.headers().ok()?.clone();
    let names: Vec<String> = head.iter().skip(3).map(str::to_owned).collect();
    let rows: Vec<csv::StringRecord> = reader.records().map_while(Result::ok).collect();
    let first = rows.first()?;
    let same = |row: &&csv::StringRecord| (row.get(1), row.get(2)) == (first.get(1), first.get(2));
    let point = |row: &csv::StringRecord| {
        let values = row.iter().skip(3).map(|cell| cell.parse().unwrap_or(f64::NAN));
        Some((row.get(0)?.parse().ok()?, names.iter().cloned().zip(values).collect()))
    };
    let points: Vec<(f64, Coefficients)> = rows.iter().filter(same).filter_map(point).collect();
    lines(head.get(0)?, &points)
}
