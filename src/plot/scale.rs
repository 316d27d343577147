//! An axis: where a value lies, and which values are written beside it.

/// How values are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Linear,
    /// By the logarithm; 0 is apart before the others, what is below it has no place.
    Log,
    /// By the logarithm where all are above 0 and the largest is 30 times the smallest or more.
    Auto,
    /// Linear, and what is counted: no tick between two whole numbers where there are three or more.
    Count,
}

#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub log: bool,
    whole: bool,
    /// Where on a logarithmic scale 0 lies, and from where on the scale is one.
    zero: Option<(f64, f64)>,
    /// The ends, as logarithms to base 10 where `log`.
    pub low: f64,
    pub high: f64,
    /// Where the ends lie, in pixels.
    pub from: f64,
    pub to: f64,
}

impl Scale {
    /// From the least to the largest of what is finite, `margin` of the span beyond; None where nothing is.
    pub fn fit(
        values: impl Iterator<Item = f64>,
        kind: Kind,
        margin: f64,
        (from, to): (f64, f64),
    ) -> Option<Self> {
        let values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
        let has_zero = kind == Kind::Log && values.contains(&0.0);
        let values: Vec<f64> = values.into_iter().filter(|v| kind != Kind::Log || *v > 0.0).collect();
        let low = values.iter().copied().reduce(f64::min)?;
        let high = values.iter().copied().reduce(f64::max)?;
        let log = kind == Kind::Log || kind == Kind::Auto && spans_decades(values.iter().copied());
        let (low, high) = if log { (low.log10(), high.log10()) } else { (low, high) };
        // A constant lies in the middle.
        let pad = if high > low {
            (high - low) * margin
        } else if margin > 0.0 {
            match log {
                true => 0.5,
                false if high == 0.0 => 1.0,
                false => (high.abs() * 0.1).max(1e-12),
            }
        } else {
            0.5
        };
        let floor = if !log && low >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
        let whole = kind == Kind::Count && high - low >= 2.0;
        let gap = (0.15 * (high - low)).max(0.3);
        let zero = has_zero.then_some((low - gap, low - 0.1 * gap));
        let low = zero.map_or(low, |(zero, _)| zero);
        Some(Self { log, whole, zero, low: (low - pad).max(floor), high: high + pad, from, to })
    }

    /// None where the value has no place: NaN, infinite, or below 0 on a logarithmic scale, or 0 on one that
    /// has none.
    pub fn at(&self, value: f64) -> Option<f64> {
        let value = match self.log {
            true if value > 0.0 => value.log10(),
            true if value == 0.0 => self.zero?.0,
            true => return None,
            false => value,
        };
        let share = (value - self.low) / (self.high - self.low);
        share.is_finite().then_some(self.from + share * (self.to - self.from))
    }

    /// (pixel, text) of about `wanted` round values.
    pub fn ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        let values = if self.log { self.decades(wanted) } else { self.steps(wanted) };
        values.into_iter().filter_map(|(value, text)| Some((self.at(value)?, text))).collect()
    }

    fn steps(&self, wanted: usize) -> Vec<(f64, String)> {
        let span = self.high - self.low;
        let rough = span / wanted.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|by| by * power).into_iter().find(|&step| step >= rough);
        let step = step.unwrap_or(10.0 * power).max(if self.whole { 1.0 } else { 0.0 });
        if !step.is_finite() || step <= 0.0 {
            return Vec::new();
        }
        let (first, last) = ((self.low / step - 1e-9).ceil(), (self.high / step + 1e-9).floor());
        if last - first > 100.0 || first.abs() > 1e15 {
            return Vec::new();
        }
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let far = self.low.abs().max(self.high.abs());
        (first as i64..=last as i64)
            .map(|at| at as f64 * step)
            .map(|value| {
                let plain = decimals <= 5 && far < 1e6;
                (value, if plain { signed(format!("{value:.decimals$}")) } else { number(value) })
            })
            .collect()
    }

    fn decades(&self, wanted: usize) -> Vec<(f64, String)> {
        let low = self.zero.map_or(self.low, |(_, start)| start);
        let (first, last) = (low.floor() as i32, self.high.ceil() as i32);
        let inside = |value: &f64| (low - 1e-9..=self.high + 1e-9).contains(&value.log10());
        let span = self.high - low;
        let digits: &[f64] = match span {
            _ if span > 2.5 => &[1.0],
            _ if span > 1.2 => &[1.0, 3.0],
            _ => &[1.0, 2.0, 5.0],
        };
        let every = ((span / wanted.max(1) as f64).ceil() as i32).max(1);
        let powers = (first..=last).filter(|power| power.rem_euclid(every) == 0);
        let values = powers.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
        let values: Vec<f64> = values.filter(inside).collect();
        // Less than a step of 1, 2, 5: as on a linear scale.
        let mut ticks: Vec<_> = self.zero.map(|_| (0.0, number(0.0))).into_iter().collect();
        if values.len() < 2 {
            let (low, high) = (10f64.powf(low), 10f64.powf(self.high));
            ticks.extend(Self { log: false, low, high, ..*self }.steps(wanted));
        } else {
            ticks.extend(values.into_iter().map(|value| (value, number(value))));
        }
        ticks
    }
}

/// Whether all are above 0 and the largest is 30 times the smallest or more.
pub fn spans_decades(values: impl Iterator<Item = f64>) -> bool {
    let ends = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), ends);
    low > 0.0 && high / low >= 30.0
}

/// Four digits of a number: `0.8312`, `12400`, `3·10⁻⁵`.
pub fn number(value: f64) -> String {
    digits(value, 4)
}

/// So many digits of a number, 1 to 16, trailing zeros left out.
pub fn digits(value: f64, count: usize) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if !value.is_finite() {
        return if value.is_nan() { "NaN".into() } else { signed(format!("{value}")) };
    }
    let scientific = format!("{value:.0$e}", count - 1);
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-3..6).contains(&exponent) {
        let decimals = (count as i32 - 1 - exponent).max(0) as usize;
        let text = format!("{value:.decimals$}");
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        return signed(text.to_owned());
    }
    let power: String = exponent.to_string().chars().map(raised).collect();
    match digits.trim_end_matches('0').trim_end_matches('.') {
        "1" => format!("10{power}"),
        digits => signed(format!("{digits}·10{power}")),
    }
}

/// With the sign that is as wide as a plus.
fn signed(text: String) -> String {
    text.replacen('-', "−", 1)
}

fn raised(c: char) -> char {
    match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => c.to_digit(10).and_then(|digit| char::from_u32(0x2070 + digit)).unwrap_or(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_round_where_they_can_be() {
        let cases = [
            (0.0, "0"),
            (0.83119999, "0.8312"),
            (1e-5, "10⁻⁵"),
            (-2.5e-7, "−2.5·10⁻⁷"),
            (1000.0, "1000"),
            (123456.0, "123456"),
            (3e12, "3·10¹²"),
            (0.001, "0.001"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "−inf"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_zero_stands_before_the_decades_and_has_a_tick() {
        let values = [0.0, 1e-4, 1e-3, 1e-2];
        let scale = Scale::fit(values.into_iter(), Kind::Log, 0.03, (0.0, 100.0)).unwrap();
        let places: Vec<f64> = values.iter().map(|value| scale.at(*value).unwrap()).collect();
        assert!(places.is_sorted() && places[0] > 0.0 && places[1] - places[0] > 5.0, "{places:?}");
        let ticks = scale.ticks(6);
        assert_eq!(ticks[0], (places[0], "0".to_owned()));
        assert!(ticks.iter().all(|(place, text)| text == "0" || *place >= places[1] - 1e-6), "{ticks:?}");
        assert_eq!(scale.at(-1.0), None);
    }

    #[test]
    fn a_scale_over_decades_is_logarithmic_and_its_ticks_are_decades() {
        let values = [1e-6, f64::NAN, 1e-1, f64::INFINITY];
        let scale = Scale::fit(values.into_iter(), Kind::Auto, 0.0, (0.0, 100.0)).unwrap();
        assert!(scale.log);
        assert_eq!(scale.ticks(6).first().map(|tick| tick.1.as_str()), Some("10⁻⁶"));
        assert_eq!(scale.at(1e-6), Some(0.0));
        assert_eq!((scale.at(0.0), scale.at(f64::NAN)), (None, None));
        assert!(Scale::fit([f64::NAN].into_iter(), Kind::Auto, 0.1, (0.0, 1.0)).is_none());
    }

    #[test]
    fn ticks_are_round_within_the_scale_and_few_whatever_the_values() {
        for (low, high) in
            [(0.0, 1.0), (0.8931, 0.9312), (5.0, 5.0), (-1e-9, 3e-9), (1e300, 2e300), (0.0, 0.0), (2.0, 37.0)]
        {
            for kind in [Kind::Linear, Kind::Auto] {
                let scale = Scale::fit([low, high].into_iter(), kind, 0.05, (0.0, 100.0)).unwrap();
                let ticks = scale.ticks(5);
                assert!((2..=11).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
                assert!(
                    ticks.iter().all(|tick| (-0.1..=100.1).contains(&tick.0)),
                    "{low}..{high}: {ticks:?}"
                );
            }
        }
    }
}
