//! What surrounds the data: title, grid, ticks, the name of what runs along the bottom.

use std::fmt::Write;

use super::{HEIGHT, Kind, Scale, WIDTH, escape, width};

/// The place of the data within a figure, in pixels.
pub const TOP: f64 = 32.0;
const LEFT: f64 = 58.0;
const BOTTOM: f64 = HEIGHT - 38.0;

pub struct Frame {
    pub x: Scale,
    pub y: Scale,
    pub svg: String,
}

/// The words of a figure, as they are; they are escaped here.
pub struct Words<'a> {
    pub title: &'a str,
    pub x: &'a str,
    /// Whether x falls from left to right.
    pub falls: bool,
}

impl Frame {
    /// The figure so far, its data yet to come; None where there is nothing finite to show. `right` pixels
    /// stay free.
    pub fn new(
        words: &Words,
        xs: impl Iterator<Item = f64>,
        ys: impl Iterator<Item = f64>,
        (x_kind, y_kind): (Kind, Kind),
        (x_margin, right): (f64, f64),
    ) -> Option<Self> {
        let y = Scale::fit(ys, y_kind, 0.06, (BOTTOM, TOP))?;
        let left = y.ticks(5).iter().map(|(_, text)| width(text) + 10.0).fold(LEFT, f64::max);
        let ends = if words.falls { (WIDTH - right, left) } else { (left, WIDTH - right) };
        let x = Scale::fit(xs, x_kind, x_margin, ends)?;
        let title = escape(words.title);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\
             <text class=\"t\" x=\"0\" y=\"14\">{title}</text>"
        );
        // Writing into a String cannot fail, here and below.
        for (at, text) in y.ticks(5) {
            let _ = write!(
                svg,
                "<path class=\"g\" d=\"M{left:.1} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                WIDTH - right,
                left - 8.0,
                at + 3.8
            );
        }
        let _ = write!(svg, "<path class=\"base\" d=\"M{left:.1} {BOTTOM}H{:.1}\"/>", WIDTH - right);
        let mut free_from = f64::NEG_INFINITY;
        let mut ticks = x.ticks(6);
        ticks.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (at, text) in ticks {
            let half = width(&text) / 2.0;
            let middle = at.min(WIDTH - half);
            if middle - half < free_from {
                continue;
            }
            free_from = middle + half + 6.0;
            let _ = write!(
                svg,
                "<path class=\"base\" d=\"M{at:.1} {BOTTOM}v4\"/><text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                BOTTOM + 16.0
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (left + WIDTH - right) / 2.0,
            HEIGHT - 5.0,
            escape(words.x)
        );
        Some(Self { x, y, svg })
    }

    /// Where a point lies; None where it has no place.
    pub fn at(&self, (x, y): (f64, f64)) -> Option<(f64, f64)> {
        Some((self.x.at(x)?, self.y.at(y)?))
    }

    pub fn end(mut self) -> String {
        self.svg.push_str("</svg>");
        self.svg
    }
}
