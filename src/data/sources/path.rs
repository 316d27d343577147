//! Paths in a config: relative to the current folder, with `${NAME}` and `${NAME:-default}` references.

use std::path::PathBuf;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::util::exit_code::{ExitCode, fail};
use crate::util::regular_file;
use crate::util::yaml::{Invalid, expand_env};

/// A path; relative ones start at the current folder. `${NAME}` and `${NAME:-default}` are environment
/// variables.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("format" = "path"))]
pub struct FilePath(pub String);

/// One path or several.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(untagged, expecting = "expected a path, or a list of paths")]
pub enum FilePaths {
    One(FilePath),
    Several(Vec<FilePath>),
}

impl FilePath {
    /// The path with its environment references replaced.
    pub fn resolve(&self) -> Result<PathBuf> {
        expand_env(&self.0).map(PathBuf::from).map_err(|message| fail(ExitCode::Usage, message))
    }

    /// The path of an existing file, declared under `key`.
    pub fn file(&self, key: &str) -> Result<PathBuf, Invalid> {
        let path = self.expanded(key)?;
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => {
                Err(Invalid::new(key, format!("{} is a folder, not a file", path.display())))
            }
            Ok(metadata) => match regular_file::what(&metadata) {
                None => Ok(path),
                Some(what) => {
                    Err(Invalid::new(key, format!("{} is {what}; give a regular file", path.display())))
                }
            },
            Err(error) => Err(missing(key, "file", &path, &error)),
        }
    }

    /// The path of an existing folder, declared under `key`.
    pub fn folder(&self, key: &str) -> Result<PathBuf, Invalid> {
        let path = self.expanded(key)?;
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => Ok(path),
            Ok(_) => Err(Invalid::new(key, format!("{} is a file, not a folder", path.display()))),
            Err(error) => Err(missing(key, "folder", &path, &error)),
        }
    }

    fn expanded(&self, key: &str) -> Result<PathBuf, Invalid> {
        expand_env(&self.0).map(PathBuf::from).map_err(|message| Invalid::new(key, message))
    }
}

impl FilePaths {
    pub fn iter(&self) -> impl Iterator<Item = &FilePath> {
        match self {
            Self::One(path) => std::slice::from_ref(path).iter(),
            Self::Several(paths) => paths.iter(),
        }
    }

    /// Checks that every file exists, and that there is one.
    pub fn validate(&self, key: &str) -> Result<(), Invalid> {
        if self.iter().next().is_none() {
            return Err(Invalid::new(key, "names no file"));
        }
        for (index, path) in self.iter().enumerate() {
            path.file(&match self {
                Self::One(_) => key.to_owned(),
                Self::Several(_) => format!("{key}.{index}"),
            })?;
        }
        Ok(())
    }
}

fn missing(key: &str, what: &str, path: &std::path::Path, error: &std::io::Error) -> Invalid {
    let reason = match error.kind() {
        std::io::ErrorKind::NotFound => format!("there is no {what} {}", path.display()),
        _ => format!("{}: {error}", path.display()),
    };
    let remedy = if path.is_relative() { "; relative paths start at the current folder" } else { "" };
    Invalid::new(key, reason + remedy)
}
