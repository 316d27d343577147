//! The learning-rate range test: Smith 2017, "Cyclical learning rates for training neural networks"; the rates,
//! the smoothing, the end and the suggestion are those of Lightning's `lr_find`.

use anyhow::Result;

use crate::plot::{Kind, Lines, Series, class};
use crate::train::trainer::Trainer;
use crate::util::exit_code::{self, ExitCode, fail};

/// Share of the smoothed loss that a step keeps.
const BETA: f64 = 0.98;
/// Steps at the beginning, and at the end, that no suggestion comes from.
const SKIP: (usize, usize) = (10, 1);

/// One step of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub step: u64,
    pub lr: f64,
    /// Of the step's batch.
    pub loss: f64,
    pub smoothed: f64,
}

/// Trains `run`, whose schedule raises the rate, for up to `steps` steps; ends where the smoothed loss exceeds
/// `threshold` times its least, or where a loss is no number.
pub fn lr_range(run: &mut Trainer, steps: usize, threshold: Option<f64>) -> Result<Vec<Point>> {
    let loader = run.loader();
    let (mut points, mut average, mut least) = (Vec::new(), 0.0, f64::INFINITY);
    while points.len() < steps {
        let before = points.len();
        for group in run.remaining_steps(&loader).take(steps - before) {
            let record = match run.train_step(group?) {
                Err(error) if exit_code::code(&error) == ExitCode::Numeric as u8 && !points.is_empty() => {
                    return Ok(points);
                }
                record => record?,
            };
            // Every step is logged.
            let Some(record) = record else { continue };
            average = BETA * average + (1.0 - BETA) * record.loss;
            let smoothed = average / (1.0 - BETA.powi(points.len() as i32 + 1));
            points.push(Point { step: record.step, lr: record.condition.lr, loss: record.loss, smoothed });
            if threshold.is_some_and(|threshold| points.len() > 1 && smoothed > threshold * least) {
                return Ok(points);
            }
            least = least.min(smoothed);
        }
        if points.len() == before {
            return Err(fail(ExitCode::Data, "the training set gives no batch"));
        }
        if points.len() < steps {
            run.next_epoch()?;
        }
    }
    Ok(points)
}

/// The rate at which the smoothed loss falls most; None of too few steps.
pub fn suggestion(points: &[Point]) -> Option<f64> {
    let points = points.get(SKIP.0..points.len().checked_sub(SKIP.1)?)?;
    let slope = |at: usize| {
        let (before, after) = (at.saturating_sub(1), (at + 1).min(points.len() - 1));
        (points[after].smoothed - points[before].smoothed) / (after - before) as f64
    };
    let steepest = (0..points.len()).min_by(|&a, &b| slope(a).total_cmp(&slope(b)))?;
    (points.len() > 1).then(|| points[steepest].lr)
}

/// `step,lr,loss,smoothed`
pub fn csv(points: &[Point]) -> Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["step", "lr", "loss", "smoothed"])?;
    for Point { step, lr, loss, smoothed } in points {
        let numbers = [lr, loss, smoothed].map(f64::to_string);
        table.write_record(std::iter::once(step.to_string()).chain(numbers))?;
    }
    Ok(table.into_inner()?)
}

/// The losses over the rate, the suggestion marked.
pub fn figure(points: &[Point], suggestion: Option<f64>) -> Option<String> {
    let series = |name: &str, class: String, of: fn(&Point) -> f64| Series {
        name: name.into(),
        class,
        points: points.iter().map(|point| (point.lr, of(point))).collect(),
        named: true,
    };
    let mut all = vec![
        series("loss", format!("{} faint", class(0, 2, false)), |point| point.loss),
        series("smoothed", class(0, 2, false), |point| point.smoothed),
    ];
    let marked = points.iter().find(|point| Some(point.lr) == suggestion);
    all.extend(marked.map(|point| Series {
        name: "steepest".into(),
        class: class(1, 2, false),
        points: vec![(point.lr, point.smoothed)],
        named: true,
    }));
    let lines = Lines {
        title: "Learning-rate range test".into(),
        x: "learning rate".into(),
        x_kind: Kind::Log,
        falls: false,
        kind: Kind::Auto,
        series: all,
        direct: 3,
    };
    Some(lines.draw()?.svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suggestion_is_where_numpys_gradient_is_least() {
        let point = |at: usize| {
            let smoothed =
                3.0 / (1.0 + (0.4 * (at as f64 - 30.0)).exp()) + 0.001 * (at as f64 - 20.0).powi(2);
            Point { step: at as u64 + 1, lr: 1e-6 * 1.2f64.powi(at as i32), loss: smoothed, smoothed }
        };
        let points: Vec<_> = (0..60).map(point).collect();
        // numpy.gradient(losses[10:-1]).argmin() + 10
        assert_eq!(suggestion(&points), Some(points[30].lr));
        assert_eq!(suggestion(&points[..11]), None);
        assert_eq!(suggestion(&[]), None);
    }
}
