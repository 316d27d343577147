//! Expansion of `~/` at the start of a path, and of `${NAME}`.

use serde_json::Value;

/// Replaces a leading `~/` in every text below `value`, whose key path is `path`; after an error
/// `path` is that of the text that caused it.
pub fn expand_home(value: &mut Value, home: Option<&str>, path: &mut Vec<String>) -> Result<(), String> {
    match value {
        Value::String(text) => {
            let Some(rest) = text.strip_prefix('~') else { return Ok(()) };
            *text = match (home, rest.strip_prefix('/')) {
                (Some(home), Some(rest)) => format!("{}/{rest}", home.trim_end_matches('/')),
                (None, Some(_)) => {
                    return Err(format!("`{text}`: HOME is not set; write the path in full"));
                }
                (_, None) => return Err(format!("`{text}`: only `~/` is expanded; write the path in full")),
            };
        }
        Value::Array(list) => {
            for (index, value) in list.iter_mut().enumerate() {
                path.push(index.to_string());
                expand_home(value, home, path)?;
                path.pop();
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                path.push(key.clone());
                expand_home(value, home, path)?;
                path.pop();
            }
        }
        _ => {}
    }
    Ok(())
}

/// Replaces `${NAME}` and `${NAME:-default}` by environment variables (the default also where the variable is
/// empty) and `$$` by `$`.
pub fn expand_env(text: &str) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let Some((reference, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else {
            return Err(format!(
                "`{text}`: a `$` starts ${{NAME}} or ${{NAME:-default}}; write $$ for the sign"
            ));
        };
        let (name, default) = match reference.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (reference, None),
        };
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            return Err(format!("`{text}`: `{name}` is no name of an environment variable"));
        }
        match (std::env::var(name), default) {
            (Ok(value), _) if !value.is_empty() || default.is_none() => expanded.push_str(&value),
            (_, Some(default)) => expanded.push_str(default),
            (..) => {
                return Err(format!(
                    "`{text}`: the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
                ));
            }
        }
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}
