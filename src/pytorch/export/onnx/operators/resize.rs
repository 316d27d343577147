//! Interpolation. PyTorch and ONNX reckon sizes and coordinates with factors of another precision: what that
//! changes is reckoned in the graph as PyTorch does it, or refused.

use anyhow::Result;
use tch::Kind;

use super::{Attribute, Call, Float, Int, Ints, Text};
use crate::pytorch::export::flat::FlatValue;
use crate::pytorch::export::onnx::proto::Element;

/// Sides up to here are tried where they are free.
const SIDES: i64 = 1024;

/// `half_pixel` and not `pytorch_half_pixel`, which is another thing where a side becomes 1.
pub fn bilinear(call: &mut Call) -> Result<String> {
    smooth(call, &[("mode", Text("linear"))])
}

pub fn bicubic(call: &mut Call) -> Result<String> {
    smooth(call, &[("mode", Text("cubic")), ("cubic_coeff_a", Float(-0.75))])
}

pub fn bilinear_antialiased(call: &mut Call) -> Result<String> {
    antialiased(call, &[("mode", Text("linear"))])
}

/// Its kernel is another than that of [`bicubic`], in PyTorch as in Pillow.
pub fn bicubic_antialiased(call: &mut Call) -> Result<String> {
    antialiased(call, &[("mode", Text("cubic")), ("cubic_coeff_a", Float(-0.5))])
}

/// Without `exclude_outside` what is beyond the border would count.
fn antialiased(call: &mut Call, attributes: &[(&str, Attribute)]) -> Result<String> {
    if call.flag("align_corners") {
        return Err(call.refuse("antialiasing with align_corners, which ONNX reckons otherwise"));
    }
    smooth(call, &[attributes, &[("antialias", Int(1)), ("exclude_outside", Int(1))]].concat())
}

/// The size that the call wants, or its two factors.
enum Target {
    Size(FlatValue),
    Factors([f64; 2]),
}

fn target(call: &Call) -> Result<Target> {
    if let Some(size) = call.arg("output_size") {
        return match call.arg("scales_h").is_some() || call.arg("scales_w").is_some() {
            true => Err(call.refuse("a size together with factors, of which ONNX takes one")),
            false => Ok(Target::Size(size.clone())),
        };
    }
    match call.arg("scale_factors") {
        Some(FlatValue::Floats(factors)) if factors.len() == 2 => {
            Ok(Target::Factors([factors[0], factors[1]]))
        }
        _ => Err(call.refuse("neither a size nor constant factors")),
    }
}

/// The lengths that side `axis` (0 or 1) of the input may have.
fn sides(call: &Call, axis: usize) -> Result<std::ops::RangeInclusive<i64>> {
    let shape = call.shape()?;
    let side = shape.get(axis + 2).copied().ok_or_else(|| call.refuse("its input has no four dimensions"))?;
    Ok(if call.is_free(axis + 2) { 1..=SIDES } else { side..=side })
}

/// What PyTorch makes of `side`.
fn scaled(side: i64, factor: f64) -> i64 {
    (side as f64 * factor).floor() as i64
}

/// By `scales` where the call has factors, because the coordinates follow them; else to a size.
fn smooth(call: &mut Call, attributes: &[(&str, Attribute)]) -> Result<String> {
    let x = call.x()?;
    let aligned = call.flag("align_corners");
    let mode = if aligned { "align_corners" } else { "half_pixel" };
    let mut attributes = attributes.to_vec();
    attributes.push(("coordinate_transformation_mode", Text(mode)));
    attributes.push(("axes", Ints(vec![2, 3])));
    let factors = match target(call)? {
        Target::Size(size) => {
            let size = call.sizes(&size, None)?;
            return Ok(call.add("Resize", &[&x, "", "", &size], &attributes));
        }
        Target::Factors(factors) => factors,
    };
    let mut is_same = true;
    for (axis, factor) in factors.into_iter().enumerate() {
        let stored = factor as f32;
        is_same &=
            sides(call, axis)?.all(|side| (stored * side as f32).floor() as i64 == scaled(side, factor));
    }
    let size = (!is_same).then(|| scaled_size(call, &x, &factors));
    if let (Some(size), true) = (&size, aligned) {
        // These coordinates follow the sizes alone.
        return Ok(call.add("Resize", &[&x, "", "", size], &attributes));
    }
    let stored = factors.map(|factor| if is_same { factor } else { f64::from((factor as f32).next_up()) });
    let scales = call.writer.graph.floats(&stored, Kind::Float);
    let y = call.add("Resize", &[&x, "", &scales], &attributes);
    let Some(size) = size else { return Ok(y) };
    let (start, axes) = (call.list(&[0, 0]), call.list(&[2, 3]));
    Ok(call.add("Slice", &[&y, &start, &size, &axes], &[]))
}

/// The sides of `x` times `factors`, rounded down, in float64 as PyTorch has it.
fn scaled_size(call: &mut Call, x: &str, factors: &[f64]) -> String {
    let sides = call.add("Shape", &[x], &[("start", Int(2)), ("end", Int(4))]);
    let sides = call.add("Cast", &[&sides], &[("to", Int(Element::Double as i64))]);
    let factors = call.writer.graph.floats(factors, Kind::Double);
    let size = call.add("Mul", &[&sides, &factors], &[]);
    let size = call.add("Floor", &[&size], &[]);
    call.add("Cast", &[&size], &[("to", Int(Element::Int64 as i64))])
}

/// The pixel that PyTorch takes for each of `to` by `step` in float32: that of its kernel for channels-last
/// memory and that of the other, which differ where a factor is no simple one.
fn taken(from: i64, to: i64, step: f32) -> impl Iterator<Item = [i64; 2]> {
    (0..to).map(move |index| {
        let by_step = ((index as f32 * step).floor() as i64).min(from - 1);
        let special = match to {
            _ if to == from => index,
            _ if to == 2 * from => index / 2,
            _ => by_step,
        };
        [by_step, special]
    })
}

/// Whether ONNX's `asymmetric` coordinates, rounded down, take the same pixels.
fn takes_same(from: i64, to: i64, step: f32, scale: f32) -> bool {
    taken(from, to, step).enumerate().all(|(index, pixels)| {
        let theirs = ((index as f32 / scale).floor() as i64).min(from - 1);
        pixels == [theirs; 2]
    })
}

/// `Resize` where that takes PyTorch's pixels; to a size that follows the input's a gather of those.
pub fn nearest(call: &mut Call) -> Result<String> {
    let x = call.x()?;
    let attributes = [
        ("mode", Text("nearest")),
        ("coordinate_transformation_mode", Text("asymmetric")),
        ("nearest_mode", Text("floor")),
        ("axes", Ints(vec![2, 3])),
    ];
    match target(call)? {
        Target::Factors(factors) => {
            for (axis, factor) in factors.into_iter().enumerate() {
                let (stored, step) = (factor as f32, (1.0 / factor) as f32);
                let is_same = sides(call, axis)?.all(|side| {
                    let to = scaled(side, factor);
                    (stored * side as f32).floor() as i64 == to && takes_same(side, to, step, stored)
                });
                if !is_same {
                    let why =
                        format!("the factor {factor}, with which rounding decides what the nearest pixel is");
                    return Err(call.refuse(&why));
                }
            }
            let scales = call.writer.graph.floats(&factors, Kind::Float);
            Ok(call.add("Resize", &[&x, "", &scales], &attributes))
        }
        Target::Size(size) => {
            let fixed = match size {
                FlatValue::Ints(ref fixed) if fixed.len() == 2 => Some([fixed[0], fixed[1]]),
                _ => None,
            };
            let mut is_same = fixed.is_some();
            for (axis, to) in fixed.iter().flatten().enumerate() {
                is_same &= sides(call, axis)?
                    .all(|side| takes_same(side, *to, side as f32 / *to as f32, *to as f32 / side as f32));
            }
            let size = call.sizes(&size, None)?;
            match is_same {
                true => Ok(call.add("Resize", &[&x, "", "", &size], &attributes)),
                false => Ok(gathered(call, x, &size)),
            }
        }
    }
}

/// Rows and columns by their indices, `floor(index * (from / to))`.
fn gathered(call: &mut Call, mut x: String, size: &str) -> String {
    let float = [("to", Int(Element::Float as i64))];
    let [zero, one] = [0i64, 1].map(|number| call.writer.graph.integer(number));
    for axis in [2, 3] {
        let place = call.writer.graph.integer(axis - 2);
        let to = call.add("Gather", &[size, &place], &[]);
        let from = call.add("Shape", &[&x], &[("start", Int(axis)), ("end", Int(axis + 1))]);
        let last = call.add("Sub", &[&from, &one], &[]);
        let sides = [&from, &to].map(|side| call.add("Cast", &[side], &float));
        let step = call.add("Div", &[&sides[0], &sides[1]], &[]);
        let indices = call.add("Range", &[&zero, &to, &one], &[]);
        let indices = call.add("Cast", &[&indices], &float);
        let indices = call.add("Mul", &[&indices, &step], &[]);
        let indices = call.add("Floor", &[&indices], &[]);
        let indices = call.add("Cast", &[&indices], &[("to", Int(Element::Int64 as i64))]);
        let indices = call.add("Min", &[&indices, &last], &[]);
        x = call.add("Gather", &[&x, &indices], &[("axis", Int(axis))]);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_factors_take_the_same_pixels_and_others_do_not() {
        let is_same = |factor: f64| {
            let (stored, step) = (factor as f32, (1.0 / factor) as f32);
            (1..=SIDES).all(|side| takes_same(side, scaled(side, factor), step, stored))
        };
        for factor in [1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 8.0, 0.5, 0.25] {
            assert!(is_same(factor), "{factor}");
        }
        assert!(!is_same(2.3) && !is_same(1.3));
    }
}
