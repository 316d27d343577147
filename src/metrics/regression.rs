//! MSE, RMSE, MAE and R² of regression.

use tch::{Kind, Tensor};

use super::answers::{Answers, Counts, count};
use super::{Metric, MetricArgs, ModelOutput, Score, Scores};

/// Sums in float64 on the device, per target column; `[T]` each.
#[derive(Debug, Default)]
pub struct RegressionMetric {
    sums: Option<Sums>,
}

#[derive(Debug)]
struct Sums {
    /// Subtracted before squaring, so that R² keeps its digits for targets far from zero.
    shift: Tensor,
    squared_error: Tensor,
    absolute_error: Tensor,
    y: Tensor,
    y_squared: Tensor,
    count: i64,
}

impl Metric for RegressionMetric {
    fn scores() -> &'static [Score] {
        const { &[Score::lower("mse"), Score::lower("rmse"), Score::lower("mae"), Score::higher("r2")] }
    }

    fn tasks() -> &'static [&'static str] {
        &["regression"]
    }

    fn new(_args: &MetricArgs) -> Self {
        Self::default()
    }

    fn update(&mut self, _xs: &Tensor, answer: &ModelOutput, ys: &Tensor) {
        let columns = |values: &Tensor| values.to_kind(Kind::Double).reshape([values.size()[0], -1]);
        let sum = |values: &Tensor| values.sum_dim_intlist(&[0i64][..], false, Kind::Double);
        let (outputs, ys) = (columns(&answer.outputs), columns(ys));
        let error = outputs - &ys;
        let sums = self.sums.get_or_insert_with(|| {
            let zero = || ys.get(0).zeros_like();
            // A value of the column itself: of a constant column nothing is left, not even rounding.
            Sums {
                shift: ys.get(0),
                squared_error: zero(),
                absolute_error: zero(),
                y: zero(),
                y_squared: zero(),
                count: 0,
            }
        });
        let centred = ys - &sums.shift;
        sums.squared_error += sum(&error.square());
        sums.absolute_error += sum(&error.abs());
        sums.y_squared += sum(&centred.square());
        sums.y += sum(&centred);
        sums.count += error.size()[0];
    }

    fn compute(&self) -> Scores {
        let Some(sums) = &self.sums else { return Scores::default() };
        let n = sums.count as f64;
        let mean = |values: Tensor| values.mean(Kind::Double).double_value(&[]);
        let mse = mean(&sums.squared_error / n);
        // Uniform average over the target columns, as sklearn.metrics.r2_score has it: a constant column
        // counts 1 where it is met exactly, else 0. One sample has no R²: NaN, there too.
        let total = &sums.y_squared - sums.y.square() / n;
        let exact = sums.squared_error.eq(0.0).to_kind(Kind::Double);
        let shares: Tensor = 1.0 - &sums.squared_error / &total;
        let columns = shares.where_self(&total.gt(0.0), &exact);
        let r2 = if sums.count < 2 { f64::NAN } else { mean(columns) };
        let values =
            [("mse", mse), ("rmse", mse.sqrt()), ("mae", mean(&sums.absolute_error / n)), ("r2", r2)];
        Scores { values: values.map(|(name, value)| (name.into(), value)).into(), ..Scores::default() }
    }

    fn resampled(answers: &Answers, counts: Counts) -> Vec<(String, f64)> {
        let Answers::Values { outputs, targets } = answers else { return Vec::new() };
        let columns = targets.first().map_or(0, Vec::len);
        // Σ over the samples of what `of` says of an output and its target.
        let sum = |of: &dyn Fn(f64, f64) -> f64, column: usize| -> f64 {
            let rows = outputs.iter().zip(targets).enumerate();
            rows.map(|(at, (y, t))| count(counts, at) as f64 * of(y[column], t[column])).sum()
        };
        let all: f64 = (0..targets.len()).map(|at| count(counts, at) as f64).sum();
        let mean = |of: &dyn Fn(usize) -> f64| (0..columns).map(of).sum::<f64>() / columns as f64;
        let squares = |column: usize| sum(&|y, t| (y - t).powi(2), column);
        let r2 = |column: usize| {
            let centre = sum(&|_, t| t, column) / all;
            let (error, total) = (squares(column), sum(&|_, t| (t - centre).powi(2), column));
            if total > 0.0 { 1.0 - error / total } else { f64::from(u8::from(error == 0.0)) }
        };
        let mse = mean(&|column| squares(column) / all);
        let mae = mean(&|column| sum(&|y, t| (y - t).abs(), column) / all);
        let values = [("mse", mse), ("rmse", mse.sqrt()), ("mae", mae), ("r2", mean(&r2))];
        values.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r2(outputs: &[f64], ys: &[f64], columns: i64) -> f64 {
        let [outputs, ys] = [outputs, ys].map(|values| Tensor::from_slice(values).reshape([-1, columns]));
        let mut meter = RegressionMetric::default();
        for row in 0..ys.size()[0] {
            meter.update(&Tensor::new(), &outputs.narrow(0, row, 1).into(), &ys.narrow(0, row, 1));
        }
        meter.compute().get("r2").unwrap()
    }

    #[test]
    fn r2_of_a_constant_column_is_scikit_learns() {
        // from sklearn.metrics import r2_score
        // r2_score([[1, .5], [2, .5], [4, .5]], [[1, .5], [2, .25], [3, .5]]) -> 0.3928571428571429
        let both = r2(&[1.0, 0.5, 2.0, 0.25, 3.0, 0.5], &[1.0, 0.5, 2.0, 0.5, 4.0, 0.5], 2);
        assert!((both - 0.3928571428571429).abs() < 1e-15);
        // r2_score([2, 2, 2], [1, 2, 3]) -> 0.0; r2_score([.1, .1, .1], [.1, .1, .1]) -> 1.0; of one sample
        // nan
        assert_eq!(r2(&[1.0, 2.0, 3.0], &[2.0, 2.0, 2.0], 1), 0.0);
        assert_eq!(r2(&[0.1, 0.1, 0.1], &[0.1, 0.1, 0.1], 1), 1.0);
        assert!(r2(&[1.0], &[2.0], 1).is_nan());
    }

    #[test]
    fn r2_and_the_errors_are_those_of_scikit_learn() {
        // from sklearn.metrics import r2_score, mean_squared_error, mean_absolute_error
        // y = [1e6+1, 1e6+2, 1e6+4, 1e6+3]; p = [1e6+1.5, 1e6+2, 1e6+3, 1e6+3.5]
        // r2_score(y, p) -> 0.7; mean_squared_error -> 0.375; mean_absolute_error -> 0.5
        let ys = Tensor::from_slice(&[1e6 + 1.0, 1e6 + 2.0, 1e6 + 4.0, 1e6 + 3.0]).unsqueeze(1);
        let outputs = Tensor::from_slice(&[1e6 + 1.5, 1e6 + 2.0, 1e6 + 3.0, 1e6 + 3.5]).unsqueeze(1);
        let mut meter = RegressionMetric::default();
        for (start, end) in [(0, 1), (1, 4)] {
            meter.update(
                &Tensor::new(),
                &outputs.slice(0, start, end, 1).into(),
                &ys.slice(0, start, end, 1),
            );
        }
        let scores = meter.compute();
        assert!((scores.get("r2").unwrap() - 0.7).abs() < 1e-12);
        assert!((scores.get("mse").unwrap() - 0.375).abs() < 1e-12);
        assert!((scores.get("mae").unwrap() - 0.5).abs() < 1e-12);
    }
}
