//! Renaming rules for the tensors of a file: `REGEX=>REPLACEMENT`.

use std::fmt;

use anyhow::Result;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::util::exit_code::{ExitCode, fail};

/// A regular expression and its replacement: `^net\.(\d+)=>layers.$1`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "=>"))]
pub struct Rule {
    regex: Regex,
    replacement: String,
}

impl TryFrom<String> for Rule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.to_string()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}=>{}", self.regex.as_str(), self.replacement)
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl std::str::FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, replacement) = text.split_once("=>").ok_or("expected REGEX=>REPLACEMENT")?;
        let regex = Regex::new(pattern).map_err(|error| error.to_string())?;
        Ok(Self { regex, replacement: replacement.to_owned() })
    }
}

impl Rule {
    /// Replaces in every name; exit 2 where the pattern fits none of them.
    pub fn apply(&self, names: &mut [String]) -> Result<()> {
        if !names.iter().any(|name| self.regex.is_match(name)) {
            let first = names.first().map_or("", String::as_str);
            let message = format!(
                "rename {:?} fits no name; the first one in the file is {first:?}",
                self.regex.as_str()
            );
            return Err(fail(ExitCode::Usage, message));
        }
        for name in names {
            *name = self.regex.replace_all(name, self.replacement.as_str()).into_owned();
        }
        Ok(())
    }
}
