//! A range coder (Martin 1979) of small numbers whose frequencies are learnt while they pass (Krichevsky &
//! Trofimov 1981): each channel costs its entropy and about half a bit per kind of value and doubling of its
//! length.

/// Interval and remainder stay below it.
const TOP: u64 = 1 << 56;
/// The interval stays above it: with fewer than 2³² numbers counted, every frequency keeps 16 bits and more.
const BOTTOM: u64 = 1 << 48;
/// What a value counts before it is seen, and how much more each time: ½ and 1, doubled.
const UNSEEN: u64 = 1;
const SEEN: u64 = 2;

/// How often each value was seen.
pub struct Counts {
    least: i8,
    counts: Vec<u64>,
    total: u64,
}

/// A value's share of the interval.
struct Share {
    start: u64,
    size: u64,
    total: u64,
}

impl Counts {
    /// For values from `least` to `greatest`.
    pub fn new(least: i8, greatest: i8) -> Self {
        let counts = vec![UNSEEN; usize::from(greatest.abs_diff(least)) + 1];
        let total = counts.iter().sum();
        Self { least, counts, total }
    }

    fn share(&self, index: usize) -> Share {
        Share { start: self.counts[..index].iter().sum(), size: self.counts[index], total: self.total }
    }

    fn see(&mut self, index: usize) {
        self.counts[index] += SEEN;
        self.total += SEEN;
    }

    /// The value in whose share `place` lies; the last one beyond them.
    fn at(&self, place: u64) -> usize {
        let mut end = 0;
        let found = self.counts.iter().position(|count| {
            end += count;
            place < end
        });
        found.unwrap_or(self.counts.len() - 1)
    }
}

impl Share {
    /// Start and length of the share of an interval as long as `range`. The last one takes what the division
    /// leaves.
    fn of(&self, range: u64) -> (u64, u64) {
        let step = range / self.total;
        let start = step * self.start;
        (start, if self.start + self.size == self.total { range - start } else { step * self.size })
    }
}

pub struct Encoder {
    bytes: Vec<u8>,
    low: u64,
    range: u64,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { bytes: Vec::new(), low: 0, range: TOP }
    }
}

impl Encoder {
    /// `value` must lie between the bounds of `counts`.
    pub fn encode(&mut self, counts: &mut Counts, value: i8) {
        let index = usize::from(value.abs_diff(counts.least));
        let (start, range) = counts.share(index).of(self.range);
        counts.see(index);
        (self.low, self.range) = (self.low + start, range);
        self.carry();
        while self.range < BOTTOM {
            self.bytes.push((self.low / BOTTOM) as u8);
            self.low = (self.low % BOTTOM) << 8;
            self.range <<= 8;
        }
    }

    /// The bytes; those that are 0 at the end are left out, and the reader adds them.
    pub fn finish(mut self) -> Vec<u8> {
        // The interval is long enough to hold a number that ends with zeros.
        self.low = self.low.next_multiple_of(BOTTOM);
        self.carry();
        self.bytes.push((self.low / BOTTOM) as u8);
        let len = self.bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.bytes.truncate(len);
        self.bytes
    }

    fn carry(&mut self) {
        if self.low < TOP {
            return;
        }
        self.low -= TOP;
        for byte in self.bytes.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }
}

/// Makes values of any bytes.
pub struct Decoder<'a> {
    bytes: std::slice::Iter<'a, u8>,
    /// Where in the interval the number lies; below `range`.
    offset: u64,
    range: u64,
}

impl<'a> Decoder<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { bytes: bytes.iter(), offset: 0, range: TOP };
        (0..7).for_each(|_| decoder.shift());
        decoder
    }

    pub fn decode(&mut self, counts: &mut Counts) -> i8 {
        let index = counts.at(self.offset / (self.range / counts.total));
        let (start, range) = counts.share(index).of(self.range);
        counts.see(index);
        (self.offset, self.range) = (self.offset - start, range);
        while self.range < BOTTOM {
            self.shift();
            self.range <<= 8;
        }
        counts.least.wrapping_add_unsigned(index as u8)
    }

    fn shift(&mut self) {
        self.offset = self.offset << 8 | u64::from(self.bytes.next().copied().unwrap_or(0));
    }
}
