//! Generated pictures: ten kinds of shape at any place, size and contrast, turned by up to 40 degrees, among
//! clutter and noise.
//!
//! Nothing is downloaded and nothing is stored: each picture is a pure function of (seed, set, index), drawn
//! from signed distances with antialiased edges. Light on dark is as likely as dark on light and the position
//! is free, so that a linear model learns little; noise, clutter and small sizes keep convolutional networks
//! below 100 %.

use std::f64::consts::TAU;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{OpenOptions, Source, positive, resident, try_with_capacity};
use crate::data::{Dataset, Targets};
use crate::libtorch::device::cores;
use crate::util::rng::{CounterRng, RngStream};
use crate::util::threads;
use crate::util::yaml::Invalid;

const NAMES: [&str; 10] =
    ["disc", "square", "triangle", "cross", "star", "crescent", "heart", "arrow", "pentagon", "tee"];

/// The remedy where the memory does not hold them.
const SMALLER: &str = "take a smaller `shapes.count` or `shapes.size`";

/// `{shapes: {count: 10000}}`: grey pictures `[N, 1, S, S]`; sample i has class i mod `classes`.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{count: 10000}`")]
pub struct ShapesSpec {
    /// Number of samples.
    #[schemars(range(min = 1))]
    pub count: usize,
    /// Pixels per side.
    #[serde(default = "default_size")]
    #[schemars(range(min = 16, max = 256))]
    pub size: usize,
    /// Number of classes: the first of the ten shapes.
    #[serde(default = "default_classes")]
    #[schemars(range(min = 2, max = 10))]
    pub classes: usize,
    /// Standard deviation of the pixel noise as a share of the range from black to white.
    #[serde(default = "default_noise")]
    #[schemars(range(min = 0, max = 1))]
    pub noise: f64,
    /// Decides the pictures; apart from the run's seed, so that runs with several seeds see the same data.
    #[serde(default)]
    pub seed: u64,
}

fn default_size() -> usize {
    28
}

fn default_classes() -> usize {
    NAMES.len()
}

fn default_noise() -> f64 {
    0.09
}

impl Source for ShapesSpec {
    fn validate(&self) -> Result<(), Invalid> {
        positive("count", self.count)?;
        if !(16..=256).contains(&self.size) {
            return Err(Invalid::new("size", format!("must be from 16 to 256 pixels, not {}", self.size)));
        }
        if !(2..=NAMES.len()).contains(&self.classes) {
            return Err(Invalid::new(
                "classes",
                format!("must be from 2 to {}, not {}", NAMES.len(), self.classes),
            ));
        }
        if !(0.0..=1.0).contains(&self.noise) {
            return Err(Invalid::new("noise", format!("must be from 0 to 1, not {}", self.noise)));
        }
        Ok(())
    }

    fn outline(&self) -> Option<(Vec<i64>, Option<usize>)> {
        Some((vec![1, self.size as i64, self.size as i64], Some(self.classes)))
    }

    fn open(&self, options: &OpenOptions) -> Result<Dataset> {
        let outlines: Vec<Shape> = (0..self.classes).map(Shape::new).collect();
        let pixels = self.size * self.size;
        let mut data = try_with_capacity(self.count.checked_mul(pixels), SMALLER)?;
        let mut labels = try_with_capacity(Some(self.count), SMALLER)?;
        data.resize(self.count * pixels, 0);
        let share = self.count.div_ceil(cores());
        threads::each(cores(), data.chunks_mut(share * pixels).enumerate().collect(), |(part, data)| {
            for (offset, picture) in data.chunks_mut(pixels).enumerate() {
                let index = part * share + offset;
                let rng = CounterRng::new(self.seed, options.part as u64, index as u64, RngStream::Generate);
                self.picture(rng, &outlines[index % self.classes], picture);
            }
        });
        let size = self.size as i64;
        let xs = Tensor::f_from_data_size(&data, &[self.count as i64, 1, size, size], Kind::Uint8)?;
        labels.extend((0..self.count).map(|index| (index % self.classes) as i64));
        let names = NAMES[..self.classes].iter().map(|&name| name.to_owned()).collect();
        Ok(resident(xs, Targets::Classes(labels), names))
    }
}

impl ShapesSpec {
    fn picture(&self, mut rng: CounterRng, shape: &Shape, picture: &mut [u8]) {
        let size = self.size as f64;
        let scale = size / 28.0;
        // Background: a plane of grey between two thirds of the range.
        let ground = rng.between(50.0, 205.0);
        let (tilt_x, tilt_y) = (rng.between(-30.0, 30.0), rng.between(-30.0, 30.0));
        let mut canvas: Vec<f64> = (0..self.size * self.size)
            .map(|at| {
                let (x, y) = ((at % self.size) as f64 / size - 0.5, (at / self.size) as f64 / size - 0.5);
                ground + tilt_x * x + tilt_y * y
            })
            .collect();
        let clutter = rng.below(4);
        for _ in 0..clutter {
            self.line(&mut rng, &mut canvas);
        }

        let radius = scale * rng.between(6.0, 10.5);
        let margin = 0.8 * radius;
        let (centre_x, centre_y) = (rng.between(margin, size - margin), rng.between(margin, size - margin));
        let (sin, cos) = rng.between(-0.7, 0.7).sin_cos();
        let stretch = rng.between(0.8, 1.25);
        let contrast = rng.between(50.0, 140.0);
        // Whichever way there is room for it, else by chance.
        let is_light =
            if ground + contrast > 250.0 { false } else { ground - contrast < 5.0 || rng.below(2) == 0 };
        let ink = if is_light { ground + contrast } else { ground - contrast };
        let stroke = if rng.below(2) == 0 { Some(scale * rng.between(0.7, 1.2)) } else { None };
        let reach = 1.3 * radius + 2.0 * scale;
        let span = |centre: f64| {
            let from = (centre - reach).floor().max(0.0) as usize;
            from..((centre + reach).ceil() as usize).min(self.size)
        };
        for y in span(centre_y) {
            for x in span(centre_x) {
                let (dx, dy) = (x as f64 + 0.5 - centre_x, y as f64 + 0.5 - centre_y);
                let point =
                    [(cos * dx + sin * dy) / (radius * stretch), (cos * dy - sin * dx) * stretch / radius];
                let distance = radius * shape.distance(point);
                let distance = stroke.map_or(distance, |half| distance.abs() - half);
                blend(&mut canvas[y * self.size + x], ink, distance);
            }
        }
        // One line in three pictures crosses the shape.
        if rng.below(3) == 0 {
            self.line(&mut rng, &mut canvas);
        }
        // Four bytes add up to nearly a normal number; this is their standard deviation.
        let deviation = (4.0f64 * (256.0 * 256.0 - 1.0) / 12.0).sqrt();
        let unit = 255.0 * self.noise / deviation;
        let sum = |bytes: &[u8]| bytes.iter().map(|&byte| f64::from(byte)).sum::<f64>() - 510.0;
        for (values, pixels) in picture.chunks_mut(2).zip(canvas.chunks(2)) {
            let bytes = rng.bits().to_le_bytes();
            for ((value, pixel), noise) in values.iter_mut().zip(pixels).zip(bytes.chunks_exact(4)) {
                *value = (pixel + unit * sum(noise)).round().clamp(0.0, 255.0) as u8;
            }
        }
    }

    /// A straight stroke of clutter anywhere.
    fn line(&self, rng: &mut CounterRng, canvas: &mut [f64]) {
        let size = self.size as f64;
        let scale = size / 28.0;
        let start = [rng.between(0.0, size), rng.between(0.0, size)];
        let (sin, cos) = (TAU * rng.uniform()).sin_cos();
        let length = scale * rng.between(5.0, 14.0);
        let end = [start[0] + length * cos, start[1] + length * sin];
        let change = rng.between(30.0, 100.0) * if rng.below(2) == 0 { -1.0 } else { 1.0 };
        let half = scale * rng.between(0.4, 0.9);
        let span = |a: f64, b: f64| {
            let from = (a.min(b) - half - 1.0).floor().clamp(0.0, size) as usize;
            from..((a.max(b) + half + 1.0).ceil().clamp(0.0, size) as usize)
        };
        for y in span(start[1], end[1]) {
            for x in span(start[0], end[0]) {
                let distance = to_segment([x as f64 + 0.5, y as f64 + 0.5], start, end).sqrt() - half;
                let pixel = &mut canvas[y * self.size + x];
                let ink = *pixel + change;
                blend(pixel, ink, distance);
            }
        }
    }
}

/// Puts ink on a pixel whose centre is `distance` pixels outside the edge.
fn blend(pixel: &mut f64, ink: f64, distance: f64) {
    *pixel += (ink - *pixel) * (0.5 - distance).clamp(0.0, 1.0);
}

/// The squared distance of a point to a line segment.
fn to_segment(point: [f64; 2], start: [f64; 2], end: [f64; 2]) -> f64 {
    let (along, off) = ([end[0] - start[0], end[1] - start[1]], [point[0] - start[0], point[1] - start[1]]);
    let length = along[0] * along[0] + along[1] * along[1];
    let part = ((off[0] * along[0] + off[1] * along[1]) / length).clamp(0.0, 1.0);
    let gap = [off[0] - part * along[0], off[1] - part * along[1]];
    gap[0] * gap[0] + gap[1] * gap[1]
}

/// An outline of about unit radius.
enum Shape {
    Disc,
    Crescent,
    Polygon(Vec<[f64; 2]>),
}

impl Shape {
    fn new(class: usize) -> Self {
        let regular = |corners: usize, radius: &dyn Fn(usize) -> f64| {
            let corner = |index: usize| {
                let (sin, cos) = (TAU * index as f64 / corners as f64).sin_cos();
                [radius(index) * sin, -radius(index) * cos]
            };
            Shape::Polygon((0..corners).map(corner).collect())
        };
        match NAMES[class] {
            "disc" => Shape::Disc,
            "crescent" => Shape::Crescent,
            "square" => regular(4, &|_| 1.1),
            "triangle" => regular(3, &|_| 1.15),
            "pentagon" => regular(5, &|_| 1.0),
            "star" => regular(10, &|index| if index % 2 == 0 { 1.15 } else { 0.48 }),
            "cross" => {
                let (arm, long) = (0.33, 1.0);
                Shape::Polygon(vec![
                    [-arm, -long],
                    [arm, -long],
                    [arm, -arm],
                    [long, -arm],
                    [long, arm],
                    [arm, arm],
                    [arm, long],
                    [-arm, long],
                    [-arm, arm],
                    [-long, arm],
                    [-long, -arm],
                    [-arm, -arm],
                ])
            }
            "tee" => Shape::Polygon(vec![
                [-0.9, -0.95],
                [0.9, -0.95],
                [0.9, -0.35],
                [0.3, -0.35],
                [0.3, 0.95],
                [-0.3, 0.95],
                [-0.3, -0.35],
                [-0.9, -0.35],
            ]),
            "arrow" => Shape::Polygon(vec![
                [0.0, -1.1],
                [0.85, -0.1],
                [0.3, -0.1],
                [0.3, 1.0],
                [-0.3, 1.0],
                [-0.3, -0.1],
                [-0.85, -0.1],
            ]),
            // The curve x = 16 sin³t, y = 13 cos t − 5 cos 2t − 2 cos 3t − cos 4t.
            _ => {
                let point = |index: usize| {
                    let t = TAU * index as f64 / 24.0;
                    let y = 13.0 * t.cos() - 5.0 * (2.0 * t).cos() - 2.0 * (3.0 * t).cos() - (4.0 * t).cos();
                    [t.sin().powi(3), -(y + 2.5) / 15.0]
                };
                Shape::Polygon((0..24).map(point).collect())
            }
        }
    }

    /// The signed distance to the outline, negative inside.
    fn distance(&self, point: [f64; 2]) -> f64 {
        let circle = |x: f64, radius: f64| (point[0] - x).hypot(point[1]) - radius;
        match self {
            Shape::Disc => circle(0.0, 0.95),
            Shape::Crescent => circle(-0.1, 1.0).max(-circle(0.45, 0.8)),
            Shape::Polygon(corners) => {
                let mut nearest = f64::INFINITY;
                let mut is_inside = false;
                let mut start = corners[corners.len() - 1];
                for &end in corners {
                    nearest = nearest.min(to_segment(point, start, end));
                    // A ray to the right crosses the outline an odd number of times from inside.
                    if (start[1] > point[1]) != (end[1] > point[1]) {
                        let crossing =
                            start[0] + (point[1] - start[1]) / (end[1] - start[1]) * (end[0] - start[0]);
                        is_inside ^= point[0] < crossing;
                    }
                    start = end;
                }
                if is_inside { -nearest.sqrt() } else { nearest.sqrt() }
            }
        }
    }
}
