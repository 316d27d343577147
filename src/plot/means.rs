//! Means with their standard errors over one number, and which two of them are chosen.

use std::fmt::Write;

use super::frame::Words;
use super::{Frame, Kind, spans_decades};

/// One value of the number that is varied.
pub struct Mean {
    pub x: f64,
    pub mean: f64,
    pub error: Option<f64>,
    /// The single scores that the mean is of.
    pub scores: Vec<f64>,
}

pub struct Means<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub log: bool,
    pub means: Vec<Mean>,
    /// Indices into `means`.
    pub best: Option<usize>,
    pub one_standard_error: Option<usize>,
    pub higher_is_better: bool,
}

impl Means<'_> {
    /// None for fewer than two points.
    pub fn svg(&self) -> Option<String> {
        let mut sorted: Vec<(usize, &Mean)> =
            self.means.iter().enumerate().filter(|(_, mean)| mean.mean.is_finite()).collect();
        sorted.sort_by(|a, b| a.1.x.total_cmp(&b.1.x));
        if sorted.len() < 2 {
            return None;
        }
        let ys = sorted.iter().flat_map(|(_, one)| {
            let error = one.error.unwrap_or(0.0);
            [one.mean - error, one.mean + error].into_iter().chain(one.scores.iter().copied())
        });
        let kind = if self.log { Kind::Log } else { Kind::Linear };
        let words = Words { title: self.title, x: self.x, falls: false };
        let xs = sorted.iter().map(|(_, one)| one.x);
        let y_kind =
            if spans_decades(sorted.iter().map(|(_, one)| one.mean)) { Kind::Log } else { Kind::Linear };
        let mut frame = Frame::new(&words, xs, ys, (kind, y_kind), (0.03, 12.0))?;
        // What is below 0 has no place on a logarithmic axis.
        sorted.retain(|(_, one)| frame.at((one.x, one.mean)).is_some());

        if let (Some((_, best)), Some(_)) =
            (sorted.iter().find(|(at, _)| Some(*at) == self.best), self.one_standard_error)
        {
            let error = best.error.unwrap_or(0.0);
            let limit = if self.higher_is_better { best.mean - error } else { best.mean + error };
            if let Some(y) = frame.y.at(limit) {
                let (from, to) = (frame.x.from, frame.x.to);
                let _ = write!(frame.svg, "<path class=\"rule\" d=\"M{from:.1} {y:.1}H{to:.1}\"/>");
            }
        }
        let line: Vec<_> = (sorted.iter())
            .filter_map(|(_, one)| frame.at((one.x, one.mean)))
            .map(|(x, y)| format!("{x:.1} {y:.1}"))
            .collect();
        let _ = write!(frame.svg, "<path class=\"l m\" d=\"M{}\"/>", line.join("L"));
        for (at, one) in &sorted {
            let error = one.error.unwrap_or(0.0);
            let scores: Vec<_> = one.scores.iter().filter_map(|score| frame.at((one.x, *score))).collect();
            for (x, y) in scores {
                let _ = write!(frame.svg, "<circle class=\"mf faint\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\"/>");
            }
            let (Some((x, y)), Some(high)) = (frame.at((one.x, one.mean)), frame.y.at(one.mean + error))
            else {
                continue;
            };
            // On a logarithmic axis an error bar that goes below 0 goes to the end.
            let low = frame.y.at(one.mean - error).unwrap_or(frame.y.from);
            if one.error.is_some() {
                let _ = write!(
                    frame.svg,
                    "<path class=\"l m\" d=\"M{x:.1} {low:.1}V{high:.1}M{0:.1} {low:.1}h6M{0:.1} {high:.1}h6\"/>",
                    x - 3.0
                );
            }
            let (best, simple) = (self.best == Some(*at), self.one_standard_error == Some(*at));
            let class = if best {
                "best"
            } else if simple {
                "simple"
            } else {
                "mf"
            };
            let radius = if best || simple { 5.5 } else { 3.0 };
            let error = one.error.map_or_else(String::new, |error| format!(" ± {}", super::number(error)));
            let _ = write!(
                frame.svg,
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{}: {}{error}</title></circle>",
                super::number(one.x),
                super::number(one.mean)
            );
            let word = match (best, simple) {
                (true, true) => "best and 1 s.e.",
                (true, false) => "best",
                (false, true) => "1 s.e.",
                _ => continue,
            };
            // Above the bar where there is room, else below.
            let top = low.min(high);
            let y = if top > frame.y.to + 16.0 { top - 7.0 } else { low.max(high) + 16.0 };
            let x = x.clamp(frame.x.from + 16.0, frame.x.to - 14.0);
            let _ = write!(
                frame.svg,
                "<text class=\"{class} end\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{word}</text>"
            );
        }
        Some(frame.end())
    }
}
