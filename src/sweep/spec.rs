//! `sweep:` in a config: what `tikhonov sweep` varies and how it chooses. Other commands pass over it.

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::prune::Prune;
use super::search::Search;
use crate::sweep::search_space::Axis;
use crate::util::yaml::Document;

/// The key of the section.
pub const KEY: &str = "sweep";

/// What the command line says wins over it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SweepSpec {
    /// By key: `1e-6:1e-1:log:9`, or a list of values.
    pub over: Map<String, Value>,
    pub search: Search,
    /// Points of a random search or of TPE.
    pub trials: Option<u32>,
    pub seeds: Option<u32>,
    pub folds: Option<u32>,
    pub metric: Option<String>,
    pub prune: Option<Prune>,
    pub final_fit: Option<FinalFit>,
    pub path: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
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
