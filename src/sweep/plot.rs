//! The curve of a sweep over one number, with error bars and both choices marked, as an SVG of its own.

use std::fmt::Write;

use serde_json::Value;

use super::{Design, Outcome, shown};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 52.0;

/// None where more than one number is varied, or fewer than two points have a mean.
pub fn curve(design: &Design, outcome: &Outcome) -> Option<String> {
    let [axis] = design.axes.as_slice() else { return None };
    let points: Vec<(f64, f64, f64, usize)> = (outcome.standings.iter().enumerate())
        .filter_map(|(at, standing)| {
            let x = standing.point.first().and_then(Value::as_f64)?;
            Some((x, standing.mean?, standing.standard_error.unwrap_or(0.0), at))
        })
        .collect();
    if points.len() < 2 {
        return None;
    }
    let log = axis.range.is_some_and(|range| range.log);
    let place = |x: f64| if log { x.log10() } else { x };
    let span = |values: &mut dyn Iterator<Item = f64>| {
        values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (first, last) = span(&mut points.iter().map(|p| place(p.0)));
    let (low, high) = span(&mut points.iter().flat_map(|p| [p.1 - p.2, p.1 + p.2]));
    let margin = ((high - low) * 0.08).max(high.abs() * 1e-9).max(1e-12);
    let (low, high) = (low - margin, high + margin);
    let x = |value: f64| LEFT + (place(value) - first) / (last - first).max(1e-12) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM);

    let mut sorted = points.clone();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let line: Vec<_> = sorted.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
    let (best, simple) =
        outcome.choice.map_or((None, None), |choice| (Some(choice.best), choice.one_standard_error));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <style>svg{{background:#fff;color:#222}}@media(prefers-color-scheme:dark){{svg{{background:#16181c;color:#ddd}}}}\
         text{{fill:currentColor}}.axis{{stroke:currentColor;opacity:.35}}.curve{{stroke:#3b7dd8;fill:none;stroke-width:2}}\
         .bar{{stroke:#3b7dd8;opacity:.7}}.dot{{fill:#3b7dd8}}.best{{fill:#d9822b}}.simple{{fill:#3a9d5d}}</style>\n"
    );
    // Writing into a String cannot fail.
    let mut put = |text: String| {
        let _ = writeln!(svg, "{text}");
    };
    for step in 0..=4 {
        let value = low + (high - low) * f64::from(step) / 4.0;
        put(format!(
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/>",
            WIDTH - RIGHT,
            y(value)
        ));
        put(format!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.4}</text>",
            LEFT - 8.0,
            y(value) + 4.0
        ));
    }
    let every = sorted.len().div_ceil(9);
    for point in sorted.iter().step_by(every) {
        let at = HEIGHT - BOTTOM + 18.0;
        put(format!(
            "<text x=\"{:.1}\" y=\"{at}\" text-anchor=\"middle\">{}</text>",
            x(point.0),
            escape(&shown(&point.0.into()))
        ));
    }
    put(format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 10.0,
        escape(&axis.key)
    ));
    put(format!(
        "<text x=\"{LEFT}\" y=\"18\">{} on the validation set, mean ± standard error</text>",
        escape(&outcome.metric)
    ));
    put(format!("<polyline class=\"curve\" points=\"{}\"/>", line.join(" ")));
    for &(at, mean, error, index) in &sorted {
        let (x, from, to) = (x(at), y(mean - error), y(mean + error));
        put(format!("<line class=\"bar\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{from:.1}\" y2=\"{to:.1}\"/>"));
        let (class, radius, title) = match index {
            index if Some(index) == best => ("best", 6, "best"),
            index if Some(index) == simple => ("simple", 6, "within one standard error"),
            _ => ("dot", 3, ""),
        };
        put(format!(
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"{radius}\"><title>{title}</title></circle>",
            y(mean)
        ));
    }
    put("<circle class=\"best\" cx=\"470\" cy=\"14\" r=\"5\"/><text x=\"480\" y=\"18\">best</text>".into());
    put("<circle class=\"simple\" cx=\"530\" cy=\"14\" r=\"5\"/><text x=\"540\" y=\"18\">one s.e.</text>\n</svg>".into());
    Some(svg)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
