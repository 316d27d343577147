//! A YAML value as the tree that is decoded: JSON, with merge keys resolved and tags refused.

use serde_json::{Map, Number, Value};

/// A value that JSON has no form for: where it stands, and why not.
pub type Foreign = (Vec<String>, String);

/// YAML as JSON, merge keys resolved in place (a mapping's own keys win). On error: the path and what is
/// wrong.
pub fn json(value: serde_yaml::Value, path: &mut Vec<String>) -> Result<Value, Foreign> {
    use serde_yaml::Value as Yaml;
    let refuse = |path: &[String], message: &str| Err((path.to_vec(), message.to_owned()));
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(truth) => Value::Bool(truth),
        Yaml::String(text) => Value::String(text),
        Yaml::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => number.into(),
            (_, Some(number), _) => number.into(),
            (.., number) => match number.and_then(Number::from_f64) {
                Some(number) => Value::Number(number),
                None => return refuse(path, "NaN and infinity are not allowed: expected a finite number"),
            },
        },
        Yaml::Sequence(items) => {
            let mut list = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                path.push(index.to_string());
                list.push(json(item, path)?);
                path.pop();
            }
            Value::Array(list)
        }
        Yaml::Mapping(mapping) => {
            let own: Vec<String> = mapping.keys().filter_map(|key| key.as_str().map(str::to_owned)).collect();
            let mut map = Map::new();
            for (key, value) in mapping {
                let Yaml::String(key) = key else {
                    let key = serde_yaml::to_string(&key).unwrap_or_default();
                    let message = format!("the key `{}` is not text; put it in quotes", key.trim());
                    return refuse(path, &message);
                };
                path.push(key.clone());
                let value = json(value, path)?;
                if key == "<<" {
                    merge(&mut map, &own, value).map_err(|message| (path.clone(), message.to_owned()))?;
                } else {
                    map.insert(key, value);
                }
                path.pop();
            }
            Value::Object(map)
        }
        Yaml::Tagged(tagged) => {
            return refuse(path, &format!("the tag {} means nothing here; remove it", tagged.tag));
        }
    })
}

fn merge(map: &mut Map<String, Value>, own: &[String], value: Value) -> Result<(), &'static str> {
    let sources = match value {
        Value::Array(sources) => sources,
        source => vec![source],
    };
    for source in sources {
        let Value::Object(source) = source else {
            return Err("only a mapping, or a list of them, can be merged");
        };
        for (key, value) in source {
            if !own.contains(&key) && !map.contains_key(&key) {
                map.insert(key, value);
            }
        }
    }
    Ok(())
}
