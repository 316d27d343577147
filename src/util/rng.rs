//! Random numbers that are pure functions of (seed, epoch, index): nothing to save, nothing to replay.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a draw is for, so that no two uses share a stream.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum RngStream {
    Order = 1,
    Augment = 2,
    Split = 3,
    Generate = 4,
    Mix = 5,
    Step = 7,
    Tune = 8,
    Balance = 16,
    Bootstrap = 17,
}

/// A short stream of random numbers that belongs to one sample (or one epoch) and one purpose.
pub struct CounterRng(ChaCha8Rng);

impl CounterRng {
    pub fn new(seed: u64, epoch: u64, index: u64, purpose: RngStream) -> Self {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([seed, epoch, index, purpose as u64]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in 0..n (n > 0) by multiply and shift (Lemire 2019); the bias is below n · 2⁻⁶⁴.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// Standard normal (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A random order of 0..n (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<i64> {
        let mut order: Vec<i64> = (0..n as i64).collect();
        for last in (1..n).rev() {
            order.swap(last, self.below(last as u64 + 1) as usize);
        }
        order
    }
}
