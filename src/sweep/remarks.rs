//! How far a sweep's choice can be trusted: whether it lies at the edge of what was tried, and whether it is
//! within noise.

use serde_json::Value;

use super::choice::Standing;
use super::plot::{View, shown};

impl View<'_> {
    /// Sentences for the user; none where the choice is sound.
    pub fn remarks(&self) -> Vec<String> {
        let Some(best) = self.best.and_then(|at| self.standings.get(at)) else { return Vec::new() };
        let mut remarks: Vec<String> = (0..self.keys.len()).filter_map(|key| self.edge(key, best)).collect();
        remarks.extend(self.chance(best));
        remarks
    }

    /// Of the key at `key`, three numbers of which or more were tried. Nothing lies below a 0.
    fn edge(&self, key: usize, best: &Standing) -> Option<String> {
        let mut tried: Vec<f64> =
            self.standings.iter().filter_map(|one| one.point.get(key)?.as_f64()).collect();
        tried.sort_by(f64::total_cmp);
        tried.dedup();
        let value = best.point.get(key).and_then(Value::as_f64)?;
        let (&low, &high) = (tried.first()?, tried.last()?);
        let side = match value {
            _ if tried.len() < 3 => return None,
            value if value == high => "above",
            value if value == low && value != 0.0 => "below",
            _ => return None,
        };
        let name = self.keys[key];
        let [value, low, high] = [value, low, high].map(|value| shown(&value.into()));
        Some(format!(
            "best {name} {value} is at the edge of what was tried, {low} to {high}: widen it {side}, the best may lie there"
        ))
    }

    /// Whether the best differs from the other points by more than one standard error of the difference.
    fn chance(&self, best: &Standing) -> Option<String> {
        let others: Vec<&&Standing> =
            self.standings.iter().filter(|one| one.mean.is_some() && one.point != best.point).collect();
        if others.is_empty() {
            return None;
        }
        let Some(error) = best.standard_error else {
            return (best.trials == 1).then(|| {
                "one trial of each point: whether they differ by more than chance is unknown; --seeds 3 tells".into()
            });
        };
        let near = |one: &&&&Standing| {
            let difference = (one.mean.unwrap_or(f64::NAN) - best.mean.unwrap_or(f64::NAN)).abs();
            difference <= error.hypot(one.standard_error.unwrap_or(0.0))
        };
        let remedy = match self.folds_by_seed {
            false => "more --seeds may tell them apart",
            true => "more samples may tell them apart; more --seeds deal the same samples again and do not",
        };
        match (others.iter().filter(near).count(), others.len()) {
            (0, _) => None,
            (near, all) if near == all => Some(format!(
                "no point differs from the best by more than chance (one standard error of the difference): the choice is noise; \
                 {remedy}"
            )),
            (near, all) => Some(format!(
                "{near} of the {all} other points are within noise of the best (one standard error of the difference); {remedy}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sweep::choice::Score;

    fn remarks(points: &[(f64, &[f64])], best: usize) -> Vec<String> {
        remarks_of(points, best, false)
    }

    fn remarks_of(points: &[(f64, &[f64])], best: usize, folds_by_seed: bool) -> Vec<String> {
        let standings: Vec<Standing> = (points.iter())
            .map(|(x, scores)| {
                let of = |(seed, &value): (u64, &f64)| Score { seed, fold: None, value: Some(value) };
                Standing::of(vec![json!(x)], &(0..).zip(scores.iter()).map(of).collect::<Vec<_>>(), false)
            })
            .collect();
        let view = View {
            keys: vec!["penalty.l2"],
            log: vec![true],
            metric: "accuracy",
            higher_is_better: true,
            folds_by_seed,
            standings: standings.iter().collect(),
            scores: Vec::new(),
            best: Some(best),
            one_standard_error: None,
        };
        view.remarks()
    }

    #[test]
    fn a_choice_at_the_edge_or_within_noise_gets_a_remark() {
        let found = remarks(&[(1e-4, &[0.9, 0.9]), (1e-3, &[0.8, 0.8]), (1e-2, &[0.7, 0.7])], 0);
        assert_eq!(
            found,
            ["best penalty.l2 10⁻⁴ is at the edge of what was tried, 10⁻⁴ to 0.01: widen it below, the best may lie there"
                .replace("10⁻⁴", &shown(&json!(1e-4)))]
        );
        let found = remarks(&[(1e-4, &[0.8]), (1e-3, &[0.9]), (1e-2, &[0.7])], 1);
        assert!(found.len() == 1 && found[0].contains("--seeds 3"), "{found:?}");
        let found = remarks(&[(1e-4, &[0.1, 0.11]), (1e-3, &[0.1, 0.13]), (1e-2, &[0.12, 0.1])], 1);
        assert!(found.len() == 1 && found[0].contains("the choice is noise"), "{found:?}");
        let found = remarks(&[(1e-4, &[0.1, 0.11]), (1e-3, &[0.9, 0.91]), (1e-2, &[0.91, 0.9])], 1);
        assert!(found.len() == 1 && found[0].starts_with("1 of the 2 other points"), "{found:?}");
        let near: &[(f64, &[f64])] = &[(1e-4, &[0.1, 0.11]), (1e-3, &[0.1, 0.13])];
        assert!(remarks_of(near, 1, false)[0].ends_with("; more --seeds may tell them apart"));
        assert!(
            remarks_of(near, 1, true)[0].ends_with("more --seeds deal the same samples again and do not")
        );
        // No penalty at all is no edge; a sound choice needs no word.
        assert!(remarks(&[(0.0, &[0.9, 0.9]), (1e-3, &[0.8, 0.8]), (1e-2, &[0.7, 0.7])], 0).is_empty());
        assert!(remarks(&[(1e-4, &[0.8, 0.8]), (1e-3, &[0.9, 0.9]), (1e-2, &[0.7, 0.7])], 1).is_empty());
    }
}
