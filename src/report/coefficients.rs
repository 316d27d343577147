//! The coefficients of linear models, by the names of their columns.

use std::fmt::Write;
use std::path::Path;

use super::{Group, section as framed, table};
use crate::config::COEFFICIENTS_FILE;
use crate::plot::{escape, number};

/// Of a run and output; the file holds the rest.
const SHOWN: usize = 30;

pub fn section(group: &Group) -> String {
    let mut content = String::new();
    for run in &group.runs {
        let Some(rows) = rows(&run.path) else { continue };
        if group.runs.len() > 1 {
            // Writing into a String cannot fail.
            let _ = writeln!(content, "<h3>{}</h3>", escape(&run.name));
        }
        content += &table_of(&rows);
    }
    let note = format!(
        "Per unit of a column, and per standard deviation where columns are normalised. All of them: {COEFFICIENTS_FILE}."
    );
    framed("Coefficients", &note, &content)
}

/// Output, column, coefficient, standardised; None where there is no such file.
fn rows(run: &Path) -> Option<Vec<[String; 4]>> {
    let mut reader = csv::Reader::from_path(run.join(COEFFICIENTS_FILE)).ok()?;
    let row = |record: csv::StringRecord| {
        let cell = |at: usize| record.get(at).unwrap_or_default().to_owned();
        [cell(0), cell(1), cell(2), cell(3)]
    };
    Some(reader.records().map_while(Result::ok).map(row).collect())
}

fn table_of(rows: &[[String; 4]]) -> String {
    let mut out = Vec::new();
    let several = rows.iter().any(|row| row[0] != rows[0][0]);
    let is_normalized = rows.iter().any(|row| !row[3].is_empty());
    for output in rows.chunk_by(|a, b| a[0] == b[0]) {
        // What the penalty weighs.
        let size = |row: &[String; 4]| {
            let text = if row[3].is_empty() { &row[2] } else { &row[3] };
            text.parse::<f64>().map_or(0.0, f64::abs)
        };
        let mut sorted: Vec<&[String; 4]> = output.iter().filter(|row| size(row) > 0.0).collect();
        sorted.sort_by(|a, b| size(b).total_cmp(&size(a)));
        let shown = |text: &str| text.parse().map_or_else(|_| String::new(), number);
        for row in sorted.iter().take(SHOWN) {
            let mut cells = vec![escape(&row[1]), shown(&row[2])];
            if several {
                cells.insert(0, escape(&row[0]));
            }
            if is_normalized {
                cells.push(shown(&row[3]));
            }
            out.push(cells);
        }
        let (hidden, zeros) = (sorted.len().saturating_sub(SHOWN), output.len() - sorted.len());
        for (count, what) in [(hidden, "smaller ones"), (zeros, "exactly 0")] {
            if count > 0 {
                let mut cells = vec![format!("<i>and {count} {what}</i>"), String::new()];
                if several {
                    cells.insert(0, escape(&output[0][0]));
                }
                if is_normalized {
                    cells.push(String::new());
                }
                out.push(cells);
            }
        }
    }
    let mut head = vec![("column", false), ("coefficient", true)];
    if several {
        head.insert(0, ("output", false));
    }
    if is_normalized {
        head.push(("per std", true));
    }
    table(&head, &out)
}
