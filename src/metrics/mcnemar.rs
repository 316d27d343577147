//! McNemar's exact test (McNemar 1947): whether two classifiers are right equally often, by the samples that only one
//! of them gets right.

use serde::Serialize;

use super::answers::Answers;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mcnemar {
    /// Samples that only the first, and only the second, gets right; with any number of classes per sample all its
    /// labels.
    pub only_a: u64,
    pub only_b: u64,
    /// Two-sided, `scipy.stats.binomtest(only_a, only_a + only_b).pvalue`.
    pub p: f64,
}

/// None of answers that are neither right nor wrong.
pub fn mcnemar(a: &Answers, b: &Answers) -> Option<Mcnemar> {
    let right = |answers: &Answers| -> Option<Vec<bool>> {
        match answers {
            Answers::Classes(answers) => Some(
                answers
                    .truth
                    .iter()
                    .zip(&answers.predicted)
                    .map(|(truth, predicted)| truth == predicted)
                    .collect(),
            ),
            Answers::Labels(labels) => Some((0..answers.samples()).map(|at| labels.is_right(at)).collect()),
            _ => None,
        }
    };
    let (a, b) = (right(a)?, right(b)?);
    let only = |this: bool| a.iter().zip(&b).filter(|(a, b)| a != b && **a == this).count() as u64;
    let (only_a, only_b) = (only(true), only(false));
    Some(Mcnemar { only_a, only_b, p: two_sided(only_a, only_b) })
}

/// The chance of tosses of a coin at least as uneven.
fn two_sided(a: u64, b: u64) -> f64 {
    let n = a + b;
    // ln of the binomial coefficient times 2⁻ⁿ, one after the other.
    let mut logarithm = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for k in 0..=a.min(b) {
        sum += logarithm.exp();
        logarithm += ((n - k) as f64 / (k + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chance_is_that_of_scipys_binomial_test() {
        // [scipy.stats.binomtest(a, a + b).pvalue for a, b in [(0, 0), (5, 5), (3, 12), (61, 91), (700, 500)]]
        let wanted = [1.0, 1.0, 0.03515625, 0.018367392110610663, 8.535366081034316e-09];
        for ((a, b), wanted) in [(0, 0), (5, 5), (3, 12), (61, 91), (700, 500)].into_iter().zip(wanted) {
            let p = two_sided(a, b);
            assert!((p / wanted - 1.0).abs() < 1e-9, "{a} {b}: {p} {wanted}");
        }
    }
}
