//! The entropy-coded data of a JPEG file: bits, Huffman codes, coefficients.

/// The position of coefficient n of the zigzag. The last sixteen catch runs that lead past the block.
pub const ZIGZAG: [u8; 80] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
];

/// Copies the entropy-coded data of a scan without stuffed zeros and restart markers; returns what follows,
/// from its marker.
pub fn unstuff<'a>(mut scan: &'a [u8], data: &mut Vec<u8>, restarts: &mut Vec<usize>) -> &'a [u8] {
    data.clear();
    restarts.clear();
    data.reserve(scan.len() + 16);
    while let Some(at) = memchr::memchr(0xff, scan) {
        data.extend_from_slice(&scan[..at]);
        match scan.get(at + 1) {
            Some(0x00) => data.push(0xff),
            Some(0xd0..=0xd7) => restarts.push(data.len()),
            Some(0xff) => {
                scan = &scan[at + 1..];
                continue;
            }
            _ => return &scan[at..],
        }
        scan = &scan[at + 2..];
    }
    data.extend_from_slice(scan);
    &[]
}

/// How many bits are looked up at once.
const AHEAD: u32 = 11;

#[derive(Clone)]
pub struct Huffman {
    /// For the next bits: a whole coefficient with its value, where all of it fits; else a symbol; else
    /// nothing.
    fast: [Entry; 1 << AHEAD],
    /// For the next bits: how many of them are whole coefficients, how far those lead, and whether the block
    /// ends with them.
    leaps: [Leap; 1 << AHEAD],
    /// Codes of each length end before this, as 16 bits.
    ends: [u32; 17],
    /// What to add to a code of each length for the index of its symbol.
    offsets: [i32; 17],
    symbols: [u8; 256],
}

#[derive(Clone, Copy, Default)]
struct Entry {
    /// Of the coefficient, where `bits` says that it is known.
    value: i16,
    /// Bits of code and value together; 0 where the value is not known.
    bits: u8,
    /// Zeros before the coefficient.
    run: u8,
    /// Bits of the code alone; 0 where it is longer than what was looked at.
    code: u8,
    symbol: u8,
}

#[derive(Clone, Copy, Default)]
struct Leap {
    bits: u8,
    places: u8,
    ends: bool,
}

impl Huffman {
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Box<Self>> {
        let mut table = Box::new(Self {
            fast: [Entry::default(); 1 << AHEAD],
            leaps: [Leap::default(); 1 << AHEAD],
            ends: [0; 17],
            offsets: [0; 17],
            symbols: [0; 256],
        });
        table.symbols.get_mut(..symbols.len())?.copy_from_slice(symbols);
        let (mut code, mut index) = (0u32, 0usize);
        for len in 1..=16u32 {
            let count = usize::from(counts[len as usize - 1]);
            table.offsets[len as usize] = index as i32 - code as i32;
            for &symbol in &symbols[index..index + count] {
                if len <= AHEAD {
                    let spread = 1 << (AHEAD - len);
                    let first = (code as usize) * spread;
                    for (rest, entry) in table.fast.get_mut(first..first + spread)?.iter_mut().enumerate() {
                        *entry = Entry { code: len as u8, symbol, ..Entry::default() };
                        let size = u32::from(symbol & 15);
                        if size > 0 && len + size <= AHEAD {
                            let extra = (rest >> (AHEAD - len - size)) as i32;
                            entry.value = extend(extra, size) as i16;
                            entry.bits = (len + size) as u8;
                            entry.run = symbol >> 4;
                        }
                    }
                }
                code += 1;
            }
            index += count;
            if code > 1 << len {
                return None;
            }
            table.ends[len as usize] = code << (16 - len);
            code <<= 1;
        }
        for bits in 0..1 << AHEAD {
            table.leaps[bits] = table.leap(bits);
        }
        Some(table)
    }

    fn leap(&self, bits: usize) -> Leap {
        let mut leap = Leap::default();
        loop {
            let entry = self.fast[bits << leap.bits & ((1 << AHEAD) - 1)];
            let (run, size) = (entry.symbol >> 4, entry.symbol & 15);
            let len = leap.bits + entry.code + size;
            if entry.code == 0 || u32::from(len) > AHEAD {
                return leap;
            }
            leap.bits = len;
            match (run, size) {
                (0..15, 0) => return Leap { ends: true, ..leap },
                _ => leap.places += run + 1,
            }
        }
    }
}

/// The number that `size` bits mean.
#[inline(always)]
fn extend(bits: i32, size: u32) -> i32 {
    // Numbers without the first bit are negative.
    if bits < 1 << (size - 1) { bits - (1 << size) + 1 } else { bits }
}

/// The data as bits, zeros behind their end.
pub struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, from the top.
    ahead: u64,
    /// How many of them there are.
    count: u32,
}

impl<'a> Bits<'a> {
    pub fn at(data: &'a [u8], at: usize) -> Self {
        Self { data, at, ahead: 0, count: 0 }
    }

    /// Sees to it that there are at least 56 bits.
    #[inline(always)]
    fn fill(&mut self) {
        let next = match self.data.get(self.at..).and_then(|rest| rest.first_chunk()) {
            Some(next) => u64::from_be_bytes(*next),
            None => self.last(),
        };
        self.ahead |= next >> self.count;
        self.at += (63 - self.count as usize) >> 3;
        self.count |= 56;
    }

    #[cold]
    fn last(&self) -> u64 {
        let mut next = [0; 8];
        let rest = self.data.get(self.at..).unwrap_or_default();
        next[..rest.len()].copy_from_slice(rest);
        u64::from_be_bytes(next)
    }

    /// Whether no more was taken than there is.
    pub fn is_within(&self) -> bool {
        self.at <= self.data.len() + self.count as usize / 8
    }

    #[inline(always)]
    fn drop(&mut self, count: u32) {
        self.ahead <<= count;
        self.count -= count;
    }

    #[inline(always)]
    fn peek(&self, count: u32) -> usize {
        (self.ahead >> (64 - count)) as usize
    }

    /// The next `count` bits as a number; at most 16.
    pub fn take(&mut self, count: u32) -> i32 {
        if count == 0 {
            return 0;
        }
        if self.count < 32 {
            self.fill();
        }
        let bits = self.peek(count) as i32;
        self.drop(count);
        bits
    }

    /// The number that the next `size` bits mean; at most 15.
    pub fn number(&mut self, size: u32) -> i32 {
        if size == 0 { 0 } else { extend(self.take(size), size) }
    }

    /// The symbol whose code comes next.
    pub fn next(&mut self, table: &Huffman) -> Option<u8> {
        if self.count < 32 {
            self.fill();
        }
        self.symbol(table.fast[self.peek(AHEAD)], table)
    }

    /// The same, looked up as `entry`.
    #[inline(always)]
    fn symbol(&mut self, entry: Entry, table: &Huffman) -> Option<u8> {
        if entry.code > 0 {
            self.drop(u32::from(entry.code));
            return Some(entry.symbol);
        }
        self.long_symbol(table)
    }

    fn long_symbol(&mut self, table: &Huffman) -> Option<u8> {
        let next = self.peek(16) as u32;
        let len = (AHEAD + 1..=16).find(|&len| next < table.ends[len as usize])?;
        self.drop(len);
        let index = (next >> (16 - len)) as i32 + table.offsets[len as usize];
        table.symbols.get(index as usize).copied()
    }

    /// By how much the first coefficient of a block differs from the one before.
    #[inline(always)]
    pub fn dc(&mut self, table: &Huffman) -> Option<i32> {
        self.fill();
        let entry = table.fast[self.peek(AHEAD)];
        if entry.bits > 0 && entry.run == 0 {
            self.drop(u32::from(entry.bits));
            return Some(entry.value.into());
        }
        match self.symbol(entry, table)? {
            0 => Some(0),
            size @ 1..=15 => {
                let bits = self.peek(size.into()) as i32;
                self.drop(size.into());
                Some(extend(bits, size.into()))
            }
            _ => None,
        }
    }

    /// Reads the other coefficients of a block, times their quantizers; returns where in the zigzag they end.
    #[inline(always)]
    pub fn ac(&mut self, table: &Huffman, quantizer: &[i32; 64], block: &mut [i32; 64]) -> Option<usize> {
        let mut at = 1;
        while at < 64 {
            if self.count < 32 {
                self.fill();
            }
            let entry = table.fast[self.peek(AHEAD)];
            if entry.bits > 0 {
                at += usize::from(entry.run);
                let place = usize::from(ZIGZAG[at] & 63);
                block[place] = i32::from(entry.value) * quantizer[place];
                self.drop(entry.bits.into());
                at += 1;
                continue;
            }
            let symbol = self.symbol(entry, table)?;
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size > 0 {
                at += run;
                let value = extend(self.peek(size) as i32, size);
                let place = usize::from(*ZIGZAG.get(at)? & 63);
                block[place] = value * quantizer[place];
                self.drop(size);
                at += 1;
            } else if run == 15 {
                at += 16;
            } else {
                return Some(at);
            }
        }
        (at == 64).then_some(64)
    }

    /// Passes over them.
    #[inline(always)]
    pub fn pass(&mut self, table: &Huffman) -> Option<()> {
        let mut at = 1;
        while at < 64 {
            if self.count < 32 {
                self.fill();
            }
            let leap = table.leaps[self.peek(AHEAD)];
            let behind = at + usize::from(leap.places);
            // Bits behind the last coefficient belong to the next block.
            if leap.bits > 0 && behind < 64 {
                self.drop(leap.bits.into());
                if leap.ends {
                    return Some(());
                }
                at = behind;
                continue;
            }
            let symbol = self.symbol(table.fast[self.peek(AHEAD)], table)?;
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size > 0 {
                at += run + 1;
                self.drop(size);
            } else if run == 15 {
                at += 16;
            } else {
                return Some(());
            }
        }
        (at == 64).then_some(())
    }
}
