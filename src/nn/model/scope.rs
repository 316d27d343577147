//! Arguments of models and blocks: their values, and what refers to them.

use serde_json::{Map, Value};

use super::expr::{evaluate, is_name, lookup};
use crate::util::yaml::{Invalid, nearest};

/// Arguments and their values.
pub type Scope = Map<String, Value>;

/// Evaluates arguments in order: each may use those before it, and those of `outer`.
pub fn arguments(args: &Map<String, Value>, outer: &Scope, path: &str) -> Result<Scope, Invalid> {
    let mut scope = outer.clone();
    for (name, value) in args {
        let path = format!("{path}.{name}");
        if !is_name(name) {
            return Err(Invalid::new(path, "an argument's name is made of letters, digits and `_`"));
        }
        if value.is_null() {
            return Err(Invalid::new(path, "has no default: give it a value"));
        }
        let value = fill(value, &scope, &path)?;
        scope.insert(name.clone(), value);
    }
    Ok(scope)
}

/// Replaces `$name` and `${formula}` in a value, however deep.
pub fn fill(value: &Value, scope: &Scope, path: &str) -> Result<Value, Invalid> {
    Ok(match value {
        Value::String(text) => match text.strip_prefix('$') {
            Some(name) if is_name(name) => lookup(name, scope).cloned(),
            Some(rest) => match rest.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                Some(formula) if is_name(formula.trim()) => lookup(formula.trim(), scope).cloned(),
                Some(formula) => evaluate(formula, scope),
                None => {
                    Err(format!("`{text}`: a `$` starts an argument: $name, or \"${{name * 2}}\" in quotes"))
                }
            },
            None => Ok(value.clone()),
        }
        .map_err(|message| Invalid::new(path, message))?,
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(index, value)| fill(value, scope, &format!("{path}.{index}")))
            .collect::<Result<_, _>>()?,
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| Ok((key.clone(), fill(value, scope, &format!("{path}.{key}"))?)))
            .collect::<Result<Map<_, _>, Invalid>>()?
            .into(),
        plain => plain.clone(),
    })
}

/// Lays given arguments over the declared ones: none unknown, and no mapping for another value. The arguments of
/// a model keep the types of their defaults, but a number may become a list of numbers and the reverse.
pub fn merge(
    declared: &Map<String, Value>,
    given: Map<String, Value>,
    place: &str,
    is_model: bool,
) -> Result<Map<String, Value>, Invalid> {
    let mut merged = declared.clone();
    for (name, value) in given {
        let Some(default) = merged.get(&name) else {
            let hint = match nearest(&name, declared.keys().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None if declared.is_empty() => "it has none".to_string(),
                None => {
                    let known: Vec<_> = declared.keys().map(|key| format!("`{key}`")).collect();
                    format!("its arguments are {}", known.join(", "))
                }
            };
            return Err(Invalid::new(name.clone(), format!("{place} has no argument `{name}`; {hint}")));
        };
        let formula = default.as_str().is_some_and(|text| text.starts_with('$'));
        let numbers = |value: &Value| match value {
            Value::Array(list) => list.iter().all(Value::is_number),
            other => other.is_number(),
        };
        let fits = kind(default) == kind(&value)
            || if is_model {
                numbers(default) && numbers(&value)
            } else {
                !default.is_object() && !value.is_object()
            };
        if !default.is_null() && !formula && !fits {
            let message = format!("expected {}, as the default {default} is, got {value}", kind(default));
            return Err(Invalid::new(name, message));
        }
        merged.insert(name, value);
    }
    Ok(merged)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// A child's name, its `{formulas}` evaluated.
pub fn name(key: &str, scope: &Scope) -> Result<String, String> {
    let mut name = String::new();
    let mut rest = key;
    while let Some((plain, formula)) = rest.split_once('{') {
        let (formula, after) =
            formula.split_once('}').ok_or_else(|| format!("`{key}`: the `{{` is never closed"))?;
        name.push_str(plain);
        match evaluate(formula, scope)? {
            Value::String(text) => name.push_str(&text),
            Value::Number(number) if number.is_u64() => name.push_str(&number.to_string()),
            other => return Err(format!("`{key}`: {other} is neither text nor a whole number from 0 up")),
        }
        rest = after;
    }
    name.push_str(rest);
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let begins = name.trim_start_matches('_').starts_with(|c: char| c.is_ascii_alphanumeric());
    if !name.chars().all(in_name) || !(begins || name == "_") {
        return Err(format!("`{name}` is no name for a layer: letters, digits, `_` and `-` are"));
    }
    Ok(name)
}
