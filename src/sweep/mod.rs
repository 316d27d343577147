//! Sweeps: the design, the trials that run it, and the choice among their results.

pub mod choice;
mod design;
mod display;
mod folder;
mod interaction;
mod outcome;
pub mod path;
pub mod plot;
pub mod prune;
mod remarks;
pub mod runner;
pub mod search;
pub mod search_space;
pub mod spec;
pub mod worker;

use serde_json::{Map, Value};

pub use design::{Design, Ending, Finished, Trial};
pub use folder::Folder;
pub use outcome::Outcome;

/// `penalty.l2=0.01, seed=3`.
pub fn join_pairs(point: &Map<String, Value>) -> String {
    let words: Vec<_> = point.iter().map(|(key, value)| format!("{key}={}", format_value(value))).collect();
    words.join(", ")
}

/// A value in a table: four digits of a number, to be typed after `--set` again (figures write it as
/// [`plot::shown`] does); other values as they are.
pub fn format_value(value: &Value) -> String {
    match value.as_f64() {
        Some(number) if !value.is_i64() && !value.is_u64() => {
            let scientific = format!("{number:.3e}");
            let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
            match number == 0.0 || (1e-3..1e4).contains(&number.abs()) {
                true => format!("{}", (number * 1e6).round() / 1e6),
                false => format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.')),
            }
        }
        _ => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    }
}
