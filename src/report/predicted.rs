//! What regressions predicted against what was true.

use std::path::Path;

use super::{Group, figure, section as framed};
use crate::config::PREDICTIONS_FILE;
use crate::plot::{Kind, Lines, Series, escape};
use crate::report::history::History;

/// Points of a figure, evenly from the file; outputs that get one.
const POINTS: usize = 400;
const OUTPUTS: usize = 4;

pub fn section(group: &Group) -> String {
    let mut content = String::new();
    for run in &group.runs {
        let figures: String = figures(run).iter().filter_map(|lines| Some(figure(&lines.draw()?))).collect();
        if figures.is_empty() {
            continue;
        }
        if group.runs.len() > 1 {
            content += &format!("<h3>{}</h3>\n", escape(&run.name));
        }
        content += &format!("<div class=\"grid\">\n{figures}</div>\n");
    }
    let note = format!(
        "Of the test set, else the validation set, by the weights that the run hands out; all numbers: {PREDICTIONS_FILE}."
    );
    framed("Predicted against true", &note, &content)
}

/// One figure for each of the first outputs; none where the run has no such file.
pub(super) fn figures(run: &History) -> Vec<Lines> {
    let Some(rows) = rows(&run.path) else { return Vec::new() };
    let outputs = rows.first().map_or(0, |row| row.len() / 2);
    let every = rows.len().div_ceil(POINTS).max(1);
    (0..outputs.min(OUTPUTS))
        .filter_map(|output| {
            let pairs: Vec<(f64, f64)> =
                rows.iter().step_by(every).map(|row| (row[2 * output], row[2 * output + 1])).collect();
            let all = || pairs.iter().flat_map(|pair| [pair.0, pair.1]);
            let (low, high) = (all().reduce(f64::min)?, all().reduce(f64::max)?);
            let mut series = vec![Series {
                name: "equal".into(),
                class: "c6 dash".into(),
                points: vec![(low, low), (high, high)],
                named: false,
            }];
            series.extend(pairs.iter().map(|&pair| Series {
                name: String::new(),
                class: "c0".into(),
                points: vec![pair],
                named: false,
            }));
            let title = if outputs > 1 { format!("Predicted y{output}") } else { "Predicted".to_owned() };
            let (x, x_kind, kind) = ("true".into(), Kind::Linear, Kind::Linear);
            Some(Lines { title, x, x_kind, falls: false, kind, series, direct: 0 })
        })
        .collect()
}

/// None where there is no such file.
fn rows(run: &Path) -> Option<Vec<Vec<f64>>> {
    let mut reader = csv::Reader::from_path(run.join(PREDICTIONS_FILE)).ok()?;
    let row = |record: csv::StringRecord| -> Vec<f64> {
        record.iter().map(|cell| cell.parse().unwrap_or(f64::NAN)).collect()
    };
    let rows: Vec<_> = reader.records().map_while(Result::ok).map(row).collect();
    let width = rows.first()?.len();
    rows.iter().all(|row| row.len() == width && row.iter().all(|value| value.is_finite())).then_some(rows)
}
