//! Curves over time, several side by side.

use std::fmt::Write;

use serde_json::{Value, json};

use super::frame::{TOP, Words};
use super::{Frame, HEIGHT, Kind, WIDTH, escape, short, width};

/// Points that a curve keeps at most, twice: the least and the largest of each slice of the axis.
const SLICES: usize = 150;

/// Names that are written at the ends of their curves over time; [`MOST_DIRECT`] have room at the most.
pub const DIRECT: usize = 6;
pub const MOST_DIRECT: usize = 12;

pub struct Series {
    pub name: String,
    /// Of [`super::class`], perhaps with `faint` or `dash` beside it.
    pub class: String,
    /// By x. A y that is not finite leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// Whether it is named, at its end and under the pointer; a background is not.
    pub named: bool,
}

pub struct Lines {
    pub title: String,
    pub x: String,
    pub x_kind: Kind,
    /// Whether x falls from left to right.
    pub falls: bool,
    /// Of y.
    pub kind: Kind,
    pub series: Vec<Series>,
    /// Names are at the ends of the curves where there are no more than this.
    pub direct: usize,
}

/// A figure, and its numbers for a script that tells those under the pointer.
pub struct Drawn {
    pub svg: String,
    pub hover: Value,
}

impl Lines {
    /// None where no series has a finite point.
    pub fn draw(&self) -> Option<Drawn> {
        let named: Vec<&Series> = self.series.iter().filter(|series| series.named).collect();
        let named = || named.iter().filter(|series| series.points.iter().any(|point| point.1.is_finite()));
        let direct = (1..=self.direct).contains(&named().count());
        let names: Vec<String> = named().map(|series| short(&series.name, 18)).collect();
        let right = match direct {
            true => 10.0 + names.iter().map(|name| width(name)).fold(0.0, f64::max),
            false => 12.0,
        };
        let points = || self.series.iter().flat_map(|series| &series.points);
        let words = Words { title: &self.title, x: &self.x, falls: self.falls };
        let finite = || points().filter(|point| point.1.is_finite());
        let kinds = (self.x_kind, self.kind);
        let mut frame =
            Frame::new(&words, finite().map(|p| p.0), finite().map(|p| p.1), kinds, (0.0, right))?;

        let mut hover = Vec::new();
        for series in &self.series {
            let pieces: Vec<Vec<(f64, f64)>> = series
                .points
                .split(|point| frame.at(*point).is_none())
                .map(|piece| thin(piece, &frame))
                .collect();
            let _ = write!(frame.svg, "<g class=\"series\"><title>{}</title>", escape(&series.name));
            for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                let path: Vec<String> = piece
                    .iter()
                    .filter_map(|point| frame.at(*point))
                    .map(|(x, y)| format!("{x:.1} {y:.1}"))
                    .collect();
                let class = &series.class;
                match path.as_slice() {
                    [one] => {
                        let (x, y) = one.split_once(' ').unwrap_or((one, "0"));
                        let _ = write!(
                            frame.svg,
                            "<circle class=\"dot {class}\" cx=\"{x}\" cy=\"{y}\" r=\"2.6\"/>"
                        );
                    }
                    path => {
                        let _ = write!(frame.svg, "<path class=\"l {class}\" d=\"M{}\"/>", path.join("L"));
                    }
                }
            }
            frame.svg.push_str("</g>");
            if series.named {
                let rounded = |value: f64| format!("{value:.5e}").parse::<f64>().unwrap_or(value);
                let points: Vec<[f64; 2]> =
                    pieces.into_iter().flatten().map(|(x, y)| [rounded(x), rounded(y)]).collect();
                hover.push(json!({"name": series.name, "class": series.class, "points": points}));
            }
        }
        if direct {
            self.name_ends(&mut frame, right);
        }
        let axis = |scale: &super::Scale| json!([scale.log, scale.low, scale.high, scale.from, scale.to]);
        let hover = json!({
            "x": axis(&frame.x), "y": axis(&frame.y), "label": self.x, "width": WIDTH,
            "top": TOP, "bottom": frame.y.from, "series": hover,
        });
        Some(Drawn { svg: frame.end(), hover })
    }

    /// Each name beside the last point of its curve, pushed apart where they would overlap.
    fn name_ends(&self, frame: &mut Frame, right: f64) {
        let mut ends: Vec<(f64, &Series)> = (self.series.iter().filter(|series| series.named))
            .filter_map(|series| {
                let last = series.points.iter().rev().find_map(|point| frame.at(*point))?;
                Some((last.1, series))
            })
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        const LINE: f64 = 13.0;
        let room = HEIGHT - 38.0 - LINE * (ends.len().max(1) - 1) as f64;
        let mut free = TOP;
        for (index, end) in ends.iter_mut().enumerate() {
            end.0 = end.0.max(free).min(room + LINE * index as f64);
            free = end.0 + LINE;
        }
        for (y, series) in ends {
            let color = series.class.split(' ').next().unwrap_or_default();
            let _ = write!(
                frame.svg,
                "<text class=\"end {color}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                WIDTH - right + 6.0,
                y + 3.8,
                escape(&short(&series.name, 18))
            );
        }
    }
}

/// The first and the last point, and the least and the largest of each slice between: a spike is never lost.
fn thin(points: &[(f64, f64)], frame: &Frame) -> Vec<(f64, f64)> {
    if points.len() <= 2 * SLICES {
        return points.to_vec();
    }
    let slice = |point: &(f64, f64)| {
        let share = (frame.x.at(point.0).unwrap_or(0.0) - frame.x.from) / (frame.x.to - frame.x.from);
        (share * SLICES as f64) as i64
    };
    let mut kept = vec![points[0]];
    for piece in points[1..points.len() - 1].chunk_by(|a, b| slice(a) == slice(b)) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (Some(least), Some(most)) = (piece.iter().min_by(by_y), piece.iter().max_by(by_y)) else {
            continue;
        };
        match least.0 <= most.0 {
            true => kept.extend([*least, *most]),
            false => kept.extend([*most, *least]),
        }
    }
    kept.push(points[points.len() - 1]);
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(points: Vec<(f64, f64)>) -> Option<Drawn> {
        let series = Series { name: "a <b> & \"c\"".into(), class: "c0".into(), points, named: true };
        Lines {
            title: "loss".into(),
            x: "epochs".into(),
            x_kind: Kind::Count,
            falls: false,
            kind: Kind::Auto,
            series: vec![series],
            direct: DIRECT,
        }
        .draw()
    }

    #[test]
    fn a_hundred_thousand_points_are_thinned_and_the_spike_among_them_stays() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|x| (f64::from(x), 1.0)).collect();
        points[77_777].1 = 9.0;
        let drawn = draw(points).unwrap();
        let kept = drawn.hover["series"][0]["points"].as_array().unwrap();
        assert!(kept.len() < 400, "{}", kept.len());
        assert!(kept.iter().any(|point| point[1] == 9.0));
        assert!(drawn.svg.len() < 20_000);
    }

    #[test]
    fn nan_leaves_a_gap_and_nothing_but_nan_leaves_no_figure() {
        let drawn = draw(vec![(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 2.0)]).unwrap();
        assert_eq!(drawn.svg.matches("<path class=\"l c0\"").count(), 2);
        assert!(!drawn.svg.contains("NaN") && drawn.svg.contains("a &lt;b&gt; &amp; &quot;c&quot;"));
        assert!(draw(vec![(0.0, f64::NAN)]).is_none());
        assert!(draw(vec![(0.0, 3.0)]).unwrap().svg.contains("<circle"), "one point is a dot");
    }
}
