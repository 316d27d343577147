//! What compression at a quality leaves of an image, to the bit as libjpeg does it (RGB with chroma at half the
//! resolution, `JDCT_ISLOW`), without a file between: Huffman codes lose nothing.

use super::{Channel, Colours, Jpeg, SCRATCH, Scan, Scratch, Tables, transform};

/// Luma and chroma of Annex K of the standard, row by row.
const STEPS: [[u16; 64]; 2] = [
    [
        16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14,
        17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49,
        64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
    ],
    [
        17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47,
        66, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
        99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    ],
];

/// Compresses and decompresses an image of one or three planes `height × width` in place; others stay as they
/// are. `quality` is libjpeg's, from 1 to 100.
pub fn compress(image: &mut [u8], [height, width]: [usize; 2], quality: u32) {
    let plane = height * width;
    if plane == 0 || ![plane, 3 * plane].contains(&image.len()) {
        return;
    }
    let is_grey = image.len() == plane;
    let rows = if is_grey { 1 } else { 2 };
    let channel = |sampling| Channel { id: 0, sampling: [sampling; 2], quantizer: 0 };
    let jpeg = Jpeg {
        height,
        width,
        is_turned: false,
        colours: if is_grey { Colours::Grey } else { Colours::YCbCr },
        is_progressive: false,
        channels: if is_grey { vec![channel(1)] } else { vec![channel(2), channel(1), channel(1)] },
        tables: Tables::default(),
        scan: Scan { channels: Vec::new(), first: 0, last: 0, high: 0, low: 0 },
        rest: &[],
    };
    let [down, across] = jpeg.mcus();
    let (blocks, sides) = ([[0, down], [0, across]], [down * 8, across * 8]);
    let pixels = SCRATCH.with_borrow_mut(|scratch| {
        fill(image, [height, width], sides, rows, scratch);
        for (number, plane) in scratch.planes.iter_mut().take(jpeg.channels.len()).enumerate() {
            let scale = if number == 0 { rows } else { 1 };
            quantize(plane, sides[1] * scale, &steps(number.min(1), quality));
        }
        jpeg.pixels(blocks, [0, 0], [height, width], scratch)
    });
    let channels = jpeg.channels.len();
    for (at, pixel) in pixels.chunks_exact(channels).enumerate() {
        for (channel, &level) in pixel.iter().enumerate() {
            image[channel * plane + at] = level;
        }
    }
}

/// libjpeg's `jpeg_set_quality`.
fn steps(table: usize, quality: u32) -> [i32; 64] {
    let quality = quality.clamp(1, 100) as i32;
    let scale = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
    STEPS[table].map(|step| ((i32::from(step) * scale + 50) / 100).clamp(1, 255))
}

/// Luma, and chroma of half the size, with the padding of libjpeg's encoder. `sides` are those of a plane of
/// chroma, and of the only one of a grey image.
fn fill(image: &[u8], [height, width]: [usize; 2], sides: [usize; 2], rows: usize, scratch: &mut Scratch) {
    let [down, across] = sides;
    let stride = across * rows;
    let (luma, plane) = (&mut scratch.planes[0], height * width);
    luma.resize(down * rows * stride, 0);
    if rows == 1 {
        for (y, line) in luma.chunks_exact_mut(stride).enumerate() {
            let from = &image[y.min(height - 1) * width..][..width];
            line[..width].copy_from_slice(from);
            line[width..].fill(from[width - 1]);
        }
        return;
    }
    let (red, rest) = image.split_at(plane);
    let (green, blue) = rest.split_at(plane);
    // Chroma at full resolution first, its lines as long as those of luma.
    let mut chroma = [vec![0u8; height * stride], vec![0u8; height * stride]];
    for y in 0..height {
        for x in 0..stride {
            let at = y * width + x.min(width - 1);
            let [r, g, b] = [red[at], green[at], blue[at]].map(i32::from);
            luma[y * stride + x] = ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) as u8;
            let half = (128 << 16) + 32767;
            chroma[0][y * stride + x] = ((-11059 * r - 21709 * g + 32768 * b + half) >> 16) as u8;
            chroma[1][y * stride + x] = ((32768 * r - 27439 * g - 5329 * b + half) >> 16) as u8;
        }
    }
    for y in height..down * rows {
        luma.copy_within((height - 1) * stride..height * stride, y * stride);
    }
    let lines = height.div_ceil(2);
    for (out, full) in scratch.planes[1..].iter_mut().zip(&chroma) {
        out.resize(down * across, 0);
        for (y, line) in out.chunks_exact_mut(across).enumerate() {
            // Below the image the last line of chroma is repeated, not that of the image.
            let y = y.min(lines - 1);
            let upper = full[2 * y * stride..][..stride].as_chunks::<2>().0;
            let lower = full[(2 * y + 1).min(height - 1) * stride..][..stride].as_chunks::<2>().0;
            for (x, ((out, upper), lower)) in line.iter_mut().zip(upper).zip(lower).enumerate() {
                let sum: u32 = upper.iter().chain(lower).map(|&level| u32::from(level)).sum();
                *out = ((sum + 1 + (x as u32 & 1)) >> 2) as u8;
            }
        }
    }
}

/// Replaces each block of 8 × 8 samples by what its quantised coefficients give.
fn quantize(plane: &mut [u8], stride: usize, steps: &[i32; 64]) {
    for band in plane.chunks_exact_mut(8 * stride) {
        for x in (0..stride).step_by(8) {
            let mut block = [0i32; 64];
            for (line, out) in band.chunks_exact(stride).zip(block.as_chunks_mut::<8>().0) {
                for (out, &level) in out.iter_mut().zip(&line[x..x + 8]) {
                    *out = i32::from(level) - 128;
                }
            }
            forward(&mut block);
            for (value, &step) in block.iter_mut().zip(steps) {
                // The transform's values are eight times the coefficients.
                let divisor = step * 8;
                *value = (value.abs() + divisor / 2) / divisor * value.signum() * step;
            }
            transform(&mut block, 64, &mut band[x..], stride);
        }
    }
}

/// libjpeg's jfdctint.c: the cosine transform, times 8.
fn forward(block: &mut [i32; 64]) {
    for row in block.as_chunks_mut::<8>().0 {
        *row = line(row, 11, |sum| sum << 2);
    }
    for column in 0..8 {
        let values = std::array::from_fn(|row| block[row * 8 + column]);
        for (row, value) in line(&values, 15, |sum| (sum + 2) >> 2).into_iter().enumerate() {
            block[row * 8 + column] = value;
        }
    }
}

/// One dimension; `bits` are dropped of its products, and `scale` brings its sums to the same size.
fn line(d: &[i32; 8], bits: u32, scale: impl Fn(i32) -> i32) -> [i32; 8] {
    let round = |value: i32| (value + (1 << (bits - 1))) >> bits;
    let (t0, t7, t1, t6) = (d[0] + d[7], d[0] - d[7], d[1] + d[6], d[1] - d[6]);
    let (t2, t5, t3, t4) = (d[2] + d[5], d[2] - d[5], d[3] + d[4], d[3] - d[4]);
    let (t10, t13, t11, t12) = (t0 + t3, t0 - t3, t1 + t2, t1 - t2);
    let z = (t12 + t13) * 4433;
    let z5 = (t4 + t6 + t5 + t7) * 9633;
    let (z1, z2) = ((t4 + t7) * -7373, (t5 + t6) * -20995);
    let (z3, z4) = (z5 - (t4 + t6) * 16069, z5 - (t5 + t7) * 3196);
    [
        scale(t10 + t11),
        round(t7 * 12299 + z1 + z4),
        round(z + t13 * 6270),
        round(t6 * 25172 + z2 + z3),
        scale(t10 - t11),
        round(t5 * 16819 + z2 + z4),
        round(z - t12 * 15137),
        round(t4 * 2446 + z1 + z3),
    ]
}
