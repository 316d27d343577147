//! The reliability diagram: how often answers are right, by the confidence that they were given with.

use super::Drawn;
use crate::metrics::Bin;
use crate::plot::{DIRECT, Kind, Lines, Series, class};

/// One curve per name, beside the diagonal of those that are as right as they are sure.
pub fn figure(curves: &[(&str, &[Bin])]) -> Option<Drawn> {
    let mut series = vec![Series {
        name: "calibrated".into(),
        class: "c6 dash".into(),
        points: vec![(0.0, 0.0), (1.0, 1.0)],
        named: false,
    }];
    series.extend(curves.iter().enumerate().map(|(at, (name, bins))| Series {
        name: (*name).into(),
        class: class(at, curves.len(), false),
        points: bins.iter().map(|bin| (bin.confidence, bin.accuracy)).collect(),
        named: true,
    }));
    let lines = Lines {
        title: "share that is right".into(),
        x: "confidence".into(),
        x_kind: Kind::Linear,
        falls: false,
        kind: Kind::Linear,
        series,
        direct: if curves.len() > 1 { DIRECT } else { 0 },
    };
    lines.draw()
}
