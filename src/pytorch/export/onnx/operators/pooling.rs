//! Poolings.

use anyhow::Result;

use super::{Call, Int, Ints};

/// kernel_shape, strides, pads and ceil_mode, as both kinds of window have them.
fn window(call: &Call) -> Result<Vec<(&'static str, super::Attribute)>> {
    let kernel = call.pair("kernel_size")?;
    let stride = match call.ints("stride")?.is_empty() {
        true => kernel,
        false => call.pair("stride")?,
    };
    let [rows, columns] = call.pair("padding")?;
    Ok(vec![
        ("kernel_shape", Ints(kernel.to_vec())),
        ("strides", Ints(stride.to_vec())),
        ("pads", Ints(vec![rows, columns, rows, columns])),
        ("ceil_mode", Int(call.flag("ceil_mode").into())),
    ])
}

pub fn max_pool2d(call: &mut Call) -> Result<String> {
    let (x, mut attributes) = (call.x()?, window(call)?);
    attributes.push(("dilations", Ints(call.pair("dilation")?.to_vec())));
    Ok(call.add("MaxPool", &[&x], &attributes))
}

pub fn avg_pool2d(call: &mut Call) -> Result<String> {
    let (x, mut attributes) = (call.x()?, window(call)?);
    let divisor = call.arg("divisor_override").map(|_| call.int("divisor_override")).transpose()?;
    if divisor.is_some() && call.flag("ceil_mode") {
        return Err(call.refuse(
            "divisor_override with ceil_mode, where ONNX divides a window at the border by what is left of it",
        ));
    }
    let includes = call.flag("count_include_pad") || divisor.is_some();
    attributes.push(("count_include_pad", Int(includes.into())));
    let y = call.add("AveragePool", &[&x], &attributes);
    let Some(divisor) = divisor else { return Ok(y) };
    let [height, width] = call.pair("kernel_size")?;
    let factor = call.scalar((height * width) as f64 / divisor as f64);
    Ok(call.add("Mul", &[&y, &factor], &[]))
}

pub fn adaptive_avg_pool2d(call: &mut Call) -> Result<String> {
    adaptive(call, "GlobalAveragePool", "AveragePool", "ReduceMean")
}

pub fn adaptive_max_pool2d(call: &mut Call) -> Result<String> {
    adaptive(call, "GlobalMaxPool", "MaxPool", "ReduceMax")
}

/// Windows of equal size where the sides are fixed and divisible; else each window is a slice of its own from
/// the floor of its start to the ceiling of its end, reckoned from the shape.
fn adaptive(call: &mut Call, whole: &str, window: &str, reduce: &str) -> Result<String> {
    let (mut x, shape, output) = (call.x()?, call.shape()?, call.pair("output_size")?);
    let &[_, _, height, width] = shape.as_slice() else {
        return Err(call.refuse("its input has no four dimensions"));
    };
    if output == [1, 1] {
        return Ok(call.add(whole, &[&x], &[]));
    }
    let sides = [height, width];
    let is_free = call.is_free(2);
    if !is_free && (0..2).all(|side| sides[side] % output[side] == 0) {
        let kernel = vec![height / output[0], width / output[1]];
        let attributes = [("kernel_shape", Ints(kernel.clone())), ("strides", Ints(kernel))];
        return Ok(call.add(window, &[&x], &attributes));
    }
    for (axis, (side, count)) in [2, 3].into_iter().zip(sides.into_iter().zip(output)) {
        let axes = call.list(&[axis]);
        let extent = call.add("Shape", &[&x], &[("start", Int(axis)), ("end", Int(axis + 1))]);
        let mut parts = Vec::new();
        for index in 0..count {
            let (start, end) = match is_free {
                false => {
                    let end = ((index + 1) * side + count - 1) / count;
                    (call.list(&[index * side / count]), call.list(&[end]))
                }
                true => {
                    let start = scaled(call, &extent, index, 0, count);
                    (start, scaled(call, &extent, index + 1, count - 1, count))
                }
            };
            let part = call.add("Slice", &[&x, &start, &end, &axes], &[]);
            parts.push(call.add(reduce, &[&part, &axes], &[("keepdims", Int(1))]));
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        x = call.add("Concat", &parts, &[("axis", Int(axis))]);
    }
    Ok(x)
}

/// `(extent * times + plus) / by`, rounded down.
fn scaled(call: &mut Call, extent: &str, times: i64, plus: i64, by: i64) -> String {
    let [times, plus, by] = [times, plus, by].map(|number| call.list(&[number]));
    let product = call.add("Mul", &[extent, &times], &[]);
    let sum = call.add("Add", &[&product, &plus], &[]);
    call.add("Div", &[&sum, &by], &[])
}
