//! The newest pictures that the runs have drawn, within the page itself.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Group, section as framed};
use crate::config::FILTERS;
use crate::plot::escape;
use crate::report::history::name_of;

/// Pictures per run, and bytes of one, so that the page stays small enough for mail.
const EACH: usize = 4;
const LARGEST: u64 = 2 << 20;

pub fn section(group: &Group) -> String {
    let mut content = String::new();
    for run in &group.runs {
        let small = |path: &std::path::PathBuf| fs::metadata(path).is_ok_and(|file| file.len() <= LARGEST);
        let (filters, samples): (Vec<_>, Vec<_>) =
            run.pictures().into_iter().filter(small).partition(|path| name_of(path) == FILTERS);
        let pictures: String = (samples.iter().take(EACH).chain(&filters))
            .filter_map(|path| Some((name_of(path), fs::read(path).ok()?)))
            .map(|(name, bytes)| {
                let name = escape(name.strip_suffix(".png").unwrap_or(&name));
                let data = STANDARD.encode(bytes);
                format!("<figure><img alt=\"{name}\" src=\"data:image/png;base64,{data}\"><figcaption>{name}</figcaption></figure>\n")
            })
            .collect();
        if pictures.is_empty() {
            continue;
        }
        if group.runs.len() > 1 {
            content += &format!("<h3>{}</h3>\n", escape(&run.name));
        }
        content += &format!("<div class=\"grid pictures\">\n{pictures}</div>\n");
    }
    framed("Pictures", "", &content)
}
