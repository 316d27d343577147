//! Confusion matrices, and precision, recall and F1 per class.

use std::fmt::Write;

use serde_json::Value;

use super::{Group, plain_figure, section as framed, table};
use crate::plot::png::can_write;
use crate::plot::{Cell, Heat, Ramp, escape, number, short};
use crate::report::history::History;

/// Runs that are shown, and classes that a matrix can show.
const RUNS: usize = 4;
const CLASSES: usize = 120;
/// Confusions that are listed where there are more classes.
const WORST: usize = 20;

pub fn section(group: &Group) -> String {
    let shown: Vec<(&History, Matrix)> =
        group.runs.iter().filter_map(|run| Some((*run, Matrix::of(run)?))).collect();
    let mut content = String::new();
    for (run, matrix) in shown.iter().take(RUNS) {
        if shown.len() > 1 {
            let _ = writeln!(content, "<h3>{}</h3>", escape(&run.name));
        }
        let _ = writeln!(content, "<div class=\"classes\">\n{}{}</div>", matrix.figure(), matrix.scores());
    }
    let (split, weights) = shown.first().map_or(("", ""), |(_, matrix)| (matrix.split, matrix.weights));
    let mut note = format!("On the {split} set, with the {weights} weights.");
    if shown.iter().any(|(_, matrix)| !matrix.counts.is_empty()) {
        note += " Rows: truth; columns: prediction.";
    }
    if shown.len() > RUNS {
        let _ = write!(note, " The first {RUNS} of {} runs.", shown.len());
    }
    framed("Classes", &note, &content)
}

/// The matrix of a run by itself.
pub(super) fn matrix(run: &History) -> Option<String> {
    let mut matrix = Matrix::of(run)?;
    // The font that comes along has Latin, Greek and Cyrillic letters and some others: not those of Chinese,
    // Japanese, Korean.
    if !matrix.names.iter().all(|name| can_write(name)) {
        matrix.names = (0..matrix.names.len()).map(|class| class.to_string()).collect();
        matrix.legend = " (names: confusion.json)";
    }
    matrix.heat()
}

struct Matrix {
    split: &'static str,
    weights: &'static str,
    names: Vec<String>,
    /// `[truth][prediction]`
    counts: Vec<Vec<u64>>,
    report: Value,
    /// Beside the name of the axis.
    legend: &'static str,
}

impl Matrix {
    /// Of the best weights where there are any, on the validation set where there is one.
    fn of(run: &History) -> Option<Self> {
        let shown = [("best", "validation"), ("last", "validation"), ("best", "test"), ("last", "test")];
        let (weights, split) =
            shown.into_iter().find(|(weights, split)| run.confusion[*weights][*split].is_object())?;
        let report = run.confusion[weights][split].clone();
        let counts: Vec<Vec<u64>> = serde_json::from_value(report["confusion"].clone()).ok()?;
        // Classes that do not exclude each other have scores alone.
        let classes = report["per_class"].as_array().map_or(0, Vec::len);
        if classes == 0 || counts.iter().any(|row| row.len() != counts.len()) {
            return None;
        }
        let name = |class: usize| {
            run.confusion["classes"][class].as_str().map_or_else(|| class.to_string(), str::to_owned)
        };
        let names = (0..classes).map(name).collect();
        Some(Self { split, weights, names, counts, report, legend: "" })
    }

    fn figure(&self) -> String {
        self.heat().map_or_else(|| self.worst(), |svg| plain_figure(&svg))
    }

    /// None for more classes than a matrix can show.
    fn heat(&self) -> Option<String> {
        if self.counts.is_empty() || self.counts.len() > CLASSES {
            return None;
        }
        let cells = self.counts.iter().enumerate().map(|(truth, row)| {
            let all: u64 = row.iter().sum();
            let cell = |(taken, count): (usize, &u64)| Cell {
                value: Some(if all == 0 { 0.0 } else { *count as f64 / all as f64 }),
                text: if *count == 0 { String::new() } else { count.to_string() },
                title: format!("{} predicted as {}: {count} of {all}", self.names[truth], self.names[taken]),
                chosen: false,
            };
            row.iter().enumerate().map(cell).collect()
        });
        let most = if self.counts.len() > 12 { 12 } else { 14 };
        let x = format!("prediction{}", self.legend);
        let heat = Heat {
            title: "confusion",
            x: &x,
            y: "truth",
            columns: self.names.clone(),
            rows: self.names.iter().map(|name| short(name, most)).collect(),
            cells: cells.collect(),
            ramp: Ramp::Share,
        };
        heat.svg()
    }

    fn worst(&self) -> String {
        if self.counts.is_empty() {
            return String::new();
        }
        let mut pairs: Vec<(u64, usize, usize)> = Vec::new();
        for (truth, row) in self.counts.iter().enumerate() {
            pairs.extend(
                row.iter()
                    .enumerate()
                    .filter(|(at, n)| *at != truth && **n > 0)
                    .map(|(at, n)| (*n, truth, at)),
            );
        }
        pairs.sort_by(|a, b| b.cmp(a));
        let row = |(count, truth, taken): &(u64, usize, usize)| {
            vec![escape(&self.names[*truth]), escape(&self.names[*taken]), count.to_string()]
        };
        let rows: Vec<Vec<String>> = pairs.iter().take(WORST).map(row).collect();
        table(&[("truth", false), ("prediction", false), ("times", true)], &rows)
    }

    fn scores(&self) -> String {
        let rows: Vec<Vec<String>> = (self.names.iter().enumerate())
            .map(|(class, name)| {
                let own = &self.report["per_class"][class];
                let bar = |key: &str| {
                    own[key].as_f64().map_or_else(
                        || "—".to_owned(),
                        |share| format!("<span class=\"bar\" style=\"--v:{share:.4}\">{share:.3}</span>"),
                    )
                };
                let support = own["support"].as_f64().map_or_else(|| "—".into(), number);
                vec![escape(name), bar("precision"), bar("recall"), bar("f1"), support]
            })
            .collect();
        let head = [("class", false), ("precision", true), ("recall", true), ("F1", true), ("samples", true)];
        table(&head, &rows)
    }
}
