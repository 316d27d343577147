//! The runs in a table: state, best score, time; and in what their configs differ.

use serde_json::{Value, json};

use super::{Group, duration, section as framed, table};
use crate::metrics::Monitor;
use crate::plot::{escape, number};
use crate::report::history::History;

pub fn section(group: &Group) -> String {
    let first = group.runs.iter().find_map(|run| run.monitor());
    let metric = first.as_ref().map_or("loss", |monitor| monitor.metric.as_str());
    let dash = || "—".to_owned();
    let rows: Vec<Vec<String>> = (group.runs.iter().enumerate())
        .map(|(index, run)| {
            let loss = || Monitor { metric: "loss".into(), higher_is_better: false };
            let own = run.monitor().unwrap_or_else(loss);
            let is_same = own.metric == metric;
            let of = if is_same { String::new() } else { format!(" <i>{}</i>", escape(&own.metric)) };
            let best = run.best(&own);
            let test = run.last_test(&own.metric);
            let planned = run.epochs_planned().map_or_else(String::new, |epochs| format!("/{epochs}"));
            vec![
                format!("<span class=\"swatch {}\"></span>{}", group.class(index), escape(&run.name)),
                format!("<span class=\"{0}\">{0}</span>", run.status.word()),
                format!("{}{planned}", run.epochs_done()),
                best.map_or_else(dash, |(value, epoch)| format!("{}{of} <i>@ {epoch}</i>", number(value))),
                test.map_or_else(dash, |value| number(value) + &of),
                escape(&run.penalty()),
                run.optimizer().map_or_else(dash, |(name, lr)| format!("{} {}", escape(&name), number(lr))),
                duration(run.seconds()),
                run.images_per_s().map_or_else(dash, |images| format!("{images:.0}")),
            ]
        })
        .collect();
    let best = format!("best {metric}");
    let test = format!("test {metric}");
    let head = [
        ("run", false),
        ("state", false),
        ("epochs", true),
        (best.as_str(), true),
        (test.as_str(), true),
        ("λ", false),
        ("optimizer, lr", false),
        ("time", true),
        ("samples/s", true),
    ];
    let is_judged = |run: &&&History| run.epochs.iter().any(|record| record.get("validation").is_some());
    let note = match group.runs.iter().filter(is_judged).count() {
        0 => "Without a validation set, best is what was seen on the test set: too good to be reported.",
        judged if judged == group.runs.len() => {
            "Best: on the validation set, at its epoch. Test: the last weights."
        }
        _ => {
            "Best: on the validation set, at its epoch; of runs that have none, on the test set, which is too good to be \
             reported. Test: the last weights."
        }
    };
    framed("Runs", note, &table(&head, &rows))
}

/// The layers of a network that is declared within its config, as one value.
const NETWORK: &str = "model.layers";

/// The keys in which the configs are not all the same; nothing for one run.
pub fn differences(group: &Group) -> String {
    if group.runs.len() < 2 {
        return String::new();
    }
    let flat: Vec<Vec<(String, String)>> = (group.runs.iter())
        .map(|run| {
            let mut leaves = Vec::new();
            flatten("", &run.config, &mut leaves);
            leaves
        })
        .collect();
    let networks: Vec<&str> = {
        let all = flat.iter().flatten().filter(|leaf| leaf.0 == NETWORK).map(|leaf| leaf.1.as_str());
        let mut seen = Vec::new();
        all.for_each(|text| {
            if !seen.contains(&text) {
                seen.push(text)
            }
        });
        seen
    };
    // A network has no short name: the different ones are numbered.
    let shown =
        |key: &str, text: &str| match networks.iter().position(|known| key == NETWORK && *known == text) {
            Some(number) => format!("network {}", number + 1),
            None => escape(text),
        };
    let value =
        |run: usize, key: &str| flat[run].iter().find(|leaf| leaf.0 == key).map(|leaf| leaf.1.as_str());
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in flat.iter().flatten() {
        if !keys.contains(&key.as_str()) && !["output", "threads", "device"].contains(&key.as_str()) {
            keys.push(key);
        }
    }
    keys.retain(|key| (1..flat.len()).any(|run| value(run, key) != value(0, key)));
    let rows: Vec<Vec<String>> = (keys.iter())
        .map(|key| {
            let cells = (0..flat.len())
                .map(|run| value(run, key).map_or_else(|| "<i>—</i>".into(), |text| shown(key, text)));
            std::iter::once(format!("<code>{}</code>", escape(key))).chain(cells).collect()
        })
        .collect();
    let mut head = vec![("key", false)];
    head.extend(group.runs.iter().map(|run| (run.name.as_str(), false)));
    let content =
        if rows.is_empty() { "<p>The configs are the same.</p>\n".to_owned() } else { table(&head, &rows) };
    framed("What differs", "Keys of the config that are not the same in all runs.", &content)
}

/// Every value with its path; a list of plain values is one value, and so is the network.
fn flatten(path: &str, value: &Value, leaves: &mut Vec<(String, String)>) {
    let whole = |list: &Vec<Value>| list.iter().all(|item| !item.is_object());
    match value {
        Value::Object(map) if path == "model" && map.contains_key("layers") => {
            if let Some(args) = map.get("args") {
                flatten("model.args", args, leaves);
            }
            leaves.push((NETWORK.into(), json!([map.get("blocks"), map["layers"]]).to_string()));
        }
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, leaves);
            }
        }
        Value::Array(list) if !whole(list) => {
            for (index, value) in list.iter().enumerate() {
                flatten(&format!("{path}.{index}"), value, leaves);
            }
        }
        Value::Null => {}
        Value::String(text) => leaves.push((path.to_owned(), text.clone())),
        Value::Number(_) => {
            let text = value.as_f64().filter(|_| value.is_f64()).map_or_else(|| value.to_string(), number);
            leaves.push((path.to_owned(), text));
        }
        other => leaves.push((path.to_owned(), other.to_string())),
    }
}
