//! Which columns of a table are inputs and which are targets.

use super::{CsvSpec, Names};
use crate::data::sources::cell::delimiter_of;
use crate::util::yaml::{Invalid, nearest};

/// Which columns of the file are used.
pub(super) struct Columns {
    pub names: Vec<String>,
    pub features: Vec<Feature>,
    pub targets: Vec<usize>,
}

/// An input: the number in a column, or whether the column holds `value`.
pub(super) struct Feature {
    pub column: usize,
    pub value: Option<String>,
}

impl Feature {
    pub fn name(&self, names: &[String]) -> String {
        let column = &names[self.column];
        self.value.as_ref().map_or_else(|| column.clone(), |value| format!("{column}={value}"))
    }
}

impl CsvSpec {
    /// The columns of a file whose columns have these `names`; the column `group` is no input.
    pub(super) fn columns(&self, names: Vec<String>, group: Option<&str>) -> Result<Columns, Invalid> {
        if names.is_empty() {
            return Err(Invalid::new(
                "file",
                "is empty; give a table with a line of column names above its rows",
            ));
        }
        let find = |key: String, wanted: &String| {
            let mut found = names.iter().enumerate().filter(|(_, name)| *name == wanted);
            match (found.next(), found.next()) {
                (Some((column, _)), None) => Ok(column),
                (Some(_), Some(_)) => {
                    Err(Invalid::new(key, format!("two columns are called `{wanted}`; rename one")))
                }
                (None, _) => {
                    let hint = nearest(wanted, names.iter().map(String::as_str));
                    let hint = match (hint, names.as_slice()) {
                        (_, [first, rest @ ..])
                            if (rest.is_empty() || first.starts_with("sep="))
                                && !delimiter_of(first).is_empty() =>
                        {
                            delimiter_of(first)
                        }
                        (Some(near), _) => format!("; did you mean `{near}`?"),
                        (None, _) => String::new(),
                    };
                    Err(Invalid::new(
                        key,
                        format!("there is no column `{wanted}`{hint} (there are {})", names.join(", ")),
                    ))
                }
            }
        };
        let key = |list: bool, key: &str, index: usize| {
            if list { format!("{key}.{index}") } else { key.to_owned() }
        };
        let several = matches!(self.target, Names::Several(_));
        let mut targets = Vec::new();
        for (index, name) in self.target.as_slice().iter().enumerate() {
            targets.push(find(key(several, "target", index), name)?);
        }
        let mut features = Vec::new();
        match &self.features {
            Some(wanted) => {
                for (index, name) in wanted.iter().enumerate() {
                    // As a run calls the values of a column that it was trained on.
                    let value = name.split_once('=').filter(|(column, value)| {
                        self.one_hot
                            .get(*column)
                            .is_some_and(|values| values.iter().any(|known| known == value))
                    });
                    let column = value.map_or(name.clone(), |(column, _)| column.to_owned());
                    let column = find(key(true, "features", index), &column)?;
                    match value {
                        Some((_, value)) => features.push(Feature { column, value: Some(value.to_owned()) }),
                        None => self.expand(column, &names, &mut features),
                    }
                }
            }
            None => {
                let is_group = |column: usize| group == Some(names[column].as_str());
                let mut excluded = Vec::new();
                for (index, name) in self.exclude.iter().enumerate() {
                    excluded.push(find(key(true, "exclude", index), name)?);
                }
                for column in 0..names.len() {
                    if targets.contains(&column) || excluded.contains(&column) || is_group(column) {
                        continue;
                    }
                    if names[column].is_empty() {
                        let message = format!(
                            "column {} has no name, as an index that pandas wrote: `exclude: [\"\"]` leaves it out, \
                             `features` with \"\" takes it",
                            column + 1
                        );
                        return Err(Invalid::new("features", message));
                    }
                    // A prediction finds its columns by their names.
                    if names.iter().filter(|name| **name == names[column]).count() > 1 {
                        let message = format!(
                            "has two columns called `{}`; rename one, or list the `features`",
                            names[column]
                        );
                        return Err(Invalid::new("file", message));
                    }
                    self.expand(column, &names, &mut features);
                }
                for column in self.one_hot.keys() {
                    find(format!("one_hot.{column}"), column)?;
                }
            }
        }
        if features.is_empty() {
            return Err(Invalid::new("target", "leaves no column to predict from"));
        }
        if let Some(both) = features.iter().find(|feature| targets.contains(&feature.column)) {
            return Err(Invalid::new("features", format!("`{}` is the target too", names[both.column])));
        }
        Ok(Columns { names, features, targets })
    }

    /// The inputs that a column gives: itself, or one for each of its values.
    fn expand(&self, column: usize, names: &[String], features: &mut Vec<Feature>) {
        match self.one_hot.get(&names[column]) {
            None => features.push(Feature { column, value: None }),
            Some(values) => {
                features.extend(values.iter().map(|value| Feature { column, value: Some(value.clone()) }));
            }
        }
    }
}
