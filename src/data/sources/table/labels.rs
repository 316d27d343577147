//! What the label columns of a table say: one class, any number of classes, or numbers.

use std::collections::HashMap;

use anyhow::Result;
use tch::Tensor;

use super::TableSpec;
use super::rows::{Cell, Rows};
use crate::data::Targets;
use crate::data::sources::cell::ordered_classes;
use crate::data::sources::npy::TargetKind;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::nearest;

impl TableSpec {
    /// The targets of the taken rows, the names of the classes, and how the cells were read. `columns` are places
    /// in `rows`, `names` those of the columns.
    pub fn targets(
        &self,
        rows: &Rows,
        columns: &[usize],
        names: &[String],
        taken: &[usize],
    ) -> Result<(Targets, Vec<String>, Option<String>)> {
        let (kind, note) = match self.targets {
            Some(kind) => (kind, None),
            None => self.kind(rows, columns, names, taken),
        };
        let (targets, classes) = match (kind, columns) {
            (TargetKind::Values, _) => (values(rows, columns, names, taken)?, Vec::new()),
            (TargetKind::Classes, &[column]) => self.one_class(rows, column, &names[0], taken)?,
            (TargetKind::Classes, _) => {
                let message = format!(
                    "{}: a sample has one class, in one column, and `label` names {}; say `targets: multi_label` where \
                     each is a class of its own",
                    rows.path().display(),
                    columns.len()
                );
                return Err(fail(ExitCode::Usage, message));
            }
            (TargetKind::MultiLabel, &[column]) => self.several_classes(rows, column, &names[0], taken)?,
            (TargetKind::MultiLabel, columns) => {
                (zeros_and_ones(rows, columns, names, taken)?, names.to_vec())
            }
        };
        Ok((targets, classes, note))
    }

    /// What the cells are where nothing is said.
    fn kind(
        &self,
        rows: &Rows,
        columns: &[usize],
        names: &[String],
        taken: &[usize],
    ) -> (TargetKind, Option<String>) {
        let cells =
            || taken.iter().flat_map(|&row| columns.iter().map(move |&column| rows.cell(row, column)));
        let texts = || {
            cells().map(|cell| match cell {
                Cell::Text(text) => &**text,
                _ => "",
            })
        };
        let is_list = self.separator.is_some() || cells().any(|cell| matches!(cell, Cell::List(_)));
        if is_list {
            return (TargetKind::MultiLabel, None);
        }
        if columns.len() > 1 {
            let flags = texts().all(|text| flag(text).is_some());
            return match flags {
                true => {
                    let note = format!("columns {}: zeros and ones, a class each", names.join(", "));
                    (TargetKind::MultiLabel, Some(note + " (`targets: values` takes them as numbers)"))
                }
                false => (TargetKind::Values, None),
            };
        }
        let filled = || texts().filter(|text| !text.is_empty());
        let is_whole = |text: &str| text.parse::<i64>().is_ok();
        if names.first().is_some_and(|name| rows.class_names(name).is_some()) {
            return (TargetKind::Classes, None);
        }
        if filled().all(is_whole) {
            let note = "whole numbers, a class each (`targets: values` takes them as numbers)";
            return (TargetKind::Classes, Some(format!("column `{}`: {note}", names[0])));
        }
        let is_number = |text: &str| text.parse::<f64>().is_ok_and(f64::is_finite);
        match filled().all(is_number) {
            true => {
                let note = "numbers (`targets: classes` takes each as a class)";
                (TargetKind::Values, Some(format!("column `{}`: {note}", names[0])))
            }
            false => (TargetKind::Classes, None),
        }
    }

    fn one_class(
        &self,
        rows: &Rows,
        column: usize,
        name: &str,
        taken: &[usize],
    ) -> Result<(Targets, Vec<String>)> {
        let labels = taken.iter().map(|&row| rows.text(row, column, name)).collect::<Result<Vec<_>>>()?;
        let index = self.classes_of(rows, name, &labels)?;
        let mut numbers = Vec::with_capacity(taken.len());
        for (label, &row) in labels.iter().zip(taken) {
            numbers.push(index.find(label).ok_or_else(|| index.refuse(rows, row, name, label))?);
        }
        Ok((Targets::Classes(numbers), index.names))
    }

    fn several_classes(
        &self,
        rows: &Rows,
        column: usize,
        name: &str,
        taken: &[usize],
    ) -> Result<(Targets, Vec<String>)> {
        let mut all: Vec<Vec<String>> = Vec::with_capacity(taken.len());
        for &row in taken {
            all.push(match (rows.cell(row, column), &self.separator) {
                (Cell::Empty, _) => Vec::new(),
                (Cell::List(items), _) => items.iter().map(|item| item.to_string()).collect(),
                (Cell::Text(text), Some(separator)) => {
                    let parts = text.split(separator.as_str()).map(str::trim);
                    parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
                }
                (Cell::Text(text), None) => vec![text.to_string()],
                (Cell::Other | Cell::Picture, _) => {
                    return Err(rows.refuse(row, name, "holds neither text nor a list"));
                }
            });
        }
        let mut labels: Vec<String> = all.iter().flatten().cloned().collect();
        labels.sort();
        labels.dedup();
        let index = self.classes_of(rows, name, &labels)?;
        let width = index.names.len();
        let mut ys = vec![0f32; taken.len() * width];
        for ((labels, ys), &row) in all.iter().zip(ys.chunks_mut(width.max(1))).zip(taken) {
            for label in labels {
                let class = index.find(label).ok_or_else(|| index.refuse(rows, row, name, label))?;
                ys[class as usize] = 1.0;
            }
        }
        if width == 0 {
            let message = format!("{}: no row has a label in column `{name}`", rows.path().display());
            return Err(fail(ExitCode::Data, message));
        }
        let ys = Tensor::f_from_slice(&ys)?.f_view([taken.len() as i64, width as i64])?;
        Ok((Targets::MultiLabel(ys), index.names))
    }

    /// The classes of `labels`, as declared or as they occur.
    fn classes_of(&self, rows: &Rows, column: &str, labels: &[String]) -> Result<Classes> {
        let known = match &self.classes {
            Some(declared) => Some(declared.read()?),
            None => rows.class_names(column),
        };
        let is_declared = known.is_some();
        let names = match known {
            Some(names) => names,
            None => ordered_classes(labels, &rows.path())?,
        };
        let index = names.iter().cloned().zip(0..).collect();
        let classes = Classes { index, by_number: false, names };
        // Numbers that the declared names belong to.
        let by_number = is_declared && labels.iter().all(|label| !classes.index.contains_key(label));
        Ok(Classes { by_number, ..classes })
    }
}

struct Classes {
    names: Vec<String>,
    index: HashMap<String, i64>,
    by_number: bool,
}

impl Classes {
    fn find(&self, label: &str) -> Option<i64> {
        match self.by_number {
            true => label.parse().ok().filter(|number| (0..self.names.len() as i64).contains(number)),
            false => self.index.get(label).copied(),
        }
    }

    fn refuse(&self, rows: &Rows, row: usize, column: &str, label: &str) -> anyhow::Error {
        let near = nearest(label, self.names.iter().map(String::as_str));
        let hint = near.map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
        let what = match label.parse::<i64>() {
            Ok(_) if self.by_number => {
                format!(
                    "is {label}, and the {} classes have the numbers 0 to {}",
                    self.names.len(),
                    self.names.len() as i64 - 1
                )
            }
            _ => format!("holds `{label}`, which `classes` does not list{hint}"),
        };
        rows.refuse(row, column, &format!("{what}; add it, or mend the row"))
    }
}

fn flag(text: &str) -> Option<f32> {
    match text {
        "0" | "0.0" | "false" | "False" => Some(0.0),
        "1" | "1.0" | "true" | "True" => Some(1.0),
        _ => None,
    }
}

fn zeros_and_ones(rows: &Rows, columns: &[usize], names: &[String], taken: &[usize]) -> Result<Targets> {
    let mut ys = Vec::with_capacity(taken.len() * columns.len());
    for &row in taken {
        for (&column, name) in columns.iter().zip(names) {
            let text = rows.text(row, column, name)?;
            let what =
                || format!("holds `{text}`, and 0 or 1 says whether a sample is of the class; mend the row");
            ys.push(flag(&text).ok_or_else(|| rows.refuse(row, name, &what()))?);
        }
    }
    let size = [taken.len() as i64, columns.len() as i64];
    Ok(Targets::MultiLabel(Tensor::f_from_slice(&ys)?.f_view(size)?))
}

fn values(rows: &Rows, columns: &[usize], names: &[String], taken: &[usize]) -> Result<Targets> {
    let mut ys = Vec::with_capacity(taken.len() * columns.len());
    for &row in taken {
        for (&column, name) in columns.iter().zip(names) {
            let text = rows.text(row, column, name)?;
            let number = text.parse::<f64>().ok().filter(|value| value.is_finite());
            let what = || {
                format!(
                    "holds `{text}`, not a finite number; mend or remove the row, or say `targets: classes` where it \
                     names classes"
                )
            };
            ys.push(number.ok_or_else(|| rows.refuse(row, name, &what()))?);
        }
    }
    let size = [taken.len() as i64, columns.len() as i64];
    Ok(Targets::Values(Tensor::f_from_slice(&ys)?.f_view(size)?))
}
