//! Temperature scaling (Guo, Pleiss, Sun and Weinberger 2017): the number that logits are divided by so that the
//! probabilities of held-out samples are as likely as can be.

use super::answers::Answers;

/// Temperatures beyond these mean that the logits say nothing, or that every answer is right.
const COLDEST: f64 = 1e-3;
const HOTTEST: f64 = 1e3;

/// What has no temperature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTemperature {
    /// Answers that are no classes.
    NoClasses,
    /// The likelihood grows as T goes to 0: every answer is right.
    AllRight,
    /// The likelihood grows with T: the logits are no better than chance.
    Chance,
}

/// The temperature of the least mean cross-entropy, by Newton's method on its inverse β, in which the loss is
/// convex, with bisection where a step leaves the interval; exact to rounding.
pub fn fit(answers: &Answers) -> Result<f64, NoTemperature> {
    let slopes = |beta: f64| match answers {
        Answers::Classes(answers) => {
            let classes = answers.probabilities.classes;
            let rows = answers.logits.chunks(classes).zip(&answers.truth);
            Some(rows.fold((0.0, 0.0), |sum, (row, &truth)| add(sum, of_classes(row, truth, beta))))
        }
        Answers::Labels(answers) => {
            let pairs = answers.logits.iter().zip(&answers.truth);
            Some(pairs.fold((0.0, 0.0), |sum, (&logit, &is)| add(sum, of_label(logit, is, beta))))
        }
        _ => None,
    };
    let slope = |beta: f64| slopes(beta).ok_or(NoTemperature::NoClasses);
    let (mut low, mut high) = (1.0 / HOTTEST, 1.0 / COLDEST);
    if slope(low)?.0 >= 0.0 {
        return Err(NoTemperature::Chance);
    }
    if slope(high)?.0 <= 0.0 {
        return Err(NoTemperature::AllRight);
    }
    let mut beta = 1.0;
    for _ in 0..200 {
        let (first, second) = slope(beta)?;
        if first > 0.0 {
            high = beta;
        } else {
            low = beta;
        }
        let newton = beta - first / second;
        let next = if newton > low && newton < high { newton } else { (low * high).sqrt() };
        if (next - beta).abs() <= 1e-14 * beta {
            beta = next;
            break;
        }
        beta = next;
    }
    Ok(1.0 / beta)
}

fn add(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    (a.0 + b.0, a.1 + b.1)
}

/// First and second derivative by β of ln Σ exp(βz) − βz of the truth: E z − z of the truth, and Var z.
fn of_classes(logits: &[f64], truth: usize, beta: f64) -> (f64, f64) {
    // From the largest logit down: exponentials stay at most 1.
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut all, mut mean, mut square) = (0.0, 0.0, 0.0);
    for logit in logits.iter().map(|logit| logit - largest) {
        let share = (beta * logit).exp();
        all += share;
        if share > 0.0 {
            mean += share * logit;
            square += share * logit * logit;
        }
    }
    let (mean, square) = (mean / all, square / all);
    (mean - (logits[truth] - largest), square - mean * mean)
}

/// The same of ln(1 + exp(βz)) − βz·y.
fn of_label(logit: f64, is: bool, beta: f64) -> (f64, f64) {
    let share = 1.0 / (1.0 + (-beta * logit).exp());
    (logit * (share - f64::from(u8::from(is))), logit * logit * share * (1.0 - share))
}
