//! MSE, RMSE, MAE and R² of regression.

use tch::{Kind, Tensor};

use super::{Answer, Meter, Scores};

/// Sums in float64 on the device, per target column; `[T]` each.
#[derive(Debug, Default)]
pub struct RegressionMeter {
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

impl Meter for RegressionMeter {
    fn add(&mut self, _xs: &Tensor, answer: &Answer, ys: &Tensor) {
        let columns = |values: &Tensor| values.to_kind(Kind::Double).reshape([values.size()[0], -1]);
        let sum = |values: &Tensor| values.sum_dim_intlist(&[0i64][..], false, Kind::Double);
        let (outputs, ys) = (columns(&answer.outputs), columns(ys));
        let error = outputs - &ys;
        let sums = self.sums.get_or_insert_with(|| {
            let zero = || ys.get(0).zeros_like();
            let shift = ys.mean_dim(&[0i64][..], false, Kind::Double);
            Sums {
                shift,
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

    fn scores(&self) -> Scores {
        let Some(sums) = &self.sums else { return Scores::default() };
        let n = sums.count as f64;
        let mean = |values: Tensor| values.mean(Kind::Double).double_value(&[]);
        let mse = mean(&sums.squared_error / n);
        // Uniform average over the target columns, as sklearn.metrics.r2_score has it.
        let total = &sums.y_squared - sums.y.square() / n;
        let r2 = mean(1.0 - &sums.squared_error / total);
        let values =
            [("mse", mse), ("rmse", mse.sqrt()), ("mae", mean(&sums.absolute_error / n)), ("r2", r2)];
        Scores { values: values.map(|(name, value)| (name.into(), value)).into(), ..Scores::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r2_and_the_errors_are_those_of_scikit_learn() {
        // from sklearn.metrics import r2_score, mean_squared_error, mean_absolute_error
        // y = [1e6+1, 1e6+2, 1e6+4, 1e6+3]; p = [1e6+1.5, 1e6+2, 1e6+3, 1e6+3.5]
        // r2_score(y, p) -> 0.7; mean_squared_error -> 0.375; mean_absolute_error -> 0.5
        let ys = Tensor::from_slice(&[1e6 + 1.0, 1e6 + 2.0, 1e6 + 4.0, 1e6 + 3.0]).unsqueeze(1);
        let outputs = Tensor::from_slice(&[1e6 + 1.5, 1e6 + 2.0, 1e6 + 3.0, 1e6 + 3.5]).unsqueeze(1);
        let mut meter = RegressionMeter::default();
        for (start, end) in [(0, 1), (1, 4)] {
            meter.add(&Tensor::new(), &outputs.slice(0, start, end, 1).into(), &ys.slice(0, start, end, 1));
        }
        let scores = meter.scores();
        assert!((scores.get("r2").unwrap() - 0.7).abs() < 1e-12);
        assert!((scores.get("mse").unwrap() - 0.375).abs() < 1e-12);
        assert!((scores.get("mae").unwrap() - 0.5).abs() < 1e-12);
    }
}
