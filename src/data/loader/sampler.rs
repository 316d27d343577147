//! Which samples an epoch draws where the classes are balanced: a pure function of (seed, epoch).
//!
//! Each class gets its share of the epoch, rounded by systematic sampling, and its members come in random
//! orders, one after the other: in an epoch no member comes twice more often than another. That is
//! `torch.utils.data.WeightedRandomSampler` with less variance.

use crate::data::Targets;
use crate::data::balance::{Sampling, groups};
use crate::util::rng::{CounterRng, RngStream};

/// The samples of each class, and how many of them an epoch draws on average.
pub struct Sampler {
    groups: Vec<(Vec<i64>, f64)>,
    samples: usize,
}

impl Sampler {
    pub fn new(targets: &Targets, sampling: Sampling, samples: usize) -> Self {
        let groups = groups(targets);
        let shares = sampling.shares(&groups.iter().map(Vec::len).collect::<Vec<_>>());
        let groups = groups.into_iter().zip(shares.into_iter().map(|share| share * samples as f64)).collect();
        Self { groups, samples }
    }

    /// As many draws as there are samples. A sample that comes again is its index plus a multiple of that
    /// number.
    pub fn epoch(&self, seed: u64, epoch: u64) -> Vec<i64> {
        let offset = CounterRng::new(seed, epoch, 0, RngStream::Balance).uniform();
        let (mut draws, mut end) = (Vec::with_capacity(self.samples), 0.0);
        let last = self.groups.iter().rposition(|(members, _)| !members.is_empty());
        for (at, (members, share)) in
            self.groups.iter().enumerate().filter(|(_, (members, _))| !members.is_empty())
        {
            end += share;
            // Rounding must not make the epoch longer or shorter.
            let until = if Some(at) == last { self.samples } else { (end - offset).ceil().max(0.0) as usize };
            let mut rng = CounterRng::new(seed, epoch, at as u64 + 1, RngStream::Balance);
            let mut pass = 0;
            while draws.len() < until {
                let order = rng.permutation(members.len());
                let left = until - draws.len();
                let again = pass * self.samples as i64;
                draws.extend(order.iter().take(left).map(|&place| members[place as usize] + again));
                pass += 1;
            }
        }
        let order = CounterRng::new(seed, epoch, 0, RngStream::Order).permutation(draws.len());
        order.into_iter().map(|place| draws[place as usize]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_draws_each_class_by_its_share_and_each_member_alike() {
        let labels: Vec<i64> = (0..100).map(|index| if index < 90 { 0 } else { 2 }).collect();
        let sampler = Sampler::new(&Targets::Classes(labels), Sampling::Uniform, 100);
        for epoch in 0..20 {
            let draws = sampler.epoch(3, epoch);
            assert_eq!(draws.len(), 100);
            let mut counts = [0; 100];
            draws.iter().for_each(|draw| counts[(draw % 100) as usize] += 1);
            assert_eq!(counts[..90].iter().sum::<usize>(), 50);
            assert!(
                counts[..90].iter().all(|&count| count <= 1) && counts[90..].iter().all(|&count| count == 5)
            );
            let mut unique = draws.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), 100, "a repeat has a number of its own");
        }
        assert_eq!(sampler.epoch(3, 1), sampler.epoch(3, 1));
        assert_ne!(sampler.epoch(3, 1), sampler.epoch(3, 2));
        // Shares that are no whole numbers are right on average.
        let labels: Vec<i64> = (0..10).map(|index| i64::from(index >= 7) + i64::from(index == 9)).collect();
        let sampler = Sampler::new(&Targets::Classes(labels), Sampling::Sqrt, 10);
        let (mut drawn, epochs) = ([0.0; 10], 2000);
        for draw in (0..epochs).flat_map(|epoch| sampler.epoch(0, epoch)) {
            drawn[(draw % 10) as usize] += 1.0 / epochs as f64;
        }
        let all = 7.0f64.sqrt() + 2.0f64.sqrt() + 1.0;
        for (mean, wanted) in [(drawn[0], 10.0 / 7.0f64.sqrt() / all), (drawn[9], 10.0 / all)] {
            assert!((mean - wanted).abs() < 0.05, "{mean} {wanted}");
        }
    }
}
