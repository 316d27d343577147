//! From coefficients to samples: the inverse cosine transform.

use multiversion::multiversion;

/// The inverse transform of one dimension, times 8192: what each coefficient adds to each of eight samples.
/// Computed with the factors of libjpeg's jidctint.c (`JDCT_ISLOW`), so that the sums are the same integers.
const BASIS: [[i32; 8]; 8] = basis();

const fn basis() -> [[i32; 8]; 8] {
    let mut basis = [[0; 8]; 8];
    let mut n = 0;
    while n < 8 {
        let mut s = [0; 8];
        s[n] = 1;
        let z = (s[2] + s[6]) * 4433;
        let (t2, t3) = (z - s[6] * 15137, z + s[2] * 6270);
        let (t0, t1) = ((s[0] + s[4]) << 13, (s[0] - s[4]) << 13);
        let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];
        let z5 = (s[7] + s[3] + s[5] + s[1]) * 9633;
        let (z1, z2) = ((s[7] + s[1]) * -7373, (s[5] + s[3]) * -20995);
        let (z3, z4) = (z5 - (s[7] + s[3]) * 16069, z5 - (s[5] + s[1]) * 3196);
        let odd =
            [s[1] * 12299 + z1 + z4, s[3] * 25172 + z2 + z3, s[5] * 16819 + z2 + z4, s[7] * 2446 + z1 + z3];
        let mut at = 0;
        while at < 4 {
            basis[n][at] = even[at] + odd[at];
            basis[n][7 - at] = even[at] - odd[at];
            at += 1;
        }
        n += 1;
    }
    basis
}

/// Writes the 8 × 8 samples of a block, and clears it. Its coefficients end at `end` of the zigzag.
#[inline(always)]
pub fn transform(block: &mut [i32; 64], end: usize, out: &mut [u8], stride: usize) {
    match end {
        0..=1 => {
            let level = ((block[0].wrapping_add(4 + 1024)) >> 3).clamp(0, 255) as u8;
            for line in out.chunks_mut(stride).take(8) {
                line[..8].fill(level);
            }
            block[0] = 0;
        }
        2..=10 => transform_some(block, out, stride),
        _ => transform_all(block, out, stride),
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn transform_some(block: &mut [i32; 64], out: &mut [u8], stride: usize) {
    invert::<4>(block, out, stride);
}

#[multiversion(targets("x86_64+avx2"))]
fn transform_all(block: &mut [i32; 64], out: &mut [u8], stride: usize) {
    invert::<8>(block, out, stride);
}

/// Only the first `USED` rows and columns hold coefficients.
#[inline(always)]
fn invert<const USED: usize>(block: &mut [i32; 64], out: &mut [u8], stride: usize) {
    let mut half = [[0i32; 8]; 8];
    let rows = block.as_chunks::<8>().0;
    for place in 0..4 {
        // What even coefficients add is symmetric, what odd ones add is antisymmetric.
        let (mut even, mut odd) = ([1i32 << 10; 8], [0i32; 8]);
        for (rows, bases) in rows.as_chunks::<2>().0.iter().zip(BASIS.as_chunks::<2>().0).take(USED / 2) {
            for column in 0..8 {
                even[column] = even[column].wrapping_add(rows[0][column].wrapping_mul(bases[0][place]));
                odd[column] = odd[column].wrapping_add(rows[1][column].wrapping_mul(bases[1][place]));
            }
        }
        for column in 0..8 {
            half[place][column] = even[column].wrapping_add(odd[column]) >> 11;
            half[7 - place][column] = even[column].wrapping_sub(odd[column]) >> 11;
        }
    }
    *block = [0; 64];
    for (half, line) in half.iter().zip(out.chunks_mut(stride)) {
        let mut sums = [(1 << 17) + (128i32 << 18); 8];
        for (&value, basis) in half.iter().zip(&BASIS).take(USED) {
            for (sum, &basis) in sums.iter_mut().zip(basis) {
                *sum = sum.wrapping_add(value.wrapping_mul(basis));
            }
        }
        if let Some(line) = line.first_chunk_mut::<8>() {
            for (out, sum) in line.iter_mut().zip(sums) {
                *out = (sum >> 18).clamp(0, 255) as u8;
            }
        }
    }
}
