//! Model files that hold more than one network: `variants` by their names, and blocks that another file
//! declares.

use std::path::Path;

use serde_json::{Map, Value};

use super::scope;
use super::spec::Problem;
use crate::util::builtin;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::{Document, Invalid, nearest};

/// A model file, and the variant of it that a name means.
pub(crate) struct Shipped {
    pub document: Document,
    /// None for the only network of the file, and where the family itself is named.
    pub variant: Option<String>,
}

/// The shipped network `name`: a file's, or a variant's.
pub(crate) fn shipped(name: &str) -> anyhow::Result<Option<Shipped>> {
    if let Some((family, text)) = builtin::models().find(|known| *known == name).zip(builtin::model(name)) {
        let document = parse(family, text)?;
        let variant = variants(&document.tree).is_some_and(|variants| variants.contains_key(name));
        return Ok(Some(Shipped { document, variant: variant.then(|| name.to_owned()) }));
    }
    // Only the file that can hold it is parsed.
    let key = format!("\n  {name}:");
    for family in builtin::models() {
        let Some(text) = builtin::model(family).filter(|text| text.contains(&key)) else { continue };
        let document = parse(family, text)?;
        if variants(&document.tree).is_some_and(|variants| variants.contains_key(name)) {
            return Ok(Some(Shipped { document, variant: Some(name.to_owned()) }));
        }
    }
    Ok(None)
}

fn parse(family: &str, text: &str) -> anyhow::Result<Document> {
    Document::parse(format!("<built-in> {family}.yaml"), text)
}

/// Every shipped network, with its family: the file's variants, or the file.
pub fn names() -> Vec<(&'static str, String)> {
    let mut names = Vec::new();
    for family in builtin::models() {
        let document = builtin::model(family).and_then(|text| parse(family, text).ok());
        match document.as_ref().and_then(|document| variants(&document.tree)) {
            Some(variants) => names.extend(variants.keys().map(|name| (family, name.clone()))),
            None => names.push((family, family.to_owned())),
        }
    }
    names
}

fn variants(tree: &Value) -> Option<&Map<String, Value>> {
    tree.get("variants")?.as_object().filter(|variants| !variants.is_empty())
}

/// The arguments of `tree` with their values: those declared, those of `variant` over them, then those `given`.
/// Without the keys that only choose. `name` is the network's, for messages.
pub(super) fn chosen(
    mut tree: Value,
    name: &str,
    variant: Option<&str>,
    given: &Map<String, Value>,
) -> Result<Value, Problem> {
    let known = variants(&tree).cloned().unwrap_or_default();
    let Value::Object(map) = &mut tree else { return Ok(tree) };
    let listed = || known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let mut args = match map.get("args") {
        Some(Value::Object(args)) => args.clone(),
        _ => Map::new(),
    };
    let place = format!("model `{name}`");
    if let Some(variant) = variant {
        let Some(own) = known.get(variant) else {
            let hint = match nearest(variant, known.keys().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => "the file has no `variants`".to_owned(),
                None => format!("variants are {}", listed()),
            };
            let message = format!("unknown variant `{variant}`; {hint}");
            return Err(Problem::Config(Invalid::new("variant", message)));
        };
        let own = own.as_object().cloned().unwrap_or_default();
        args = scope::merge(&args, own, &place, true).map_err(|invalid| {
            let path = format!("variants.{variant}");
            Problem::File(fail(ExitCode::Usage, format!("{}", invalid.under(path))))
        })?;
    }
    args = scope::merge(&args, given.clone(), &place, true)
        .map_err(|invalid| Problem::Config(invalid.under("args")))?;
    if variant.is_none()
        && !known.is_empty()
        && let Some((missing, _)) = args.iter().find(|(_, value)| value.is_null())
    {
        let message = format!(
            "`{name}` is a family of networks: name one of its variants, {}, or give `{missing}` and what else is open",
            listed()
        );
        return Err(Problem::Config(Invalid::new("", message)));
    }
    if !args.is_empty() {
        map.insert("args".into(), Value::Object(args));
    }
    for key in ["variants", "published"] {
        map.remove(key);
    }
    Ok(tree)
}

/// Puts the blocks of the files under `blocks_of` beside those of `tree`, and their arguments that have defaults and
/// that `tree` does not declare, which the blocks may use; `.yaml` files are looked for from `folder`.
pub(super) fn with_blocks(mut tree: Value, folder: Option<&Path>) -> Result<Value, Problem> {
    let Value::Object(map) = &mut tree else { return Ok(tree) };
    let files = match map.remove("blocks_of") {
        None | Some(Value::Null) => return Ok(tree),
        Some(file @ Value::String(_)) => vec![file],
        Some(Value::Array(files)) => files,
        Some(_) => vec![Value::Null],
    };
    let refuse = |message: String| Problem::Config(Invalid::new("blocks_of", message));
    let mut part = |key: &str| match map.remove(key) {
        Some(Value::Object(part)) => part,
        _ => Map::new(),
    };
    let (mut args, mut blocks) = (part("args"), part("blocks"));
    for file in &files {
        let Value::String(file) = file else {
            return Err(refuse(format!(
                "expected a shipped network or a .yaml file, or a list of them, got {file}"
            )));
        };
        let other = if file.ends_with(".yaml") || file.ends_with(".yml") {
            let path = folder.map_or_else(|| file.into(), |folder| folder.join(file));
            Document::read(path).map_err(Problem::File)?
        } else {
            let Some(shipped) = shipped(file).map_err(Problem::File)? else {
                let hint = nearest(file, builtin::models())
                    .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                return Err(refuse(format!("unknown model `{file}`{hint}")));
            };
            shipped.document
        };
        let theirs = other.tree.get("blocks").and_then(Value::as_object).cloned().unwrap_or_default();
        if theirs.is_empty() {
            return Err(refuse(format!("`{file}` declares no blocks")));
        }
        let defaults = other.tree.get("args").and_then(Value::as_object).cloned().unwrap_or_default();
        for (name, value) in defaults.into_iter().filter(|(_, value)| !value.is_null()) {
            args.entry(name).or_insert(value);
        }
        for (name, block) in theirs {
            if blocks.insert(name.clone(), block).is_some() {
                return Err(refuse(format!(
                    "the block `{name}` is declared twice, and once in `{file}`; rename yours"
                )));
            }
        }
    }
    map.insert("args".into(), args.into());
    map.insert("blocks".into(), blocks.into());
    Ok(tree)
}

/// Fails with the nearest name.
pub(super) fn unknown(name: &str, has_args: bool) -> Problem {
    let names: Vec<String> =
        names().into_iter().map(|(_, name)| name).chain(builtin::models().map(str::to_owned)).collect();
    let hint = match nearest(name, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let families: Vec<_> = builtin::models().collect();
            format!(
                "shipped are {} (`tikhonov models` lists their variants); a file of your own ends in .yaml",
                families.join(", ")
            )
        }
    };
    let path = if has_args { "name" } else { "" };
    Problem::Config(Invalid::new(path, format!("unknown model `{name}`; {hint}")))
}

/// The arguments of the shipped network `name` and their defaults.
pub(crate) fn declared(name: &str) -> Option<Map<String, Value>> {
    let shipped = shipped(name).ok()??;
    let mut args = shipped.document.value("args")?.as_object()?.clone();
    let own = shipped
        .variant
        .and_then(|variant| variants(&shipped.document.tree)?.get(&variant)?.as_object().cloned());
    args.extend(own.unwrap_or_default());
    Some(args)
}

/// The files of published weights that the shipped network `name` fits, as its file says.
pub(crate) fn published(name: &str) -> Option<String> {
    let shipped = shipped(name).ok()??;
    let text = match shipped.document.tree.get("published")? {
        // By variant; `*` is what is said of the others.
        Value::Object(known) => known.get(name).or_else(|| known.get("*"))?.as_str()?,
        other => other.as_str()?,
    };
    Some(text.replace("{variant}", name))
}
