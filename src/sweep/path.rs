//! The λ path of a convex problem: from the strongest penalty to the weakest, each trial from the weights of the one before
//! (Friedman, Hastie and Tibshirani 2010), and its coefficients as a table and a picture.

use std::fmt::Write;

use anyhow::Result;
use serde_json::Value;

use super::over::{Axis, Point};
use super::{Design, Ending, Finished, Folder, Trial, shown};
use crate::checkpoint::Checkpoints;
use crate::exit::{Exit, OrExit, fail};
use crate::figure;

/// Coefficients of a table; a network with more has no path that one could read.
const MOST: usize = 2000;
/// Lines of a picture.
const LINES: usize = 40;

/// The points in the order of the path. Exit 2 unless one number is varied.
pub fn ordered(axes: &[Axis], mut points: Vec<Point>) -> Result<Vec<Point>> {
    let number = |point: &Point| point.first().and_then(Value::as_f64);
    if axes.len() != 1 || points.iter().any(|point| number(point).is_none()) {
        return Err(fail(
            Exit::Usage,
            "--path goes along one number: vary one key, such as penalty.l1=1:1e-4:log:50",
        ));
    }
    points.sort_by(|a, b| number(b).partial_cmp(&number(a)).unwrap_or(std::cmp::Ordering::Equal));
    Ok(points)
}

/// Where `trial` starts: at the last weights of the nearest stronger penalty, same seed and fold, that came through.
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

/// Writes `path.csv`, and `path.svg` and `path.png` of the first seed and fold. Networks of more than 2000 coefficients
/// have none.
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
    folder.write("path.csv", &String::from_utf8(table.into_inner()?)?)?;
    let chain: Vec<_> = rows.iter().filter(|(one, _)| one.trial % design.per_point() == 0).collect();
    let points: Vec<(f64, &Coefficients)> =
        chain.iter().filter_map(|(one, of)| Some((one.point[&axis.key].as_f64()?, of))).collect();
    if let Some(drawing) = drawing(axis, &points) {
        folder.write("path.svg", &drawing)?;
        folder.write_bytes("path.png", &figure::png(&drawing)?)?;
    }
    Ok(())
}

/// None where there are too many.
fn coefficients(run: &std::path::Path) -> Result<Option<Coefficients>> {
    let loaded = Checkpoints::of(run).named("last")?;
    let weights = loaded.weights();
    if weights.values().map(|tensor| tensor.numel()).sum::<usize>() > MOST {
        return Ok(None);
    }
    let features = &loaded.state.features;
    let mut coefficients = Vec::new();
    for (name, tensor) in &weights {
        let values = Vec::<f64>::try_from(tensor.to_kind(tch::Kind::Double).view([-1]))
            .or_exit(Exit::Checkpoint, || name.clone())?;
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

const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#b5568c", "#b98300", "#3a9bd6", "#5b5b5b", "#7a4ea0"];

/// Each coefficient as a line over the penalty, which falls from left to right; biases are left out.
fn drawing(axis: &Axis, points: &[(f64, &Coefficients)]) -> Option<String> {
    let (width, height, left, right, top, bottom) = (640.0, 400.0, 70.0, 150.0, 20.0, 50.0);
    let log = axis.range.is_some_and(|range| range.log);
    let place = |value: f64| if log { value.ln() } else { value };
    let (first, last) = (place(points.first()?.0), place(points.last()?.0));
    let names: Vec<(usize, &String)> = (points[0].1.iter().map(|(name, _)| name).enumerate())
        .filter(|(_, name)| !name.contains("bias"))
        .take(LINES)
        .collect();
    let values = points.iter().flat_map(|(_, of)| names.iter().map(|&(at, _)| of[at].1));
    let (low, high) = values.fold((0.0f64, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    if first == last || low == high {
        return None;
    }
    let x = |value: f64| left + (place(value) - first) / (last - first) * (width - left - right);
    let y = |value: f64| top + (high - value) / (high - low) * (height - top - bottom);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>svg{{background:#fff;color:#222}}@media(prefers-color-scheme:dark){{svg{{background:#16181c;color:#ddd}}}}\
         text{{fill:currentColor}}.axis{{stroke:currentColor;opacity:.35}}</style>\n"
    );
    // Writing into a String cannot fail.
    for step in 0..=4 {
        let value = low + (high - low) * f64::from(step) / 4.0;
        let (at, end, text) = (y(value), width - right, left - 8.0);
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{left}\" x2=\"{end}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{text}\" y=\"{:.1}\" text-anchor=\"end\">{value:.3}</text>",
            at + 4.0
        );
    }
    for (value, _) in points.iter().step_by(points.len().div_ceil(7)) {
        let text = shown(&(*value).into());
        let at = height - bottom + 18.0;
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{at}\" text-anchor=\"middle\">{text}</text>", x(*value));
    }
    let middle = (left + width - right) / 2.0;
    let key = axis.key.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{key}</text>", height - 10.0);
    for (place, &(at, name)) in names.iter().enumerate() {
        let color = COLORS[place % COLORS.len()];
        let line: Vec<_> =
            points.iter().map(|(value, of)| format!("{:.1},{:.1}", x(*value), y(of[at].1))).collect();
        let name = name.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"><title>{name}</title></polyline>",
            line.join(" ")
        );
        if names.len() <= 20 {
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" style=\"fill:{color}\" font-size=\"11\">{name}</text>",
                width - right + 8.0,
                top + 12.0 + 17.0 * place as f64
            );
        }
    }
    Some(svg + "</svg>\n")
}
