//! The outcome of a sweep: a table, JSON and CSV.

use anyhow::Result;
use serde_json::{Value, json};

use super::choice::{Choice, Standing, same_folds};
use super::{Design, Finished, format_value, plot};
use crate::util::terminal::{table, width};

/// What a sweep has found.
pub struct Outcome {
    pub metric: String,
    pub standings: Vec<Standing>,
    pub choice: Option<Choice>,
}

impl Outcome {
    pub(super) fn report(&self, design: &Design) -> Value {
        let row = |standing: &Standing| {
            json!({
                "point": design.named(&standing.point), "mean": standing.mean,
                "standard_error": standing.standard_error, "trials": standing.trials, "diverged": standing.diverged,
                "pruned": standing.pruned, "crashed": standing.crashed,
            })
        };
        let chosen = |at: Option<usize>| at.map(|at| row(&self.standings[at]));
        json!({
            "metric": self.metric,
            "higher_is_better": design.higher_is_better,
            "points": self.standings.iter().map(row).collect::<Vec<_>>(),
            "best": chosen(self.choice.map(|choice| choice.best)),
            "one_standard_error": chosen(self.choice.and_then(|choice| choice.one_standard_error)),
            "remarks": self.view(design).remarks(),
        })
    }

    pub fn view<'a>(&'a self, design: &'a Design) -> plot::View<'a> {
        plot::View {
            keys: design.keys(),
            log: design.axes.iter().map(|axis| axis.range.is_some_and(|range| range.log)).collect(),
            metric: &self.metric,
            higher_is_better: design.higher_is_better,
            folds_by_seed: design.folds.is_some() && !same_folds(&design.base),
            standings: self.standings.iter().collect(),
            scores: Vec::new(),
            best: self.choice.map(|choice| choice.best),
            one_standard_error: self.choice.and_then(|choice| choice.one_standard_error),
        }
    }

    /// A table: the best point is marked `*`, the one-standard-error point `+`.
    /// Keys are cut to their last parts where they would not fit so many columns.
    pub fn table(&self, design: &Design, columns: Option<usize>) -> String {
        let whole = self.table_of(design, |key| key);
        let fits = whole.lines().all(|line| width(line) <= columns.unwrap_or(usize::MAX));
        if fits { whole } else { self.table_of(design, |key| key.rsplit('.').next().unwrap_or(key)) }
    }

    fn table_of(&self, design: &Design, name: impl Fn(&str) -> &str) -> String {
        let mut head: Vec<&str> = design.axes.iter().map(|axis| name(&axis.key)).collect();
        head.extend([self.metric.as_str(), "± se", "trials", ""]);
        let mut rows = Vec::with_capacity(self.standings.len());
        for (at, standing) in self.standings.iter().enumerate() {
            let mut row: Vec<String> = standing.point.iter().map(format_value).collect();
            let number = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.5}"));
            row.push(match standing {
                Standing { diverged: 1.., .. } => "diverged".into(),
                Standing { crashed: 1.., .. } => "crashed".into(),
                Standing { pruned: 1.., .. } => "pruned".into(),
                _ => number(standing.mean),
            });
            row.push(number(standing.standard_error));
            row.push(standing.all().to_string());
            let best = self.choice.is_some_and(|choice| choice.best == at);
            let simple = self.choice.is_some_and(|choice| choice.one_standard_error == Some(at));
            row.push([if best { "*" } else { "" }, if simple { "+" } else { "" }].concat());
            rows.push(row);
        }
        table(&head, 0, rows)
    }
}

/// `trials.csv`, a row per trial.
pub(super) fn csv(design: &Design, finished: &[Finished]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut head = vec!["trial".to_owned()];
    head.extend(design.axes.iter().map(|axis| axis.key.clone()));
    head.extend(["seed", "fold", "ending", "epoch", design.metric.as_str(), "seconds"].map(str::to_owned));
    writer.write_record(&head)?;
    for one in finished {
        let mut row = vec![one.trial.to_string()];
        row.extend(design.axes.iter().map(|axis| {
            let value = one.point.get(&axis.key).cloned().unwrap_or_default();
            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
        }));
        let ending = serde_json::to_value(one.ending)?;
        row.extend([
            one.seed.to_string(),
            one.fold.map_or_else(String::new, |fold| fold.to_string()),
            ending.as_str().unwrap_or_default().to_owned(),
            one.epoch.map_or_else(String::new, |epoch| epoch.to_string()),
            one.score.map_or_else(String::new, |score| score.to_string()),
            format!("{:.3}", one.seconds),
        ]);
        writer.write_record(&row)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}
