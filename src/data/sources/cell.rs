//! The cells of a table in delimited text, and how errors about them name their place.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::Result;
use csv::{ByteRecord, Reader, ReaderBuilder, Trim};

use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::regular_file;

/// The rows of delimited text in UTF-8.
pub fn reader(path: &Path, delimiter: char, header: bool) -> Result<Reader<File>> {
    let unreadable = || format!("{}: cannot be read", path.display());
    let mut file = regular_file::open(path).with_exit_code(ExitCode::Data, unreadable)?;
    let mut start = Vec::new();
    (&mut file).take(2).read_to_end(&mut start).with_exit_code(ExitCode::Data, unreadable)?;
    if start == [0xff, 0xfe] || start == [0xfe, 0xff] {
        return Err(fail(ExitCode::Data, format!("{}: is UTF-16; save it as UTF-8", path.display())));
    }
    file.rewind().with_exit_code(ExitCode::Data, unreadable)?;
    Ok(ReaderBuilder::new()
        .has_headers(header)
        .delimiter(u8::try_from(delimiter).unwrap_or(b','))
        .trim(Trim::All)
        .buffer_capacity(1 << 18)
        .from_reader(file))
}

/// The cell in column `column` as a finite number; `decimal` separates its decimals.
pub fn number(
    record: &ByteRecord,
    column: usize,
    names: &[String],
    path: &Path,
    decimal: char,
    remedy: &str,
) -> Result<f64> {
    let cell = record.get(column).unwrap_or_default();
    let text = std::str::from_utf8(cell).unwrap_or("?");
    let parse = |text: &str| text.parse::<f64>().ok().filter(|value| value.is_finite());
    let with_comma = || parse(&text.replacen(',', ".", 1));
    let value = match decimal {
        // A point would be that of thousands, as in 1.234,5.
        ',' if text.contains('.') => None,
        ',' => with_comma(),
        _ => parse(text),
    };
    value.ok_or_else(|| {
        let found = match cell {
            [] => "is empty".to_owned(),
            _ => format!("holds `{}`", String::from_utf8_lossy(cell)),
        };
        let remedy = match with_comma() {
            Some(_) if decimal == '.' && text.contains(',') => {
                "say `decimal: \",\"` if the comma stands before decimals"
            }
            _ => remedy,
        };
        refuse(record, &names[column], path, &format!("{found}, not a finite number; {remedy}"))
    })
}

/// The cell in column `column` as text.
pub fn label(record: &ByteRecord, column: usize, names: &[String], path: &Path) -> Result<String> {
    let cell = record.get(column).unwrap_or_default();
    if cell.is_empty() {
        return Err(refuse(record, &names[column], path, "is empty; mend or remove the row"));
    }
    Ok(String::from_utf8_lossy(cell).into_owned())
}

pub fn refuse(record: &ByteRecord, column: &str, path: &Path, what: &str) -> anyhow::Error {
    let line = record.position().map_or(0, |position| line(position, path));
    fail(ExitCode::Data, format!("{}:{line}: column `{column}` {what}", path.display()))
}

/// The line that a record starts on. The reader's position is where it began to look, before any blank lines.
fn line(position: &csv::Position, path: &Path) -> u64 {
    let blank = regular_file::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(position.byte()))?;
        let before =
            BufReader::new(file).bytes().map_while(Result::ok).take_while(|byte| b"\r\n".contains(byte));
        Ok(before.filter(|&byte| byte == b'\n').count() as u64)
    });
    position.line() + blank.unwrap_or(0)
}

pub fn unreadable(path: &Path, error: &csv::Error) -> anyhow::Error {
    let message = match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, |position| line(position, path));
            format!("{}:{line}: has {len} columns, the lines before have {expected_len}", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    };
    fail(ExitCode::Data, message)
}

/// What a table that seems to have one column, called `line`, is probably delimited by; for the end of a
/// message.
pub fn delimiter_of(line: &str) -> String {
    if let Some(mark) = line.strip_prefix("sep=") {
        return format!("; the line `sep={mark}` is Excel's: remove it");
    }
    match [(';', ";"), ('\t', "\\t"), ('|', "|")].into_iter().find(|(mark, _)| line.contains(*mark)) {
        Some((_, mark)) => format!("; did you mean `delimiter: \"{mark}\"`?"),
        None => String::new(),
    }
}

/// The class names that `labels` hold: by value where all are numbers, else by name. Exit 3 where one number
/// is written in two ways.
pub fn ordered_classes(labels: &[String], path: &Path) -> Result<Vec<String>> {
    let mut classes = labels.to_vec();
    classes.sort();
    classes.dedup();
    let values: Option<Vec<f64>> = classes.iter().map(|class| class.parse().ok()).collect();
    let Some(values) = values else { return Ok(classes) };
    let mut order: Vec<usize> = (0..classes.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    if let Some(pair) = order.windows(2).find(|pair| values[pair[0]] == values[pair[1]]) {
        let message = format!(
            "{}: the classes `{}` and `{}` are one number written in two ways; write it in one",
            path.display(),
            classes[pair[0]],
            classes[pair[1]]
        );
        return Err(fail(ExitCode::Data, message));
    }
    Ok(order.iter().map(|&index| classes[index].clone()).collect())
}
