//! How far two varied numbers can be chosen one after the other: the question of Loshchilov & Hutter (2019)
//! about learning rate and decay, as numbers.

use serde::Serialize;

/// Of a full grid over two numbers above 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Separability {
    /// Shares of the variance of the scores: of the first number alone, of the second alone, and of what no
    /// sum of the two explains. They add up to 1 (two-way analysis of variance, one score per cell).
    pub first: f64,
    pub second: f64,
    pub interaction: f64,
    /// d log(best second) / d log(first), by least squares over the values of the first: 0 where the second
    /// can be chosen once for all, −1 where only the product matters.
    pub slope: f64,
}

/// `cells`: (first, second, score, of which less is better). None unless they are a full grid of at least 2 ×
/// 2 finite scores that are not all equal.
pub fn separability(cells: &[(f64, f64, f64)]) -> Option<Separability> {
    let axis = |of: fn(&(f64, f64, f64)) -> f64| {
        let mut values: Vec<f64> = cells.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values
    };
    let (firsts, seconds) = (axis(|cell| cell.0), axis(|cell| cell.1));
    let is_positive = |values: &[f64]| values.len() > 1 && values.iter().all(|value| *value > 0.0);
    if !is_positive(&firsts) || !is_positive(&seconds) || cells.len() != firsts.len() * seconds.len() {
        return None;
    }
    let find = |first: f64, second: f64| {
        let score = cells.iter().find(|cell| cell.0 == first && cell.1 == second)?.2;
        score.is_finite().then_some(score)
    };
    let grid: Vec<Vec<f64>> = firsts
        .iter()
        .map(|&first| seconds.iter().map(|&second| find(first, second)).collect())
        .collect::<Option<_>>()?;
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let values: Vec<f64> = values.collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    let all = mean(&mut grid.iter().flatten().copied());
    let rows: Vec<f64> = grid.iter().map(|row| mean(&mut row.iter().copied()) - all).collect();
    let columns: Vec<f64> =
        (0..seconds.len()).map(|at| mean(&mut grid.iter().map(|row| row[at])) - all).collect();
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let total = square(&mut grid.iter().flatten().map(|score| score - all));
    if total <= 0.0 {
        return None;
    }
    let first = square(&mut rows.iter().copied()) * seconds.len() as f64 / total;
    let second = square(&mut columns.iter().copied()) * firsts.len() as f64 / total;

    let best = |row: &Vec<f64>| (0..row.len()).min_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
    let xs: Vec<f64> = firsts.iter().map(|first| first.ln()).collect();
    let ys: Vec<f64> = grid.iter().map(|row| seconds[best(row)].ln()).collect();
    let (x, y) = (mean(&mut xs.iter().copied()), mean(&mut ys.iter().copied()));
    let slope = xs.iter().zip(&ys).map(|(a, b)| (a - x) * (b - y)).sum::<f64>()
        / square(&mut xs.iter().map(|a| a - x));
    Some(Separability { first, second, interaction: 1.0 - first - second, slope })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(score: impl Fn(f64, f64) -> f64) -> Vec<(f64, f64, f64)> {
        let values = [1e-3f64, 1e-2, 1e-1, 1.0];
        values.iter().flat_map(|&a| values.map(|b: f64| (a, b, score(a.log10(), b.log10())))).collect()
    }

    #[test]
    fn a_sum_of_two_functions_has_no_interaction_and_a_product_has_a_slope() {
        let sum = separability(&grid(|a, b| (a + 1.0).powi(2) + (b + 2.0).powi(2))).unwrap();
        assert!(sum.interaction.abs() < 1e-12 && sum.slope == 0.0, "{sum:?}");
        assert!((sum.first - 0.5).abs() < 1e-12);
        // Only a·b = 1e-3 is good.
        let product = separability(&grid(|a, b| (a + b + 3.0).powi(2))).unwrap();
        assert!((product.slope + 1.0).abs() < 1e-12 && product.interaction > 0.3, "{product:?}");
    }

    #[test]
    fn holes_and_plains_have_no_separability() {
        let mut holed = grid(|a, b| a + b);
        holed[3].2 = f64::NAN;
        assert_eq!(separability(&holed), None);
        assert_eq!(separability(&holed[..15]), None);
        assert_eq!(separability(&grid(|_, _| 1.0)), None);
    }
}
