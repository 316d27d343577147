//! A sweep: how well each point does and which are chosen; how some of its trials got there.

use std::path::PathBuf;

use anyhow::Result;

use super::{
    Group, classes, curves, duration, figure, layers, pictures, plain_figure, section as framed, table,
};
use crate::plot::{escape, number};
use crate::report::history::{History, Swept, SweptPoint};
use crate::sweep::path;
use crate::sweep::plot::{self, shown};

/// Points whose curves are shown.
const CURVES: usize = 16;
/// The same where more than one key is varied.
const BEST: usize = 6;

pub fn section(sweep: &Swept) -> Result<String> {
    let mut figures = String::new();
    let view = sweep.view();
    for svg in [view.curve(), view.heat()].into_iter().flatten() {
        figures += &plain_figure(&svg);
    }
    let points = points(sweep);
    let remarks: String = view.remarks().iter().map(|one| format!("<li>{}</li>", escape(one))).collect();
    let remarks = if remarks.is_empty() { remarks } else { format!("<ul class=\"note\">{remarks}</ul>\n") };
    let path = path::figure_of(&sweep.path).and_then(|lines| lines.draw());
    let path =
        path.map_or_else(String::new, |drawn| format!("<div class=\"grid\">\n{}</div>\n", figure(&drawn)));
    let content =
        format!("{}\n{remarks}<div class=\"pair\">\n{figures}{points}</div>\n{path}", summary(sweep));
    let mut out = framed(&format!("Sweep {}", sweep.name), "", &content);

    let trials = trials(sweep);
    let runs = trials.iter().map(|(path, name)| {
        let mut run = History::read(path)?;
        run.name.clone_from(name);
        Ok(run)
    });
    let runs = runs.collect::<Result<Vec<_>>>()?;
    let group = Group { runs: runs.iter().collect(), ordered: sweep.keys.len() == 1 && runs.len() > 4 };
    let note = match sweep.keys.len() {
        1 => "One trial of each point.".to_owned(),
        _ => format!(
            "One trial of each of the {} best points, by {}.",
            runs.len(),
            escape(&sweep.keys.join(", "))
        ),
    };
    out += &curves::section(&group, &note);
    // Layer by layer only what was chosen: the rest is in the sums.
    let chosen = [sweep.best, sweep.one_standard_error];
    let chosen: Vec<String> = (0..sweep.points.len())
        .filter(|at| chosen.contains(&Some(*at)))
        .map(|at| name(sweep, &sweep.points[at]))
        .collect();
    let chosen =
        Group { runs: runs.iter().filter(|run| chosen.contains(&run.name)).collect(), ordered: false };
    out += &layers::section(&chosen);
    out += &classes::section(&chosen);
    out += &pictures::section(&chosen);
    Ok(out)
}

fn summary(sweep: &Swept) -> String {
    let chosen = |what: &str, class: &str, at: Option<usize>| {
        at.map_or_else(String::new, |at| {
            let point = &sweep.points[at];
            let mean = point.standing.mean.map_or_else(String::new, number);
            let error = error(point).map_or_else(String::new, |error| format!(" ± {}", number(error)));
            format!(
                "<div><dt><span class=\"swatch {class}\"></span>{what}</dt><dd>{}</dd><dd class=\"sub\">{} {mean}{error}</dd></div>",
                escape(&words(sweep, point)),
                escape(&sweep.metric)
            )
        })
    };
    // What was trained once more with the choice.
    let last = History::read(&sweep.path.join("final")).ok();
    let last = last.as_ref().and_then(|run| Some((run.status.word(), run.last_test(&sweep.metric)?)));
    let last = last.map_or_else(String::new, |(state, score)| {
        let metric = escape(&sweep.metric);
        format!(
            "<div><dt>Final fit, {state}</dt><dd>{}</dd><dd class=\"sub\">test {metric}</dd></div>",
            number(score)
        )
    });
    let key = |at: usize| escape(sweep.keys[at].rsplit('.').next().unwrap_or_default());
    let separable = sweep.view().separability().map_or_else(String::new, |both| {
        format!(
            "<div><dt>Interaction of the two</dt><dd>{:.0} % of the variance</dd><dd class=\"sub\">best {} goes with {} to the power of {:.2}</dd></div>",
            100.0 * both.interaction,
            key(1),
            key(0),
            both.slope
        )
    });
    format!(
        "<dl class=\"cards\">{}{}{last}{separable}<div><dt>Trials</dt><dd>{}</dd><dd class=\"sub\">{} points, {} of training</dd></div></dl>",
        chosen("Best", "best", sweep.best),
        chosen("Strongest within one standard error", "simple", sweep.one_standard_error),
        sweep.finished,
        sweep.points.len(),
        duration(sweep.seconds)
    )
}

fn points(sweep: &Swept) -> String {
    let rows: Vec<Vec<String>> = (sweep.points.iter().enumerate())
        .map(|(at, point)| {
            let standing = &point.standing;
            let mark = |which: Option<usize>, class: &str, word: &str| match which == Some(at) {
                true => format!(" <span class=\"mark {class}\">{word}</span>"),
                false => String::new(),
            };
            let marks =
                mark(sweep.best, "best", "best") + &mark(sweep.one_standard_error, "simple", "1 s.e.");
            let mut row: Vec<String> =
                point.standing.point.iter().map(|value| escape(&shown(value))).collect();
            // Beside the first cell, which stays in sight where a narrow page scrolls.
            if let Some(first) = row.first_mut() {
                *first += &marks;
            }
            row.push(standing.mean.map_or_else(|| point.failed.unwrap_or("—").to_owned(), number));
            row.push(error(point).map_or_else(|| "—".into(), number));
            row.push(format!("{}", point.trials.len()));
            row
        })
        .collect();
    let mut head: Vec<(&str, bool)> = sweep.keys.iter().map(|key| (key.as_str(), true)).collect();
    head.extend([(sweep.metric.as_str(), true), ("± s.e.", true), ("trials", true)]);
    table(&head, &rows)
}

/// The standard error, 0 where it is nothing but rounding.
fn error(point: &SweptPoint) -> Option<f64> {
    let error = point.standing.standard_error?;
    Some(if error < 1e-12 * point.standing.mean?.abs() { 0.0 } else { error })
}

/// The first trial of so many points that their curves can be distinguished: along the one number that is
/// varied, else of the best.
fn trials(sweep: &Swept) -> Vec<(PathBuf, String)> {
    let mut order: Vec<usize> = (0..sweep.points.len()).collect();
    let value = |at: &usize| sweep.points[*at].standing.point[0].as_f64().unwrap_or(f64::NAN);
    if sweep.keys.len() == 1 {
        order.sort_by(|a, b| value(a).total_cmp(&value(b)));
        let every = order.len().div_ceil(CURVES).max(1);
        let mut place = 0..;
        order.retain(|at| {
            place.next().is_some_and(|place: usize| place.is_multiple_of(every))
                || [sweep.best, sweep.one_standard_error].contains(&Some(*at))
        });
    } else {
        let sign = if sweep.higher_is_better { -1.0 } else { 1.0 };
        let cost = |at: &usize| sweep.points[*at].standing.mean.map_or(f64::INFINITY, |mean| sign * mean);
        order.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
        order.truncate(BEST);
    }
    let kept = order.into_iter().map(|at| &sweep.points[at]);
    kept.filter_map(|point| {
        let folder = point.trials.iter().find(|folder| History::is_run(folder))?;
        Some((folder.clone(), name(sweep, point)))
    })
    .collect()
}

/// `l2 10⁻³, lr 0.1`
fn words(sweep: &Swept, point: &SweptPoint) -> String {
    plot::words(&sweep.keys, &point.standing.point)
}

/// A point beside its curve: with more than one key the values alone, to save space.
fn name(sweep: &Swept, point: &SweptPoint) -> String {
    match sweep.keys.len() {
        1 => words(sweep, point),
        _ => point.standing.point.iter().map(shown).collect::<Vec<_>>().join(", "),
    }
}
