//! `tikhonov explain`, docs/config.md and docs/config.schema.json: what the specs say of their keys.

use std::collections::BTreeSet;
use std::path::Path;

use regex::Regex;
use serde_json::{Value, json};
use tikhonov::config::Config;
use tikhonov::util::builtin;
use tikhonov::util::yaml::Document;

use crate::common::{run, succeeds};

fn schema() -> Value {
    serde_json::from_str(&succeeds(&["explain", "--json-schema"])).unwrap()
}

fn shipped() -> impl Iterator<Item = Document> {
    builtin::configs().map(|name| Document::parse(name, builtin::config(name).unwrap()).unwrap())
}

fn load(document: Document) -> anyhow::Result<Config> {
    Config::from_document(document, &[], [], Path::new("runs/any"))
}

/// What JSON Schema (2020-12) finds wrong with a value: the keywords that our schema uses, any other is a
/// panic.
fn complaints(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, schema, value, "", &mut found);
    found
}

fn check(root: &Value, schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let Value::Object(keywords) = schema else {
        assert!(schema == &json!(true), "{path}: {schema}");
        return;
    };
    let fits = |schema: &&Value| {
        let mut found = Vec::new();
        check(root, schema, value, path, &mut found);
        found.is_empty()
    };
    let is = |kind: &Value| match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{path}: type {other}"),
    };
    let number = value.as_f64();
    let list = value.as_array();
    for (keyword, wanted) in keywords {
        let bound = wanted.as_f64().unwrap_or(f64::NAN);
        let length = value.as_str().map_or(bound, |text| text.chars().count() as f64);
        let items = list.map_or(bound, |list| list.len() as f64);
        let holds = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" | "format" => true,
            "$ref" => {
                let name = wanted.as_str().unwrap().strip_prefix("#").unwrap();
                check(root, root.pointer(name).unwrap(), value, path, found);
                true
            }
            "anyOf" => wanted.as_array().unwrap().iter().any(|schema| fits(&schema)),
            "oneOf" => wanted.as_array().unwrap().iter().filter(fits).count() == 1,
            "type" => wanted.as_array().map_or_else(|| is(wanted), |kinds| kinds.iter().any(is)),
            "enum" => wanted.as_array().unwrap().contains(value),
            "const" => value == wanted,
            "pattern" => {
                value.as_str().is_none_or(|text| Regex::new(wanted.as_str().unwrap()).unwrap().is_match(text))
            }
            "minimum" => number.is_none_or(|number| number >= bound),
            "exclusiveMinimum" => number.is_none_or(|number| number > bound),
            "maximum" => number.is_none_or(|number| number <= bound),
            "exclusiveMaximum" => number.is_none_or(|number| number < bound),
            "minLength" => length >= bound,
            "maxLength" => length <= bound,
            "minItems" => items >= bound,
            "maxItems" => items <= bound,
            "items" | "prefixItems" => {
                for (at, item) in list.into_iter().flatten().enumerate() {
                    let schema = if keyword == "items" { wanted } else { &wanted[at] };
                    check(root, schema, item, &format!("{path}/{at}"), found);
                }
                true
            }
            "required" => value.as_object().is_none_or(|map| {
                wanted.as_array().unwrap().iter().all(|key| map.contains_key(key.as_str().unwrap()))
            }),
            "properties" | "additionalProperties" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    let path = format!("{path}/{key}");
                    let own = keywords.get("properties").and_then(|properties| properties.get(key));
                    match (keyword == "properties", own) {
                        (true, Some(schema)) => check(root, schema, value, &path, found),
                        (false, None) if wanted == false => found.push(format!("{path}: unknown key")),
                        (false, None) => check(root, wanted, value, &path, found),
                        _ => {}
                    }
                }
                true
            }
            other => panic!("{path}: the keyword {other} is not checked"),
        };
        if !holds {
            found.push(format!("{path}: {value} against {keyword}: {wanted}"));
        }
    }
}

#[test]
fn the_pages_of_keys_are_those_of_the_specs() {
    for (page, option) in [("docs/config.md", "--markdown"), ("docs/config.schema.json", "--json-schema")] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        let committed = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            succeeds(&["explain", option]) == committed,
            "{page} is stale; renew it by: target/release/tikhonov explain {option} > {page}"
        );
    }
}

#[test]
fn every_key_is_described() {
    let page = succeeds(&["explain", "--markdown"]);
    let silent: Vec<_> =
        page.lines().filter(|line| line.starts_with("| `") && line.ends_with("|  |")).collect();
    assert!(silent.is_empty(), "keys without a description:\n{}", silent.join("\n"));
    assert!(page.lines().filter(|line| line.starts_with("| `")).count() > 250, "{page}");
}

#[test]
fn shipped_configs_fit_the_schema_as_written_and_with_every_default_filled_in() {
    let schema = schema();
    for document in shipped() {
        let name = document.name.clone();
        assert_eq!(complaints(&schema, &document.tree), [""; 0], "{name}");
        let resolved = load(document).unwrap().resolved().unwrap();
        let resolved = Document::parse("resolved", resolved).unwrap();
        assert_eq!(complaints(&schema, &resolved.tree), [""; 0], "{name}, resolved");
    }
}

#[test]
fn the_schema_refuses_unknown_keys_names_and_types() {
    let schema = schema();
    let quickstart = shipped().find(|document| document.name == "quickstart").unwrap();
    for (section, value) in [
        ("trian", json!({})),
        ("optimizer", json!({"sgd": {"momentm": 0.9}})),
        ("optimizer", json!({"sgd": {"weight_decay": 0.1}})),
        ("optimizer", json!("lamb")),
        ("optimizer", json!({"sgd": {}, "adam": {}})),
        ("penalty", json!({"l2": "often"})),
        ("penalty", json!({"l2": {"start": 0, "end": 1, "epoch": 3}})),
        ("schedule", json!({"cosine": {}, "step": {"step_size": 1}})),
        ("schedule", json!("step")),
        ("task", json!({"classification": {"smoothing": 0.1}})),
        ("device", json!("gpu")),
        ("train", json!({"epochs": 0})),
        ("train", json!({"epochs": 3, "cuda_graph": "always"})),
        ("data", json!({"train": {"shapes": {"count": 10, "colour": 3}}})),
    ] {
        let mut document = quickstart.clone();
        document.tree[section] = value.clone();
        assert!(!complaints(&schema, &document.tree).is_empty(), "the schema accepts {section}: {value}");
        assert!(load(document).is_err(), "the program accepts {section}: {value}");
    }
    for (section, value) in [
        ("optimizer", json!("sgd")),
        ("optimizer", json!({"adam": null})),
        ("penalty", json!({"l2": "auto"})),
        ("penalty", json!({"l2": {"auto": {"lr": 0.2}}, "groups": [{"match": "*", "decoupled": 0}]})),
        ("penalty", json!({"l1": {"start": 0, "end": 1}})),
        ("penalty", Value::Null),
        ("schedule", json!({"warmup": {"epochs": 1}})),
        ("schedule", json!({"cosine": null, "warmup": {"epochs": 1}})),
        ("device", json!("cuda:1")),
        ("task", json!({"regression": {"loss": "l1"}})),
        ("train", json!({"epochs": 3, "cuda_graph": "auto", "checkpoint_activations": 4})),
    ] {
        let mut document = quickstart.clone();
        document.tree["data"]["validation"] = json!({"fraction": 0.1});
        document.tree[section] = value.clone();
        assert_eq!(complaints(&schema, &document.tree), [""; 0], "{section}: {value}");
        load(document).unwrap_or_else(|error| panic!("{section}: {value}: {error:#}"));
    }
}

/// The paths of the numbers below `value`, places in lists as `.N`.
fn numbers(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(path.to_owned()),
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| numbers(value, &format!("{path}/{key}"), found))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| numbers(value, &format!("{path}/{at}"), found));
        }
        _ => {}
    }
}

#[test]
fn a_number_that_the_schema_refuses_is_refused_by_the_program() {
    let schema = schema();
    let (mut seen, mut refused) = (BTreeSet::new(), 0);
    for document in shipped() {
        let name = document.name.clone();
        let text = load(document).unwrap().resolved().unwrap();
        let document = Document::parse(&name, text).unwrap();
        let mut paths = Vec::new();
        for section in ["threads", "task", "data", "penalty", "optimizer", "schedule", "train"] {
            numbers(&document.tree[section], &format!("/{section}"), &mut paths);
        }
        for path in paths {
            let general: String = path.split('/').filter(|part| part.parse::<u8>().is_err()).collect();
            if !seen.insert(general) {
                continue;
            }
            for value in [json!(-1), json!(0), json!(0.5), json!(1), json!(2), json!(1_000_000)] {
                let mut changed = document.clone();
                *changed.tree.pointer_mut(&path).unwrap() = value.clone();
                if complaints(&schema, &changed.tree).is_empty() {
                    continue;
                }
                refused += 1;
                let is_generated = ["shapes", "line", "linear"].iter().any(|source| path.contains(source));
                let splits = if is_generated { &tikhonov::data::Split::ALL[..] } else { &[] };
                let loaded = load(changed).and_then(|config| config.validate_data(splits));
                // What needs its files to be there is checked with them.
                let sources = ["/data/train/", "/data/validation/", "/data/test/"];
                let needs_files = !is_generated && sources.iter().any(|set| path.starts_with(set));
                assert!(loaded.is_err() || needs_files, "{name}: the program accepts {path}: {value}");
            }
        }
    }
    assert!(seen.len() > 60 && refused > 80, "{} numbers, {refused} refused", seen.len());
}

#[test]
fn explain_says_what_a_key_means() {
    let images = succeeds(&["explain", "data.train.images"]);
    assert!(images.starts_with("data.train.images: mapping\n"), "{images}");
    for part in [
        "  patch: integer in [1, 8192]\n      Side of the random squares in pixels.",
        "  per_image: integer ≥ 1; default 1\n",
        "  root: path; required\n",
    ] {
        assert!(images.contains(part), "{part}\n{images}");
    }
    let mode = succeeds(&["explain", "penalty.l1_mode"]);
    assert!(mode.contains("proximal") && mode.contains("      Soft threshold after the step"), "{mode}");
    let sgd = succeeds(&["explain", "optimizer.sgd"]);
    assert!(sgd.contains("  momentum: number in [0, 1); default 0\n"), "{sgd}");
    let lambda = succeeds(&["explain", "penalty.groups.0.l2"]);
    assert!(lambda.starts_with("penalty.groups.0.l2: number ≥ 0, mapping or auto"), "{lambda}");
    let convolution = succeeds(&["explain", "model.layers.conv2d"]);
    assert!(convolution.contains("  kernel_size: integer or [integer, integer]; required"), "{convolution}");
    let sections = succeeds(&["explain"]);
    for section in ["seed", "model", "penalty", "train", "sweep"] {
        assert!(sections.contains(&format!("\n  {section}: ")), "{sections}");
    }
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest() {
    for (key, answer) in [
        ("data.trian", "there is no key `data.trian`; did you mean `data.train`?"),
        ("l1_mode", "there is no key `l1_mode`; there are `penalty.l1_mode`, `penalty.groups.l1_mode`"),
        ("early_stopping", "there is no key `early_stopping`; did you mean `train.early_stopping`?"),
        ("train.epochs.first", "there is no key `train.epochs.first`: `train.epochs` has no keys"),
    ] {
        let (code, _, stderr) = run(&["explain", key]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(answer), "{stderr}");
    }
}
