//! The figures of a sweep: the mean score over one number, or as a heat map over two.

use serde_json::Value;

use super::choice::Standing;
use crate::plot::{Cell, Heat, Mean, Means, Ramp, digits, number, spans_decades};
use crate::sweep::interaction::{Separability, separability};

/// What the figures and the remarks of a sweep are made from.
pub struct View<'a> {
    /// That are varied.
    pub keys: Vec<&'a str>,
    /// Of them, those that go by the logarithm.
    pub log: Vec<bool>,
    pub metric: &'a str,
    pub higher_is_better: bool,
    /// Whether each seed deals its own folds of a cross-validation: more seeds leave the error as it is.
    pub folds_by_seed: bool,
    pub standings: Vec<&'a Standing>,
    /// The single scores of each standing; empty where they are not to be shown.
    pub scores: Vec<&'a [f64]>,
    /// Indices into `standings`.
    pub best: Option<usize>,
    pub one_standard_error: Option<usize>,
}

impl View<'_> {
    /// None where more than one number is varied, or fewer than two points have a mean.
    pub fn curve(&self) -> Option<String> {
        let ([key], [log]) = (self.keys.as_slice(), self.log.as_slice()) else { return None };
        let (mut means, mut from) = (Vec::new(), Vec::new());
        for (at, standing) in self.standings.iter().enumerate() {
            let (Some(x), Some(mean)) = (standing.point.first().and_then(Value::as_f64), standing.mean)
            else {
                continue;
            };
            from.push(at);
            let scores = self.scores.get(at).map_or_else(Vec::new, |scores| scores.to_vec());
            means.push(Mean { x, mean, error: standing.standard_error, scores });
        }
        let place = |at: Option<usize>| from.iter().position(|known| Some(*known) == at);
        let figure = Means {
            title: &format!("validation {}, mean ± standard error", self.metric),
            x: key,
            // A 0 beside them has a place of its own.
            log: *log || spans_decades(means.iter().map(|mean| mean.x).filter(|x| *x != 0.0)),
            best: place(self.best),
            one_standard_error: place(self.one_standard_error),
            means,
            higher_is_better: self.higher_is_better,
        };
        figure.svg()
    }

    /// A learning rate runs along the bottom. None where other than two keys are varied, or no point has a
    /// mean.
    pub fn heat(&self) -> Option<String> {
        let [first, _] = self.keys.as_slice() else { return None };
        let (row, column) = if first.ends_with("lr") { (1, 0) } else { (0, 1) };
        let (rows, columns) = (self.levels(row), self.levels(column));
        // Every point a level of its own, as random search draws them, is no grid.
        if rows.len() * columns.len() > 4 * self.standings.len() {
            return None;
        }
        let cell = |r: &Value, c: &Value| {
            let is_here = |standing: &&Standing| standing.point[row] == *r && standing.point[column] == *c;
            let Some(at) = self.standings.iter().position(is_here) else { return Cell::default() };
            let mean = self.standings[at].mean;
            let shown_mean = mean.map_or_else(|| "no score".to_owned(), number);
            Cell {
                value: mean,
                text: mean.map_or_else(|| "×".to_owned(), brief),
                title: format!(
                    "{}: {} {shown_mean}",
                    words(&self.keys, &self.standings[at].point),
                    self.metric
                ),
                chosen: self.best == Some(at),
            }
        };
        // The largest at the top, as on an axis.
        let cells = rows.iter().rev().map(|r| columns.iter().map(|c| cell(r, c)).collect()).collect();
        let figure = Heat {
            title: &format!("validation {}", self.metric),
            x: self.keys[column],
            y: self.keys[row],
            columns: columns.iter().map(shown).collect(),
            rows: rows.iter().rev().map(shown).collect(),
            cells,
            ramp: Ramp::Range { higher_is_better: self.higher_is_better },
        };
        figure.svg()
    }

    /// How far the two that are varied can be chosen one after the other; None unless they are a full grid.
    pub fn separability(&self) -> Option<Separability> {
        if self.keys.len() != 2 {
            return None;
        }
        let sign = if self.higher_is_better { -1.0 } else { 1.0 };
        let cell = |standing: &&Standing| {
            let [first, second] = standing.point.as_slice() else { return None };
            Some((first.as_f64()?, second.as_f64()?, sign * standing.mean?))
        };
        separability(&self.standings.iter().map(cell).collect::<Option<Vec<_>>>()?)
    }

    /// The values of a key, ascending.
    fn levels(&self, key: usize) -> Vec<Value> {
        let mut levels: Vec<Value> = Vec::new();
        for standing in &self.standings {
            if !levels.contains(&standing.point[key]) {
                levels.push(standing.point[key].clone());
            }
        }
        levels.sort_by(|a, b| a.as_f64().unwrap_or(f64::NAN).total_cmp(&b.as_f64().unwrap_or(f64::NAN)));
        levels
    }
}

/// Three digits, for the cell of a heat map.
fn brief(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || (0.001..100.0).contains(&size) => {
            let decimals = if size < 10.0 { 3 } else { 1 };
            format!("{value:.decimals$}").replacen('-', "−", 1)
        }
        _ => digits(value, 3),
    }
}

/// `l2 10⁻³, lr 0.1`: the last part of a key is enough to know it.
pub fn words<K: AsRef<str>>(keys: &[K], point: &[Value]) -> String {
    let last = |key: &K| key.as_ref().rsplit('.').next().unwrap_or_default().to_owned();
    let words = keys.iter().zip(point).map(|(key, value)| format!("{} {}", last(key), shown(value)));
    words.collect::<Vec<_>>().join(", ")
}

/// A value on an axis: three digits of a number, other values as they are.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Number(_) => value.as_f64().map_or_else(|| value.to_string(), |value| digits(value, 3)),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
