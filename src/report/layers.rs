//! How each layer's weights grow and thin out over time, run by run.

use super::{Group, figure, section as framed};
use crate::plot::{DIRECT, Kind, Lines, Series, class};
use crate::report::history::History;

/// Runs that are shown layer by layer; what differs among more is better seen in the sums.
const RUNS: usize = 6;

pub fn section(group: &Group) -> String {
    let shown: Vec<&&History> = group
        .runs
        .iter()
        .filter(|run| run.epochs.iter().any(|record| record["layers"].is_object()))
        .collect();
    let figures = shown.iter().take(RUNS).flat_map(|run| {
        let name = if shown.len() > 1 { format!(", {}", run.name) } else { String::new() };
        [of(run, "norm", &name), of(run, "zeros", &name)]
    });
    let content: String = figures.flatten().collect();
    if content.is_empty() {
        return String::new();
    }
    let mut note = "From the first layer, violet, to the last, yellow.".to_owned();
    if shown.len() > RUNS {
        note += &format!(" The first {RUNS} of {} runs.", shown.len());
    }
    framed("Layers", &note, &format!("<div class=\"grid\">\n{content}</div>\n"))
}

fn of(run: &History, what: &str, whose: &str) -> Option<String> {
    lines(run, what, whose)?.draw().map(|drawn| figure(&drawn))
}

/// `what` is `norm` or `zeros`. None where there is nothing to tell.
pub(super) fn lines(run: &History, what: &str, whose: &str) -> Option<Lines> {
    let names: Vec<&String> =
        run.epochs.iter().rev().find_map(|record| record["layers"].as_object())?.keys().collect();
    let series = |(index, name): (usize, &&String)| Series {
        name: name.strip_suffix(".weight").unwrap_or(name).to_owned(),
        class: class(index, names.len(), true),
        points: run.over_epochs(|record| record.get("layers")?.get(name.as_str())?.get(what)),
        named: true,
    };
    let series: Vec<Series> = names.iter().enumerate().map(series).collect();
    let is_dense = series.iter().all(|series| series.points.iter().all(|point| point.1 == 0.0));
    if what == "zeros" && is_dense {
        return None;
    }
    let title = if what == "norm" { "‖w‖₂ of each layer" } else { "share of zeros in each layer" };
    let title = format!("{title}{whose}");
    Some(Lines {
        title,
        x: "epochs".into(),
        x_kind: Kind::Count,
        falls: false,
        kind: Kind::Linear,
        series,
        direct: DIRECT,
    })
}
