//! serde's error texts in the words of someone who writes YAML, not Rust.

use serde_json::Value;

use super::nearest;

/// A value of the tree as it is called in an error.
pub fn describe(value: &Value) -> String {
    match value {
        Value::Null => "empty".into(),
        Value::Bool(truth) => format!("`{truth}`"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text `{text}`"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
    }
}

/// The key of an "unknown field" error.
pub fn unknown_key(message: &str) -> Option<&str> {
    quoted(message.strip_prefix("unknown field ")?).next()
}

/// The choice of an "unknown variant" error.
pub fn unknown_choice(message: &str) -> Option<&str> {
    quoted(message.strip_prefix("unknown variant ")?).next()
}

/// Rewrites serde's `message` about `value` (None where the tree has nothing at the key path).
pub fn mistake(message: &str, value: Option<&Value>) -> String {
    if let Some(rest) = message.strip_prefix("unknown field ") {
        return unknown("unknown key", rest);
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let name = unknown_choice(message).unwrap_or_default();
        return unknown(&format!("unknown choice `{name}`"), rest);
    }
    if let Some(rest) = message.strip_prefix("missing field ") {
        return format!("the key {rest} is missing");
    }
    if message.starts_with("data did not match any variant of untagged enum") {
        let found = value.map_or_else(|| "nothing".into(), describe);
        return format!("{found} fits none of the forms that are allowed here");
    }
    let found_expected = ["invalid type: ", "invalid value: ", "invalid length "]
        .iter()
        .find_map(|prefix| message.strip_prefix(prefix))
        .and_then(|rest| rest.rsplit_once(", expected "));
    let Some((found, expected)) = found_expected else {
        return message.to_owned();
    };
    // The tree's value is described better than serde's `found`, which is used where there is no value.
    let found = match value {
        _ if message.starts_with("invalid length") => format!("{found} of them"),
        Some(value) => describe(value),
        None => found.to_owned(),
    };
    if expected.starts_with("unit variant") || expected == "unit" {
        return format!("expected no arguments, found {found}; write the name alone");
    }
    format!("expected {}, found {found}", wanted(expected))
}

/// The error for the keys `found` where exactly one of `choices` is expected.
pub fn several(found: &[&str], choices: &[&str]) -> String {
    let named =
        |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
    let (known, unknown_names): (Vec<_>, Vec<_>) = found.iter().partition(|name| choices.contains(name));
    match (known.as_slice(), unknown_names.as_slice()) {
        ([], []) => format!(
            "expected exactly one choice, as in `name: {{…}}`, found none; choices are {}",
            choices.join(", ")
        ),
        (_, []) => format!(
            "expected exactly one choice, found {}; keep one. To replace one by --set, set the whole of it",
            named(&known)
        ),
        ([one], _) => {
            let hint =
                unknown_names.iter().find_map(|name| Some((name, nearest(name, choices.iter().copied())?)));
            let hint =
                hint.map_or_else(String::new, |(name, near)| format!(" (`{name}`: did you mean `{near}`?)"));
            format!(
                "expected exactly one choice, found `{one}` and beside it {}, which is none{hint}; indent what belongs to \
                 `{one}` below it, and move the rest to where it belongs",
                named(&unknown_names)
            )
        }
        _ => {
            format!("expected exactly one choice, found {}; choices are {}", named(found), choices.join(", "))
        }
    }
}

/// "unknown key; did you mean `lr`? (expected one of `lr`, `momentum`)" from serde's "`l`, expected one of
/// …".
fn unknown(what: &str, rest: &str) -> String {
    let Some((word, expected)) = rest.split_once(", expected ") else {
        return format!("{what}; nothing is allowed here");
    };
    let word = quoted(word).next().unwrap_or_default();
    let candidates: Vec<&str> = quoted(expected).collect();
    let list = candidates.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let list = if candidates.len() == 1 { list } else { format!("one of {list}") };
    match nearest(word, candidates.into_iter()) {
        Some(name) => format!("{what}; did you mean `{name}`? (expected {list})"),
        None => format!("{what}; expected {list}"),
    }
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn wanted(expected: &str) -> String {
    let number_after = |prefix: &str| expected.strip_prefix(prefix).map(str::to_owned);
    match expected {
        "f64" | "f32" => "a number".into(),
        "u64" | "u32" | "u16" | "u8" | "usize" => "a whole number, 0 or more".into(),
        "i64" | "i32" | "i16" | "i8" | "isize" => "a whole number".into(),
        "a boolean" => "true or false".into(),
        "a string" | "string" | "str" => "text".into(),
        "a sequence" => "a list".into(),
        "a map" => "a mapping".into(),
        "string or map" => "the name of a choice, or `name: {…}`".into(),
        _ if expected.starts_with("a nonzero ") => "a whole number, 1 or more".into(),
        _ if expected.starts_with("struct ") || expected.starts_with("map") => "a mapping".into(),
        _ if expected.starts_with("enum ") => "the name of a choice, or `name: {…}`".into(),
        _ => match number_after("an array of length ").or_else(|| number_after("a tuple of size ")) {
            Some(count) => format!("a list of {count}"),
            None => expected.to_owned(),
        },
    }
}
