//! Normalisations. Batch norms stay nodes of their own, which runtimes fold into convolutions.

use anyhow::Result;

use super::{Call, Float, Int};

pub fn batch_norm(call: &mut Call) -> Result<String> {
    match (call.flag("training"), call.arg("running_mean").is_some()) {
        (false, true) => with_statistics(call),
        (_, false) => by_the_batch(call),
        (true, true) => Err(call.refuse("it is in training")),
    }
}

/// By the statistics of the batch at hand, which runtimes have no operator for but in training.
fn by_the_batch(call: &mut Call) -> Result<String> {
    let (x, rank) = (call.x()?, call.shape()?.len());
    let axes: Vec<i64> = (0..rank as i64).filter(|axis| *axis != 1).collect();
    let (axes, epsilon) = (call.list(&axes), call.float("eps")?);
    let epsilon = call.scalar(epsilon);
    let mean = call.add("ReduceMean", &[&x, &axes], &[("keepdims", Int(1))]);
    let apart = call.add("Sub", &[&x, &mean], &[]);
    let square = call.add("Mul", &[&apart, &apart], &[]);
    let variance = call.add("ReduceMean", &[&square, &axes], &[("keepdims", Int(1))]);
    let variance = call.add("Add", &[&variance, &epsilon], &[]);
    let deviation = call.add("Sqrt", &[&variance], &[]);
    let normed = call.main("Div", &[&apart, &deviation], &[]);
    affine(call, normed, rank)
}

/// `y weight + bias` over the channels, as far as the call has them.
fn affine(call: &mut Call, mut y: String, rank: usize) -> Result<String> {
    for (op, name) in [("Mul", "weight"), ("Add", "bias")] {
        if let Some(vector) = call.tensor(name)? {
            let vector = call.over_channels(&vector, rank);
            y = call.add(op, &[&y, &vector], &[]);
        }
    }
    Ok(y)
}

/// By running statistics, which are float32 in float16 too.
fn with_statistics(call: &mut Call) -> Result<String> {
    let (x, channels) = (call.x()?, channels(call)?);
    let weight = call.or_filled("weight", &[channels], 1.0)?;
    let bias = call.or_filled("bias", &[channels], 0.0)?;
    let (mean, var) = (call.required("running_mean")?, call.required("running_var")?);
    let attributes =
        [("epsilon", Float(call.float("eps")?)), ("momentum", Float(1.0 - call.float("momentum")?))];
    Ok(call.main("BatchNormalization", &[&x, &weight, &bias, &mean, &var], &attributes))
}

fn channels(call: &Call) -> Result<i64> {
    call.shape()?.get(1).copied().ok_or_else(|| call.refuse("its input has no channels"))
}

pub fn instance_norm(call: &mut Call) -> Result<String> {
    if !call.flag("use_input_stats") {
        return with_statistics(call);
    }
    let (x, channels) = (call.x()?, channels(call)?);
    let weight = call.or_filled("weight", &[channels], 1.0)?;
    let bias = call.or_filled("bias", &[channels], 0.0)?;
    let epsilon = ("epsilon", Float(call.float("eps")?));
    Ok(call.main("InstanceNormalization", &[&x, &weight, &bias], &[epsilon]))
}

/// Instances of one group each. ONNX's own operator has scale and shift per group in opset 18 and was
/// replaced in 21.
pub fn group_norm(call: &mut Call) -> Result<String> {
    let (x, rank, groups) = (call.x()?, call.shape()?.len(), call.int("num_groups")?);
    let kind = call.writer.graph.kind;
    let (grouped, whole) = (call.list(&[0, groups, -1]), call.add("Shape", &[&x], &[]));
    let grouped = call.add("Reshape", &[&x, &grouped], &[]);
    let ones = call.writer.graph.filled(&[groups], 1.0, kind);
    let zeros = call.writer.graph.filled(&[groups], 0.0, kind);
    let epsilon = ("epsilon", Float(call.float("eps")?));
    let normed = call.main("InstanceNormalization", &[&grouped, &ones, &zeros], &[epsilon]);
    let y = call.add("Reshape", &[&normed, &whole], &[]);
    affine(call, y, rank)
}

pub fn layer_norm(call: &mut Call) -> Result<String> {
    let (x, shape) = (call.x()?, call.ints("normalized_shape")?);
    let weight = call.or_filled("weight", &shape, 1.0)?;
    let bias = call.tensor("bias")?;
    let inputs: Vec<&str> = [&x, &weight].into_iter().chain(&bias).map(String::as_str).collect();
    let attributes = [("axis", Int(-(shape.len() as i64))), ("epsilon", Float(call.float("eps")?))];
    Ok(call.main("LayerNormalization", &inputs, &attributes))
}

/// `g v / |v|`, the norm over all dimensions but one.
pub fn weight_norm(call: &mut Call) -> Result<String> {
    let (v, g, rank) = (call.x()?, call.required("g")?, call.shape()?.len());
    let kept = call.int("dim")?;
    let kept = if kept < -1 { kept + rank as i64 } else { kept };
    let axes: Vec<i64> = (0..rank as i64).filter(|axis| *axis != kept).collect();
    let axes = call.list(&axes);
    let norm = call.add("ReduceL2", &[&v, &axes], &[("keepdims", Int(1))]);
    let scale = call.add("Div", &[&g, &norm], &[]);
    Ok(call.add("Mul", &[&v, &scale], &[]))
}
