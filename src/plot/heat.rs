//! Heat maps: two numbers that are varied, or which class is taken for which.

use std::fmt::Write;

use super::{WIDTH, escape, number, width};

/// What a colour means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ramp {
    /// From the least of the cells to the largest, viridis (Smith and van der Walt 2015).
    Range { higher_is_better: bool },
    /// A share in [0, 1]: nothing to full.
    Share,
}

#[derive(Clone, Default)]
pub struct Cell {
    /// None where nothing was measured.
    pub value: Option<f64>,
    /// In the cell, where there is room.
    pub text: String,
    /// Under the pointer.
    pub title: String,
    pub chosen: bool,
}

pub struct Heat<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub columns: Vec<String>,
    /// From top to bottom.
    pub rows: Vec<String>,
    pub cells: Vec<Vec<Cell>>,
    pub ramp: Ramp,
}

const VIRIDIS: [[f64; 3]; 9] = [
    [68.0, 1.0, 84.0],
    [71.0, 44.0, 122.0],
    [59.0, 81.0, 139.0],
    [44.0, 113.0, 142.0],
    [33.0, 144.0, 141.0],
    [39.0, 173.0, 129.0],
    [92.0, 200.0, 99.0],
    [170.0, 220.0, 50.0],
    [253.0, 231.0, 37.0],
];

impl Heat<'_> {
    /// None where nothing was measured.
    pub fn svg(&self) -> Option<String> {
        let values = || self.cells.iter().flatten().filter_map(|cell| cell.value).filter(|v| v.is_finite());
        let (low, high) = (values().reduce(f64::min)?, values().reduce(f64::max)?);
        let longest = self.rows.iter().map(|row| width(row)).fold(0.0, f64::max);
        let left = longest + 30.0;
        let cell = (WIDTH - left - 4.0) / self.columns.len().max(1) as f64;
        let tall = cell.clamp(if self.rows.len() > 40 { 6.0 } else { 15.0 }, 34.0);
        let top = 30.0;
        let bottom = top + tall * self.rows.len() as f64;
        let legend = if self.ramp == Ramp::Share { 0.0 } else { 30.0 };
        let height = bottom + 40.0 + legend;
        let title = escape(self.title);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height:.1}\" role=\"img\" aria-label=\"{title}\"><text class=\"t\" x=\"0\" y=\"14\">{title}</text>"
        );
        // Writing into a String cannot fail.
        let mut put = |text: String| {
            let _ = svg.write_str(&text);
        };
        let gap = if cell > 14.0 { 1.5 } else { 0.0 };
        for (row, cells) in self.cells.iter().enumerate() {
            let y = top + tall * row as f64;
            for (column, one) in cells.iter().enumerate() {
                let x = left + cell * column as f64;
                let area = format!(
                    "x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"",
                    cell - gap,
                    tall - gap
                );
                let (paint, ink) = self.paint(one.value, low, high);
                if self.ramp == Ramp::Share
                    && one.value.is_none_or(|value| value <= 0.0)
                    && self.rows.len() > 40
                {
                    continue;
                }
                put(format!(
                    "<rect {area} rx=\"{:.1}\" {paint}><title>{}</title></rect>",
                    gap,
                    escape(&one.title)
                ));
                if width(&one.text) <= cell - 2.0 && tall >= 13.0 {
                    put(format!(
                        "<text class=\"{ink}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" pointer-events=\"none\">{}</text>",
                        x + (cell - gap) / 2.0,
                        y + tall / 2.0 + 3.2,
                        escape(&one.text)
                    ));
                }
                if one.chosen {
                    put(format!("<rect {area} class=\"ring\" rx=\"{gap:.1}\"/>"));
                }
            }
        }
        let every = |size: f64, room: f64| ((room / size).ceil() as usize).max(1);
        for (row, name) in self.rows.iter().enumerate().step_by(every(tall, 12.0)) {
            let y = top + tall * (row as f64 + 0.5) + 3.8;
            put(format!(
                "<text x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>",
                left - 6.0,
                escape(name)
            ));
        }
        // Names are cut to the cell where that leaves something to read; a number that is cut is another
        // number.
        let room = ((cell - 3.0) / width("o")) as usize;
        let columns: Vec<String> = (self.columns.iter())
            .map(|name| match name.starts_with(char::is_alphabetic) && room >= 4 {
                true if name.chars().count() > room => {
                    name.chars().take(room - 1).chain(['…']).collect::<String>()
                }
                true => name.clone(),
                false => name.clone(),
            })
            .collect();
        let widest = columns.iter().map(|column| width(column)).fold(0.0, f64::max);
        for (column, name) in columns.iter().enumerate().step_by(every(cell + 4.0, widest)) {
            let x = left + cell * (column as f64 + 0.5);
            put(format!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 15.0,
                escape(name)
            ));
        }
        let middle = (left + WIDTH) / 2.0;
        put(format!(
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 32.0,
            escape(self.x)
        ));
        let middle = (top + bottom) / 2.0;
        put(format!(
            "<text transform=\"translate(11 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escape(self.y)
        ));
        if let Ramp::Range { higher_is_better } = self.ramp {
            let (y, bar) = (bottom + 44.0, 120.0);
            let from = (left + WIDTH - bar) / 2.0;
            for step in 0..40 {
                let value = low + (high - low) * f64::from(step) / 39.0;
                let (paint, _) = self.paint(Some(value), low, high);
                put(format!(
                    "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"9\" {paint}/>",
                    from + bar / 40.0 * f64::from(step),
                    bar / 40.0 + 0.3
                ));
            }
            let word = |best: bool| if best { "best " } else { "" };
            put(format!(
                "<text x=\"{:.1}\" y=\"{1:.1}\" text-anchor=\"end\">{2}{3}</text><text x=\"{4:.1}\" y=\"{1:.1}\">{5}{6}</text>",
                from - 6.0,
                y + 8.5,
                word(!higher_is_better),
                number(low),
                from + bar + 6.0,
                word(higher_is_better),
                number(high)
            ));
        }
        put("</svg>".into());
        Some(svg)
    }

    /// The attributes of a cell, and the class of the text on it.
    fn paint(&self, value: Option<f64>, low: f64, high: f64) -> (String, &'static str) {
        let Some(value) = value.filter(|value| value.is_finite()) else {
            return ("class=\"none\"".into(), "on-none");
        };
        match self.ramp {
            Ramp::Share => {
                let share = value.clamp(0.0, 1.0);
                let opacity = if share > 0.0 { 0.06 + 0.94 * share } else { 0.03 };
                (
                    format!("class=\"share\" fill-opacity=\"{opacity:.3}\""),
                    if share > 0.45 { "light" } else { "ink" },
                )
            }
            // The best is bright.
            Ramp::Range { higher_is_better } => {
                let share = if high > low { (value - low) / (high - low) } else { 0.5 };
                let share = if higher_is_better { share } else { 1.0 - share };
                let at = share * (VIRIDIS.len() - 1) as f64;
                let below = (at as usize).min(VIRIDIS.len() - 2);
                let mix = |i: usize| {
                    VIRIDIS[below][i] + (VIRIDIS[below + 1][i] - VIRIDIS[below][i]) * (at - below as f64)
                };
                let [r, g, b] = [mix(0), mix(1), mix(2)].map(|v| v.round() as u8);
                (format!("fill=\"#{r:02x}{g:02x}{b:02x}\""), if share > 0.55 { "dark" } else { "light" })
            }
        }
    }
}
