//! From coefficients to pixels: the inverse cosine transform, chroma at the width of luma, colours.

use multiversion::multiversion;

/// The inverse transform of one dimension, times 4096: what each coefficient adds to each of eight places.
/// From the factors of stb_image's integer transform, which adds and multiplies the same numbers in another
/// order.
const BASIS: [[i32; 8]; 8] = basis();

const fn basis() -> [[i32; 8]; 8] {
    let mut basis = [[0; 8]; 8];
    let mut n = 0;
    while n < 8 {
        let mut s = [0; 8];
        s[n] = 1;
        let p1 = (s[2] + s[6]) * 2217;
        let (t2, t3) = (p1 - s[6] * 7567, p1 + s[2] * 3135);
        let (t0, t1) = ((s[0] + s[4]) << 12, (s[0] - s[4]) << 12);
        let x = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];
        let p5 = (s[7] + s[3] + s[5] + s[1]) * 4816;
        let (p1, p2) = (p5 - (s[7] + s[1]) * 3685, p5 - (s[5] + s[3]) * 10497);
        let (p3, p4) = ((s[7] + s[3]) * -8034, (s[5] + s[1]) * -1597);
        let odd =
            [s[1] * 6149 + p1 + p4, s[3] * 12586 + p2 + p3, s[5] * 8410 + p2 + p4, s[7] * 1223 + p1 + p3];
        let mut at = 0;
        while at < 4 {
            basis[n][at] = x[at] + odd[at];
            basis[n][7 - at] = x[at] - odd[at];
            at += 1;
        }
        n += 1;
    }
    basis
}

/// Writes the 8 × 8 pixels of a block, and clears it. Its coefficients end at `end` of the zigzag.
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
        // What even coefficients add is symmetric, what odd ones add is not but for the sign.
        let (mut even, mut odd) = ([512i32; 8], [0i32; 8]);
        for (rows, bases) in rows.as_chunks::<2>().0.iter().zip(BASIS.as_chunks::<2>().0).take(USED / 2) {
            for column in 0..8 {
                even[column] = even[column].wrapping_add(rows[0][column].wrapping_mul(bases[0][place]));
                odd[column] = odd[column].wrapping_add(rows[1][column].wrapping_mul(bases[1][place]));
            }
        }
        for column in 0..8 {
            half[place][column] = even[column].wrapping_add(odd[column]) >> 10;
            half[7 - place][column] = even[column].wrapping_sub(odd[column]) >> 10;
        }
    }
    *block = [0; 64];
    for (half, line) in half.iter().zip(out.chunks_mut(stride)) {
        let mut sums = [512 + 65536 + (128i32 << 17); 8];
        for (&value, basis) in half.iter().zip(&BASIS).take(USED) {
            for (sum, &basis) in sums.iter_mut().zip(basis) {
                *sum = sum.wrapping_add(value.wrapping_mul(basis));
            }
        }
        if let Some(line) = line.first_chunk_mut::<8>() {
            for (out, sum) in line.iter_mut().zip(sums) {
                *out = (sum >> 17).clamp(0, 255) as u8;
            }
        }
    }
}

/// Three quarters of the nearer row and one of the farther.
#[multiversion(targets("x86_64+avx2"))]
pub fn blend(near: &[u8], far: &[u8], out: &mut [u8]) {
    for ((&near, &far), out) in near.iter().zip(far).zip(out) {
        *out = ((3 * u16::from(near) + u16::from(far) + 2) >> 2) as u8;
    }
}

/// Two pixels of each, in the same proportion with its neighbours.
#[multiversion(targets("x86_64+avx2"))]
pub fn widen(narrow: &[u8], wide: &mut [u8]) {
    let mix = |near: u8, far: u8| ((3 * u16::from(near) + u16::from(far) + 2) >> 2) as u8;
    let len = narrow.len();
    let (Some(&first), Some(&last)) = (narrow.first(), narrow.last()) else { return };
    if len < 2 || wide.len() < 2 * len {
        return;
    }
    (wide[0], wide[1]) = (first, mix(first, narrow[1]));
    (wide[2 * len - 2], wide[2 * len - 1]) = (mix(last, narrow[len - 2]), last);
    let inner = wide[2..2 * len - 2].as_chunks_mut::<2>().0;
    for (((out, &before), &here), &after) in inner.iter_mut().zip(narrow).zip(&narrow[1..]).zip(&narrow[2..])
    {
        *out = [mix(here, before), mix(here, after)];
    }
}

/// ITU-R BT.601, full range, in 14 bits.
#[multiversion(targets("x86_64+avx2"))]
pub fn to_rgb(light: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) {
    for (((&y, &cb), &cr), out) in light.iter().zip(blue).zip(red).zip(out.as_chunks_mut::<3>().0) {
        let y = i32::from(y) * 16384 + 8191;
        let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
        let level = |value: i32| (value >> 14).clamp(0, 255) as u8;
        *out = [level(y + cr * 22970), level(y - cr * 11700 - cb * 5638), level(y + cb * 29032)];
    }
}
