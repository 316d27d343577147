//! Random brightness, contrast, saturation and hue: torchvision's `ColorJitter`, in this fixed order.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::values::{Range, happens, is_one, one, probability};
use super::{Augmentation, ChangesValues, Params, image_sides};
use crate::util::rng::CounterRng;
use crate::util::yaml::Invalid;

/// A number b means a factor from max(0, 1 - b) to 1 + b, for the hue a shift from -b to b turns; a pair is
/// the range itself. torchvision shuffles the four for each picture; here they are applied in this order.
#[derive(Deserialize, Serialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ColorJitter {
    /// Factor of the brightness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brightness: Option<Range>,
    /// Factor of the contrast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrast: Option<Range>,
    /// Factor of the saturation; of colour pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saturation: Option<Range>,
    /// Shift of the hue in turns of the colour circle, within -0.5 to 0.5; of colour pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hue: Option<Range>,
    /// Probability.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
}

/// A factor's range: a number above 1 reaches down to 0, not below.
fn factors(range: Range) -> Range {
    match range {
        Range::Around(width) => Range::Between([(1.0 - width).max(0.0), 1.0 + width]),
        between => between,
    }
}

impl Augmentation for ColorJitter {
    fn validate(&self) -> Result<(), Invalid> {
        let ranges =
            [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)];
        for (key, range) in ranges {
            if let Some(range @ Range::Around(_)) = range {
                range.validate(key, 1.0, [f64::MIN, f64::MAX])?;
            }
            if let Some(range) = range {
                factors(range).validate(key, 1.0, [0.0, f64::MAX])?;
            }
        }
        if let Some(hue) = self.hue {
            hue.validate("hue", 0.0, [-0.5, 0.5])?;
        }
        if [self.brightness, self.contrast, self.saturation, self.hue].iter().all(Option::is_none) {
            let message = "changes nothing; give `brightness`, `contrast`, `saturation` or `hue`";
            return Err(Invalid::new("", message));
        }
        probability("p", self.p)
    }

    fn output_shape(&self, input: &[i64]) -> Result<Vec<i64>, String> {
        image_sides(input)?;
        if (self.saturation.is_some() || self.hue.is_some()) && input[0] != 3 {
            return Err("saturation and hue need 3 channels; leave them out".into());
        }
        Ok(input.to_vec())
    }

    fn num_params(&self) -> usize {
        4
    }

    /// The factors of brightness, contrast and saturation, and the shift of the hue.
    fn sample(&self, _: [usize; 2], rng: &mut CounterRng, params: &mut Vec<f64>) {
        for range in [self.brightness, self.contrast, self.saturation] {
            params.push(range.map_or(1.0, |range| factors(range).sample(1.0, rng)));
        }
        params.push(self.hue.map_or(0.0, |range| range.sample(0.0, rng)));
        if !happens(self.p, rng) {
            let own = params.len() - 4;
            params[own..].copy_from_slice(&[1.0, 1.0, 1.0, 0.0]);
        }
    }
}

impl ChangesValues for ColorJitter {
    fn apply(&self, xs: &Tensor, params: &Params) -> Tensor {
        let param = |column: i64| params.tensor.select(1, column).to_kind(xs.kind()).view([-1, 1, 1, 1]);
        let mut xs = xs.shallow_clone();
        if self.brightness.is_some() {
            xs = (&xs * param(0)).clamp_(0.0, 1.0);
        }
        if self.contrast.is_some() {
            let mean = luma(&xs).mean_dim([1i64, 2, 3].as_slice(), true, None::<Kind>);
            xs = blend(&xs, &mean, &param(1));
        }
        if self.saturation.is_some() {
            xs = blend(&xs, &luma(&xs), &param(2));
        }
        if self.hue.is_some() {
            xs = shift_hue(&xs, &param(3).squeeze_dim(1));
        }
        xs
    }
}

/// The grey picture `[B, 1, H, W]` of ITU-R 601.
fn luma(xs: &Tensor) -> Tensor {
    if xs.size()[1] != 3 {
        return xs.mean_dim([1i64].as_slice(), true, None::<Kind>);
    }
    xs.narrow(1, 0, 1) * 0.2989 + xs.narrow(1, 1, 1) * 0.587 + xs.narrow(1, 2, 1) * 0.114
}

/// `factor` of the picture and the rest of `other`, kept in [0, 1].
fn blend(xs: &Tensor, other: &Tensor, factor: &Tensor) -> Tensor {
    let mut blend: Tensor = xs * factor + other * (1.0 - factor);
    blend.clamp_(0.0, 1.0)
}

/// Turns the hue by `turns` `[B, 1, 1]`, through the closed form of HSV: channel n is
/// v - v·s·max(0, min(k, 4 - k, 1)) with k = (n + 6h) mod 6 and n = 5, 3, 1 for red, green, blue.
fn shift_hue(xs: &Tensor, turns: &Tensor) -> Tensor {
    let (red, green, blue) = (xs.select(1, 0), xs.select(1, 1), xs.select(1, 2));
    let most = xs.amax([1i64].as_slice(), false);
    let spread = &most - xs.amin([1i64].as_slice(), false);
    let divisor = spread.where_self(&spread.gt(0.0), &spread.ones_like());
    let sixths = ((&green - &blue) / &divisor)
        .where_self(&red.eq_tensor(&most), &((&blue - &red) / &divisor + 2.0))
        .where_self(
            &red.eq_tensor(&most).logical_or(&green.eq_tensor(&most)),
            &((&red - &green) / &divisor + 4.0),
        );
    let hue = sixths + turns * 6.0;
    let channel = |n: f64| {
        let k = (&hue + n).remainder(6.0);
        let amount = k.minimum(&(4.0 - &k)).clamp(0.0, 1.0);
        &most - &spread * amount
    };
    Tensor::stack(&[channel(5.0), channel(3.0), channel(1.0)], 1)
}
