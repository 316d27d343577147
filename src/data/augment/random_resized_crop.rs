//! Random resized crops: Szegedy et al. 2015, "Going deeper with convolutions"; torchvision's
//! `RandomResizedCrop` with its antialiased bilinear filter.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::pixel_map::{PixelMap, move_pixels};
use super::values::Size;
use super::{Augmentation, ChangesValues, Params, image_sides, with_sides};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// A rectangle of random area and proportions, scaled to `size`.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// The size it is scaled to; that of the samples when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Smallest and largest share of the picture's area, in (0, 1].
    #[serde(default = "default_scale")]
    pub scale: [f64; 2],
    /// Smallest and largest width/height.
    #[serde(default = "default_ratio")]
    pub ratio: [f64; 2],
}

fn default_scale() -> [f64; 2] {
    [0.08, 1.0]
}

fn default_ratio() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}

impl Augmentation for RandomResizedCrop {
    fn validate(&self) -> Result<(), Invalid> {
        if let Some(size) = self.size {
            size.validate("size")?;
        }
        let [low, high] = self.scale;
        if !(low > 0.0 && low <= high && high <= 1.0) {
            return Err(Invalid::new("scale", "expected [low, high] with 0 < low ≤ high ≤ 1"));
        }
        let [low, high] = self.ratio;
        if !(low > 0.0 && low <= high && high.is_finite()) {
            return Err(Invalid::new("ratio", "expected [low, high] with 0 < low ≤ high"));
        }
        Ok(())
    }

    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        let sides = image_sides(input)?;
        Ok(with_sides(input, self.size.map_or(sides, Size::sides)))
    }

    fn num_params(&self) -> usize {
        4
    }

    fn sample(&self, sides: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        params.extend(self.rectangle(sides, rng));
    }

    fn crops_original(&self) -> bool {
        true
    }
}

impl ChangesValues for RandomResizedCrop {
    /// The filter is separable, so each picture is rows × picture × columns with two small matrices of its
    /// own.
    fn apply(&self, xs: &Tensor, params: &Params) -> Tensor {
        let params = &params.tensor;
        let size = xs.size();
        let [to_height, to_width] =
            self.size.map_or([size[2], size[3]], |size| size.sides().map(|side| side as i64));
        let rows = filter(&params.select(1, 0), &params.select(1, 2), size[2], to_height);
        let columns = filter(&params.select(1, 1), &params.select(1, 3), size[3], to_width);
        let (rows, columns) = (rows.to_kind(xs.kind()), columns.to_kind(xs.kind()));
        rows.unsqueeze(1).matmul(xs).matmul(&columns.transpose(1, 2).unsqueeze(1))
    }

    fn apply_to_masks(&self, masks: &Tensor, params: &Params) -> Tensor {
        let size = masks.size();
        let sides = [size[2] as usize, size[3] as usize];
        let to = self.size.map_or(sides, Size::sides);
        let of_line = |start: f64, len: f64, to: usize| {
            (0..to).map(|at| (start + (at as f64 * len / to as f64).floor()) as i32).collect()
        };
        let map =
            |row: &[f64]| PixelMap::of_lines(of_line(row[0], row[2], to[0]), of_line(row[1], row[3], to[1]));
        move_pixels(masks, &params.rows().map(map).collect::<Vec<_>>(), None)
    }
}

impl RandomResizedCrop {
    /// Top, left, height and width of the rectangle, in whole pixels, as torchvision chooses them: ten tries,
    /// then the largest centred rectangle of allowed proportions.
    pub fn rectangle(&self, [height, width]: [usize; 2], rng: &mut CounterRng) -> [f64; 4] {
        let (tall, wide) = (height as f64, width as f64);
        for _ in 0..10 {
            let area = tall * wide * rng.between(self.scale[0], self.scale[1]);
            let ratio = rng.between(self.ratio[0].ln(), self.ratio[1].ln()).exp();
            let (h, w) = ((area / ratio).sqrt().round_ties_even(), (area * ratio).sqrt().round_ties_even());
            if (1.0..=tall).contains(&h) && (1.0..=wide).contains(&w) {
                let top = rng.below((tall - h) as u64 + 1) as f64;
                let left = rng.below((wide - w) as u64 + 1) as f64;
                return [top, left, h, w];
            }
        }
        let (h, w) = if wide / tall < self.ratio[0] {
            ((wide / self.ratio[0]).round_ties_even().min(tall), wide)
        } else if wide / tall > self.ratio[1] {
            (tall, (tall * self.ratio[1]).round_ties_even().min(wide))
        } else {
            (tall, wide)
        };
        [((tall - h) / 2.0).floor(), ((wide - w) / 2.0).floor(), h.max(1.0), w.max(1.0)]
    }
}

/// The weights `[B, to, from]` with which a line of `from` pixels becomes the `to` pixels of its part
/// `start..start + len`: a triangle as wide as the reduction, and no narrower than linear interpolation.
fn filter(start: &Tensor, len: &Tensor, from: i64, to: i64) -> Tensor {
    let (start, len) = (start.view([-1, 1, 1]), len.view([-1, 1, 1]));
    let options = (Kind::Double, start.device());
    let scale = &len / to as f64;
    let centres = (Tensor::arange(to, options).view([1, -1, 1]) + 0.5) * &scale;
    let pixels = Tensor::arange(from, options).view([1, 1, -1]) - &start;
    let inside = pixels.ge(0).logical_and(&pixels.lt_tensor(&len));
    let distance: Tensor = (&pixels + 0.5 - centres) / scale.clamp_min(1.0);
    let weights: Tensor = 1.0 - distance.abs();
    let weights = weights.clamp_min(0.0) * inside.to_kind(Kind::Double);
    let total = weights.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double);
    weights / total
}
