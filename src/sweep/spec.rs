//! `sweep:` in a config: what `tikhonov sweep` varies and how it chooses. Other commands pass over it.

use anyhow::Result;
use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::prune::Prune;
use super::search::Search;
use crate::sweep::search_space::Axis;
use crate::util::yaml::Document;

/// The key of the section.
pub const KEY: &str = "sweep";

/// What `tikhonov sweep` varies. Options of the command line override it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SweepSpec {
    /// What varies: for each key of the config a list of values, or a range such as `1e-6:1e-1:log:9`
    /// (LOW:HIGH:SCALE:COUNT; `log`, `lin`, `int` or `logint`).
    pub over: Map<String, Value>,
    /// How points are chosen.
    pub search: Search,
    /// Points of a random search or of TPE.
    #[schemars(range(min = 1, max = 10000))]
    pub trials: Option<u32>,
    /// Train each point with so many seeds.
    #[schemars(range(min = 1, max = 10000))]
    pub seeds: Option<u32>,
    /// Judge each point by cross-validation with so many folds instead of by the validation set.
    #[schemars(range(min = 2, max = 10000))]
    pub folds: Option<u32>,
    /// The validation metric that decides; the task's main metric when absent.
    pub metric: Option<String>,
    /// Give up trials that do badly.
    pub prune: Option<Prune>,
    /// With `folds`: which point is trained once more on all training data at the end. `best` when absent.
    pub final_fit: Option<FinalFit>,
    /// Go from the strongest penalty to the weakest, each fit from the one before, as scikit-learn's
    /// `lasso_path`.
    pub path: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinalFit {
    Best,
    /// The strongest penalty within one standard error of the best
    OneSe,
    None,
}

impl SweepSpec {
    /// The section of `document`, or the defaults where it has none.
    pub fn of(document: &Document) -> Result<Self> {
        let spec: Self = document.decode_at(KEY)?;
        let refuse = |key: &str, message: &str| Err(document.error_at(&format!("{KEY}.{key}"), message));
        for (key, number, least) in
            [("trials", spec.trials, 1), ("seeds", spec.seeds, 1), ("folds", spec.folds, 2)]
        {
            if number.is_some_and(|number| !(least..=10_000).contains(&number)) {
                return refuse(key, &format!("must be {least} to 10,000"));
            }
        }
        Ok(spec)
    }

    pub fn axes(&self, document: &Document) -> Result<Vec<Axis>> {
        let axis = |(key, value): (&String, &Value)| {
            let read = match value {
                Value::Array(values) if !values.is_empty() => Axis::listed(key.clone(), values.clone()),
                Value::String(text) => {
                    Axis::parse(&format!("{key}={text}")).map_err(|error| error.to_string())
                }
                _ => Err("expected LOW:HIGH:log:COUNT (or lin, int, logint) or a list of values".to_owned()),
            };
            read.map_err(|message| document.error_at(&format!("{KEY}.over"), message))
        };
        self.over.iter().map(axis).collect()
    }
}
