//! Loss, penalty, metrics, learning rate and λ over time, all runs in each figure.

use serde_json::Value;

use super::{Group, figure, section as framed};
use crate::plot::{DIRECT, Kind, Lines, Series, escape};
use crate::report::history::History;

/// With more runs than this the single steps behind the epochs would be a fog.
const STEPS_BEHIND: usize = 3;

pub fn section(group: &Group, note: &str) -> String {
    let legend = match group.runs.len() {
        // Names stand at the curves.
        0..=6 => String::new(),
        _ => legend(group),
    };
    let content: String =
        figures(group).iter().filter_map(|(_, lines)| lines.draw()).map(|drawn| figure(&drawn)).collect();
    if content.is_empty() {
        return String::new();
    }
    framed("Curves", note, &format!("{legend}<div class=\"grid\">\n{content}</div>\n"))
}

/// Everything that is drawn over time, each with a name for its file.
pub(super) fn figures(group: &Group) -> Vec<(String, Lines)> {
    let of = |title: &str, kind: Kind, series: Vec<Series>| {
        let direct = group.runs.len() > 1 || series.iter().filter(|series| series.named).count() > 1;
        let direct = if direct { DIRECT } else { 0 };
        Lines {
            title: title.into(),
            x: "epochs".into(),
            x_kind: Kind::Count,
            falls: false,
            kind,
            series,
            direct,
        }
    };
    let mut figures = Vec::new();
    let mut add = |name: &str, lines: Lines| {
        if lines.series.iter().any(|series| !series.points.is_empty()) {
            figures.push((name.to_owned(), lines));
        }
    };
    let alone = group.runs.len() == 1;
    match alone {
        true => add("loss", of("data loss", Kind::Auto, all_losses(group))),
        false => add("loss", of("data loss, training", Kind::Auto, loss(group))),
    }
    for split in ["validation", "test"] {
        for metric in metrics(group, split).iter().filter(|metric| !alone || *metric != "loss") {
            let kind = if metric == "loss" { Kind::Auto } else { Kind::Linear };
            let series = epochs(group, |record| record.get(split)?.get(metric));
            // What was looked at once is a number in the table, not a curve.
            if series.iter().any(|series| series.points.len() > 1) {
                let title = format!("{}, {split}", metric.replace('_', " "));
                add(&format!("{split}-{metric}"), of(&title, kind, series));
            }
        }
    }
    add("penalty", of("penalty", Kind::Auto, epochs(group, |record| record.get("penalty"))));
    // What stays as the config has it is no curve.
    let rates =
        [("lambda", "λ", lambdas(group)), ("lr", "learning rate", steps(group, |record| record.get("lr")))];
    for (name, title, series) in rates {
        if series.iter().any(moves) {
            add(name, of(title, Kind::Auto, series));
        }
    }
    let norms = epochs(group, |record| record.get("weight_norm"));
    add("weights", of("‖w‖₂ of all weights", Kind::Auto, norms));
    let zeros = epochs(group, |record| record.get("zeros"));
    if zeros.iter().any(|series| series.points.iter().any(|point| point.1 > 0.0)) {
        add("zeros", of("share of weights that are 0", Kind::Linear, zeros));
    }
    let gradients = steps(group, |record| record.get("grad_norm"));
    add("gradient", of("‖g‖₂ of the data loss", Kind::Auto, gradients));
    figures
}

fn moves(series: &Series) -> bool {
    series.points.iter().any(|point| point.1 != series.points[0].1)
}

fn series(group: &Group, points: impl Fn(&History) -> Vec<(f64, f64)>) -> Vec<Series> {
    let one = |(index, run): (usize, &&History)| Series {
        name: run.name.clone(),
        class: group.class(index),
        points: points(run),
        named: true,
    };
    group.runs.iter().enumerate().map(one).collect()
}

fn epochs(group: &Group, value: impl Fn(&Value) -> Option<&Value> + Copy) -> Vec<Series> {
    series(group, |run| run.over_epochs(value))
}

fn steps(group: &Group, value: impl Fn(&Value) -> Option<&Value> + Copy) -> Vec<Series> {
    // Where steps are logged less often than epochs end, the epochs say more.
    series(group, |run| match run.steps.len() < run.epochs.len() {
        true => run.over_epochs(value),
        false => run.over_steps(value),
    })
}

/// The means of the epochs, before the single steps where there are few runs.
fn loss(group: &Group) -> Vec<Series> {
    let mut all = Vec::new();
    if group.runs.len() <= STEPS_BEHIND {
        for series in steps(group, |record| record.get("loss")) {
            all.push(Series { class: format!("{} faint", series.class), named: false, ..series });
        }
    }
    all.extend(epochs(group, |record| record.get("loss")));
    all
}

/// Of one run: as trained, and on the sets that judge it.
fn all_losses(group: &Group) -> Vec<Series> {
    let mut all = loss(group);
    for series in &mut all {
        series.name = "training".into();
    }
    for (index, split) in ["validation", "test"].into_iter().enumerate() {
        for series in epochs(group, |record| record.get(split)?.get("loss")) {
            // Once, at the end, is no curve.
            if series.points.len() > 1 {
                all.push(Series { name: split.into(), class: format!("c{}", index + 1), ..series });
            }
        }
    }
    all
}

/// One curve per run, group of parameters and kind of λ; named by the run alone where that is enough.
fn lambdas(group: &Group) -> Vec<Series> {
    let mut all = Vec::new();
    let mut kinds: Vec<(String, String)> = Vec::new();
    for record in group.runs.iter().flat_map(|run| run.steps.iter().chain(&run.epochs)) {
        for (label, rates) in record["lambda"].as_object().into_iter().flatten() {
            for kind in rates.as_object().into_iter().flatten().map(|(kind, _)| kind) {
                let one = (label.clone(), kind.clone());
                if !kinds.contains(&one) {
                    kinds.push(one);
                }
            }
        }
    }
    for (number, (label, kind)) in kinds.iter().enumerate() {
        for mut one in steps(group, |record| record.get("lambda")?.get(label)?.get(kind)) {
            let what = if kinds.iter().all(|other| other.0 == *label) {
                kind.clone()
            } else {
                format!("{label} {kind}")
            };
            match (group.runs.len(), kinds.len()) {
                (_, 1) => {}
                (1, _) => {
                    one.name = what;
                    one.class = crate::plot::class(number, kinds.len(), false);
                }
                _ => {
                    one.name = format!("{} {what}", one.name);
                    if number > 0 {
                        one.class += " dash";
                    }
                }
            }
            if !one.points.is_empty() {
                all.push(one);
            }
        }
    }
    all
}

/// The scores that some run has, in their own order.
fn metrics(group: &Group, split: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for scores in group.runs.iter().flat_map(|run| &run.epochs).filter_map(|record| record[split].as_object())
    {
        for name in scores.keys() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    // Its root tells the same.
    if names.iter().any(|name| name == "rmse") {
        names.retain(|name| name != "mse");
    }
    names
}

fn legend(group: &Group) -> String {
    let entries = group.runs.iter().enumerate().map(|(index, run)| {
        format!("<li><span class=\"swatch {}\"></span>{}</li>", group.class(index), escape(&run.name))
    });
    format!("<ul class=\"legend\">{}</ul>\n", entries.collect::<String>())
}
