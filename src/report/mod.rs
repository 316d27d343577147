//! Runs and sweeps side by side, as one HTML page that needs nothing else: no network, no file beside it, and
//! no script but for the numbers under the pointer.

mod classes;
mod coefficients;
mod curves;
pub mod history;
mod layers;
mod overview;
mod pictures;
mod plots;
mod predicted;
pub mod reliability;
mod sweeps;

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use crate::plot::{Drawn, class, escape};
use crate::report::history::{History, Swept};
use crate::util::exit_code::{ExitCode, fail};

pub use plots::plots;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Marks a page as written by this program.
pub const GENERATOR: &str = "<meta name=\"generator\" content=\"tikhonov";

pub struct Report {
    pub runs: Vec<History>,
    pub sweeps: Vec<Swept>,
}

impl Report {
    /// Of folders that each hold a run or a sweep; exit 2 for one that holds neither.
    pub fn of<P: AsRef<Path>>(folders: &[P]) -> Result<Self> {
        let mut report = Self { runs: Vec::new(), sweeps: Vec::new() };
        for folder in folders {
            let folder = folder.as_ref();
            if Swept::is_sweep(folder) {
                report.sweeps.push(Swept::read(folder)?);
            } else if History::is_run(folder) {
                report.runs.push(History::read(folder)?);
            } else {
                let message = format!(
                    "{} holds neither a run nor a sweep; `tikhonov runs` lists the runs below a folder",
                    folder.display()
                );
                return Err(fail(ExitCode::Usage, message));
            }
        }
        disambiguate(&mut report.runs);
        Ok(report)
    }

    /// The page. Fails where a trial of a sweep cannot be read.
    pub fn page(&self) -> Result<String> {
        let mut body = String::new();
        for sweep in &self.sweeps {
            body += &sweeps::section(sweep)?;
        }
        let mut tasks: Vec<String> = Vec::new();
        self.runs.iter().map(task_of).for_each(|task| {
            if !tasks.contains(&task) {
                tasks.push(task)
            }
        });
        for task in &tasks {
            // Losses of different tasks have no common axis, and configs nothing in common.
            let runs = self.runs.iter().filter(|run| task_of(run) == *task).collect();
            let group = Group { runs, ordered: false };
            if tasks.len() > 1 {
                body += &format!("<h2 class=\"task\">{}</h2>\n", escape(task));
            }
            body += &overview::section(&group);
            body += &coefficients::section(&group);
            body += &curves::section(&group, "");
            body += &layers::section(&group);
            body += &classes::section(&group);
            body += &predicted::section(&group);
            body += &pictures::section(&group);
            body += &overview::differences(&group);
        }
        let names: Vec<&str> = (self.sweeps.iter().map(|sweep| sweep.name.as_str()))
            .chain(self.runs.iter().map(|run| run.name.as_str()))
            .collect();
        let title = match names.as_slice() {
            [] => "Nothing".to_owned(),
            [one] => (*one).to_owned(),
            [one, two] => format!("{one} and {two}"),
            [one, rest @ ..] => format!("{one} and {} others", rest.len()),
        };
        let title = escape(&title);
        let version = env!("CARGO_PKG_VERSION");
        Ok(format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n{GENERATOR} {version}\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title} · tikhonov</title>\n\
             <style>\n{STYLE}</style>\n</head>\n<body>\n<header><p class=\"kicker\">tikhonov report</p><h1>{title}</h1>\
             <button id=\"theme\" type=\"button\" hidden aria-label=\"Light or dark\">◐</button></header>\n<main>\n{body}</main>\n\
             <footer>tikhonov {version}. Objective: data loss + Σ λ₁‖w‖₁ + (λ₂/2)‖w‖₂².</footer>\n\
             <div id=\"tip\" hidden></div>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
        ))
    }
}

fn task_of(run: &History) -> String {
    let task = &run.config["task"];
    let key = task.as_object().and_then(|map| map.keys().next()).map(String::as_str);
    task.as_str().or(key).unwrap_or("unknown task").to_owned()
}

/// Runs that are shown side by side.
struct Group<'a> {
    runs: Vec<&'a History>,
    /// Whether their colours follow an order, such as that of λ, instead of each being its own.
    ordered: bool,
}

impl Group<'_> {
    fn class(&self, run: usize) -> String {
        class(run, self.runs.len(), self.ordered)
    }
}

/// Folders of one name get as much of their path as tells them apart.
fn disambiguate(runs: &mut [History]) {
    for index in 0..runs.len() {
        let same = |other: &History| other.name == runs[index].name;
        if runs.iter().filter(|run| same(run)).count() > 1 {
            let parent = runs[index].path.parent().map(crate::report::history::name_of).unwrap_or_default();
            let name = format!("{parent}/{}", runs[index].name);
            runs[index].name = name;
        }
    }
}

/// A figure in its frame, with the numbers that the script shows.
fn figure(drawn: &Drawn) -> String {
    // Within a script element only `<` could end it.
    let hover = drawn.hover.to_string().replace('<', "\\u003c");
    format!(
        "<figure class=\"chart\">{}<script type=\"application/json\">{hover}</script></figure>\n",
        drawn.svg
    )
}

fn plain_figure(svg: &str) -> String {
    format!("<figure>{svg}</figure>\n")
}

/// A section, or nothing where it has no content.
fn section(title: &str, note: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    let note = if note.is_empty() { String::new() } else { format!("<p class=\"note\">{note}</p>") };
    format!("<section><h2>{}</h2>{note}\n{content}</section>\n", escape(title))
}

/// A table that scrolls within itself. Cells are HTML already; those of `head` marked `true` are numbers.
fn table(head: &[(&str, bool)], rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=\"scroll\"><table><thead><tr>");
    let align = |number: bool| if number { " class=\"n\"" } else { "" };
    for (name, number) in head {
        let _ = write!(out, "<th{}>{}</th>", align(*number), escape(name));
    }
    out.push_str("</tr></thead><tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for (index, (cell, (_, number))) in row.iter().zip(head).enumerate() {
            let tag = if index == 0 { "th" } else { "td" };
            let _ = write!(out, "<{tag}{}>{cell}</{tag}>", align(*number));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

/// `3 min 20 s`.
fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}
