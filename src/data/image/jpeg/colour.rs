//! From samples to pixels: chroma at the size of luma (libjpeg's "fancy upsampling": a triangle filter) and
//! RGB, with the rounding of libjpeg's jdsample.c and jdcolor.c.

use multiversion::multiversion;

/// A row of chroma between two rows, at half height and full width. libjpeg rounds down above a chroma row,
/// up below it.
#[multiversion(targets("x86_64+avx2"))]
pub fn blend(near: &[u8], far: &[u8], is_below: bool, out: &mut [u8]) {
    let bias = 1 + u16::from(is_below);
    for ((&near, &far), out) in near.iter().zip(far).zip(out) {
        *out = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
    }
}

/// Two samples of each at half width and full height; `wide` is twice as long, and `narrow` has at least 2.
#[multiversion(targets("x86_64+avx2"))]
pub fn widen(narrow: &[u8], wide: &mut [u8]) {
    let mix = |near: u8, far: u8, bias: u16| ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
    let (&[first, second, ..], &[.., before, last]) = (narrow, narrow) else { return };
    let Some((pairs, [])) = wide.split_at_mut_checked(2 * narrow.len()) else { return };
    let (pairs, len) = (pairs.as_chunks_mut::<2>().0, narrow.len());
    pairs[0] = [first, mix(first, second, 2)];
    pairs[len - 1] = [mix(last, before, 1), last];
    let inner = &mut pairs[1..len - 1];
    for (((out, &before), &here), &after) in inner.iter_mut().zip(narrow).zip(&narrow[1..]).zip(&narrow[2..])
    {
        *out = [mix(here, before, 1), mix(here, after, 2)];
    }
}

/// The same of a row between two rows, at half width and half height; `sums` keeps what lies between.
#[multiversion(targets("x86_64+avx2"))]
pub fn blend_and_widen(near: &[u8], far: &[u8], sums: &mut Vec<u16>, wide: &mut [u8]) {
    sums.clear();
    sums.extend(near.iter().zip(far).map(|(&near, &far)| 3 * u16::from(near) + u16::from(far)));
    let mix = |near: u16, far: u16, bias: u16| ((3 * near + far + bias) >> 4) as u8;
    let (&[first, second, ..], &[.., before, last]) = (&sums[..], &sums[..]) else { return };
    let Some((pairs, [])) = wide.split_at_mut_checked(2 * sums.len()) else { return };
    let (pairs, len) = (pairs.as_chunks_mut::<2>().0, sums.len());
    pairs[0] = [mix(first, first, 8), mix(first, second, 7)];
    pairs[len - 1] = [mix(last, before, 8), mix(last, last, 7)];
    let inner = &mut pairs[1..len - 1];
    for (((out, &before), &here), &after) in inner.iter_mut().zip(&*sums).zip(&sums[1..]).zip(&sums[2..]) {
        *out = [mix(here, before, 8), mix(here, after, 7)];
    }
}

/// ITU-R BT.601, full range, in 16 bits.
#[multiversion(targets("x86_64+avx2"))]
pub fn to_rgb(light: &[u8], blue: &[u8], red: &[u8], out: &mut [u8]) {
    for (((&y, &cb), &cr), out) in light.iter().zip(blue).zip(red).zip(out.as_chunks_mut::<3>().0) {
        let y = (i32::from(y) << 16) + 32768;
        let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
        let level = |value: i32| (value >> 16).clamp(0, 255) as u8;
        *out = [level(y + cr * 91881), level(y - cr * 46802 - cb * 22554), level(y + cb * 116130)];
    }
}

/// Three rows as one of pixels.
#[multiversion(targets("x86_64+avx2"))]
pub fn interleave(red: &[u8], green: &[u8], blue: &[u8], out: &mut [u8]) {
    for (((&red, &green), &blue), out) in red.iter().zip(green).zip(blue).zip(out.as_chunks_mut::<3>().0) {
        *out = [red, green, blue];
    }
}
