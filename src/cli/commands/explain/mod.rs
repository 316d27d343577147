//! `tikhonov explain`: what a key of a config means, from the specs' own doc comments. `docs/config.md` and
//! `docs/config.schema.json` are written by it.

mod page;
mod reference;

use anyhow::Result;
use clap::Args;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::config::RunConfig;
use crate::penalty;
use crate::sweep::spec::SweepSpec;
use crate::util::console::print_out;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::terminal::stdout_columns;
use crate::util::{json_schema, yaml};
use reference::{Key, Reference};

/// Say what a key of a config means: its type, default, range and the keys below it.
///
/// tikhonov explain data.train.images
#[derive(Args, Debug)]
pub struct Options {
    /// A key such as train.ema or optimizer.sgd.lr; the sections where it is left out
    key: Option<String>,
    /// Print the whole reference as Markdown (docs/config.md)
    #[arg(long, conflicts_with_all = ["key", "json_schema"])]
    markdown: bool,
    /// Print the JSON Schema of configs, for editors (docs/config.schema.json)
    #[arg(long, conflicts_with = "key")]
    json_schema: bool,
    /// Print the table of penalties as Markdown (docs/penalties.md)
    #[arg(long, conflicts_with_all = ["key", "json_schema", "markdown"])]
    penalties: bool,
}

pub fn run(options: &Options) -> Result<()> {
    if options.penalties {
        print_out!("{}", penalty::table_of_forms().trim_end());
        return Ok(());
    }
    let mut schema = schema();
    if options.json_schema {
        json_schema::finish(&mut schema);
        print_out!("{}", by_line(&schema));
        return Ok(());
    }
    let reference = Reference::new(schema);
    if options.markdown {
        print_out!("{}", page::markdown(&reference).trim_end());
        return Ok(());
    }
    let path = options.key.as_deref().unwrap_or_default();
    let key = find(&reference, path)?;
    print_out!("{}", text(&reference, path, &key).trim_end());
    Ok(())
}

/// The schema of a run config, with the section that `tikhonov sweep` reads.
fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let sweep = generator.subschema_for::<SweepSpec>();
    let mut schema = generator.into_root_schema_for::<RunConfig>();
    schema.insert("title".into(), "tikhonov run config".into());
    let mut schema = schema.to_value();
    schema["properties"]["sweep"] = sweep.to_value();
    schema
}

/// JSON with a line for each property and definition, so that a change of a spec is a change of its line.
fn by_line(schema: &Value) -> String {
    let line = |(key, value): (&String, &Value)| match (key.as_str(), value) {
        ("properties" | "$defs", Value::Object(map)) => {
            let lines: Vec<_> = map.iter().map(|(name, schema)| format!("    {name:?}: {schema}")).collect();
            format!("  {key:?}: {{\n{}\n  }}", lines.join(",\n"))
        }
        _ => format!("  {key:?}: {value}"),
    };
    let lines: Vec<_> = schema.as_object().into_iter().flatten().map(line).collect();
    format!("{{\n{}\n}}", lines.join(",\n"))
}

/// The key at a dotted path; numbers, which are places in a list, may be left out. Exit 2 with the nearest
/// key where there is none.
fn find(reference: &Reference, path: &str) -> Result<Key> {
    let mut key = reference.root();
    let mut known = String::new();
    for name in path.split('.').filter(|name| !name.is_empty() && name.parse::<usize>().is_err()) {
        let keys = reference.keys(&key.schema);
        let Some(next) = keys.iter().find(|key| key.name == name) else {
            return Err(fail(ExitCode::Usage, unknown(reference, &known, name, &keys)));
        };
        known = join(&known, name);
        key = next.clone();
    }
    Ok(key)
}

fn unknown(reference: &Reference, known: &str, name: &str, keys: &[Key]) -> String {
    let message = format!("there is no key `{}`", join(known, name));
    if let Some(near) = yaml::nearest(name, keys.iter().map(|key| key.name.as_str())) {
        return format!("{message}; did you mean `{}`?", join(known, near));
    }
    let mut elsewhere = reference.paths();
    elsewhere.retain(|path| path.rsplit('.').next() == Some(name));
    if let [first, ..] = elsewhere.as_slice() {
        let all = elsewhere.iter().take(5).map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", ");
        return match elsewhere.len() {
            1 => format!("{message}; did you mean `{first}`?"),
            _ => format!("{message}; there are {all}"),
        };
    }
    let names: Vec<_> = keys.iter().map(|key| format!("`{}`", key.name)).collect();
    match (known, names.is_empty()) {
        (_, true) => format!("{message}: `{known}` has no keys"),
        ("", _) => format!("{message} (expected one of {})", names.join(", ")),
        _ => format!("{message} (`{known}` has {})", names.join(", ")),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// One key for a terminal.
fn text(reference: &Reference, path: &str, key: &Key) -> String {
    let columns = stdout_columns().unwrap_or(100).clamp(40, 110);
    let mut text = String::new();
    if !path.is_empty() {
        text += &format!("{path}: {}\n", reference.facts(key));
    }
    for paragraph in key.paragraphs() {
        text += &format!("{}\n\n", wrap(&paragraph, 2, columns));
    }
    for (value, meaning) in reference.meanings(&key.schema) {
        text += &format!("  {value}\n{}\n", wrap(&meaning, 6, columns));
    }
    for below in reference.keys(&key.schema) {
        text += &format!("  {}: {}\n", below.name, reference.facts(&below));
        let meaning = below.summary();
        if !meaning.is_empty() {
            text += &format!("{}\n", wrap(&meaning, 6, columns));
        }
    }
    if let Some(example) = page::example(path) {
        text += &format!("\n{}\n", wrap(&format!("Example: {example}"), 2, columns));
    }
    text
}

/// The words of `text` in lines of so many columns, all of them indented.
fn wrap(text: &str, indent: usize, columns: usize) -> String {
    let mut lines = vec![" ".repeat(indent)];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| line.chars().count() + word.chars().count() < columns);
        match line {
            Some(line) if line.len() > indent => line.extend([" ", word]),
            Some(line) => line.push_str(word),
            None => lines.push(format!("{}{word}", " ".repeat(indent))),
        }
    }
    lines.join("\n")
}
