//! What moves values and changes none: reshaping, slicing, padding, joining. Sizes that follow the input's are
//! reckoned in the graph.

use anyhow::Result;

use super::{Attribute, Call, END, Int, Ints, Text};
use crate::pytorch::export::flat::{FlatValue, ValueId};

impl Call<'_, '_> {
    /// The integers of a list as a vector; `at`, where given, is the tensor that is reshaped, whose own extents
    /// in their own places are 0 to `Reshape`.
    pub fn sizes(&mut self, list: &FlatValue, at: Option<ValueId>) -> Result<String> {
        let items: Vec<FlatValue> = match list {
            FlatValue::Ints(numbers) => numbers.iter().copied().map(FlatValue::Int).collect(),
            FlatValue::List(items) => items.clone(),
            single => vec![single.clone()],
        };
        let own = |(place, item): (usize, &FlatValue)| match item {
            FlatValue::Int(number) => Some(*number),
            FlatValue::Size(of, dim) if at == Some(*of) && place == *dim => Some(0),
            _ => None,
        };
        let constant: Option<Vec<i64>> = items.iter().enumerate().map(own).collect();
        if let Some(constant) = constant {
            return Ok(self.list(&constant));
        }
        let parts = items.iter().map(|item| self.extent(item)).collect::<Result<Vec<_>>>()?;
        match parts.as_slice() {
            [one] => Ok(one.clone()),
            _ => Ok(self.concat(&parts, 0)),
        }
    }

    /// One integer as a vector of one.
    fn extent(&mut self, item: &FlatValue) -> Result<String> {
        match item {
            FlatValue::Int(number) => Ok(self.list(&[*number])),
            FlatValue::Size(of, dim) => {
                let (of, dim) = (self.value(&FlatValue::Tensor(*of))?, *dim as i64);
                Ok(self.add("Shape", &[&of], &[("start", Int(dim)), ("end", Int(dim + 1))]))
            }
            FlatValue::Call(function, operands) => {
                let op = match function.as_str() {
                    "add" => "Add",
                    "sub" => "Sub",
                    "mul" => "Mul",
                    // Rounds toward zero, which for sizes is down.
                    "floordiv" => "Div",
                    "mod" => "Mod",
                    "neg" => "Neg",
                    "min" => "Min",
                    "max" => "Max",
                    other => return Err(self.refuse(&format!("a size by `{other}`"))),
                };
                let operands = operands.iter().map(|item| self.extent(item)).collect::<Result<Vec<_>>>()?;
                let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
                Ok(self.add(op, &operands, &[]))
            }
            _ => Err(self.refuse("a size that is no integer")),
        }
    }

    fn concat(&mut self, parts: &[String], axis: i64) -> String {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.add("Concat", &parts, &[("axis", Int(axis))])
    }

    /// `Shape` of `x` from dimension `start` to before `end`.
    fn extents(&mut self, x: &str, start: usize, end: usize) -> String {
        self.add("Shape", &[x], &[("start", Int(start as i64)), ("end", Int(end as i64))])
    }

    /// Of the dimension `axis` what is between `start` and `end`.
    fn sliced(&mut self, x: &str, [start, end, axis, step]: [i64; 4]) -> String {
        let bounds = [start, end, axis].map(|number| self.list(&[number]));
        let mut inputs: Vec<&str> = [x].into_iter().chain(bounds.iter().map(String::as_str)).collect();
        let step = (step != 1).then(|| self.list(&[step]));
        inputs.extend(step.as_deref());
        self.add("Slice", &inputs, &[])
    }
}

pub fn pixel_shuffle(call: &mut Call) -> Result<String> {
    let x = call.x()?;
    let factor = call.int("upscale_factor")?;
    Ok(call.add("DepthToSpace", &[&x], &[("blocksize", Int(factor)), ("mode", Text("CRD"))]))
}

/// `SpaceToDepth` orders channels by (row, column, channel), PyTorch by (channel, row, column).
pub fn pixel_unshuffle(call: &mut Call) -> Result<String> {
    let (x, factor, channels) = (call.x()?, call.int("downscale_factor")?, channels(call)?);
    let deep = call.add("SpaceToDepth", &[&x], &[("blocksize", Int(factor))]);
    let places = (0..channels).flat_map(|channel| (0..factor * factor).map(move |place| (channel, place)));
    let order: Vec<i64> = places.map(|(channel, place)| place * channels + channel).collect();
    let order = call.list(&order);
    Ok(call.add("Gather", &[&deep, &order], &[("axis", Int(1))]))
}

pub fn channel_shuffle(call: &mut Call) -> Result<String> {
    let (x, groups, channels) = (call.x()?, call.int("groups")?, channels(call)?);
    let each = channels / groups.max(1);
    let order: Vec<i64> =
        (0..each).flat_map(|place| (0..groups).map(move |group| group * each + place)).collect();
    let order = call.list(&order);
    Ok(call.add("Gather", &[&x, &order], &[("axis", Int(1))]))
}

fn channels(call: &Call) -> Result<i64> {
    call.shape()?.get(1).copied().ok_or_else(|| call.refuse("its input has no channels"))
}

pub fn flatten(call: &mut Call) -> Result<String> {
    let (x, rank) = (call.x()?, call.shape()?.len());
    let (start, end) = (call.dim("start_dim", rank)?, call.dim("end_dim", rank)?);
    if end + 1 == rank {
        if start == 1 {
            return Ok(call.add("Flatten", &[&x], &[("axis", Int(1))]));
        }
        let mut target = vec![0; start];
        target.push(-1);
        let target = call.list(&target);
        return Ok(call.add("Reshape", &[&x, &target], &[]));
    }
    let mut target = vec![0; start];
    target.push(-1);
    let parts = [call.list(&target), call.extents(&x, end + 1, rank)];
    let target = call.concat(&parts, 0);
    Ok(call.add("Reshape", &[&x, &target], &[]))
}

pub fn unflatten(call: &mut Call) -> Result<String> {
    let (x, rank) = (call.x()?, call.shape()?.len());
    let dim = call.dim("dim", rank)?;
    let sizes = call.arg("sizes").cloned().ok_or_else(|| call.refuse("it has no sizes"))?;
    let sizes = call.sizes(&sizes, None)?;
    let before = call.list(&vec![0; dim]);
    let mut parts = if dim > 0 { vec![before] } else { Vec::new() };
    parts.push(sizes);
    if dim + 1 < rank {
        parts.push(call.extents(&x, dim + 1, rank));
    }
    let target = call.concat(&parts, 0);
    Ok(call.add("Reshape", &[&x, &target], &[]))
}

pub fn reshape(call: &mut Call) -> Result<String> {
    let x = call.x()?;
    let [first, list, ..] = call.node.args.as_slice() else { return Err(call.refuse("it has no shape")) };
    let at = if let FlatValue::Tensor(id) = first.value { Some(id) } else { None };
    let target = call.sizes(&list.value, at)?;
    Ok(call.add("Reshape", &[&x, &target], &[]))
}

pub fn expand(call: &mut Call) -> Result<String> {
    let x = call.x()?;
    let list = call.arg("size").cloned().ok_or_else(|| call.refuse("it has no size"))?;
    // An extent that stays is -1 in PyTorch and 1 here.
    let kept = |item: FlatValue| if item == FlatValue::Int(-1) { FlatValue::Int(1) } else { item };
    let list = match list {
        FlatValue::Ints(numbers) => {
            FlatValue::List(numbers.into_iter().map(FlatValue::Int).map(kept).collect())
        }
        FlatValue::List(items) => FlatValue::List(items.into_iter().map(kept).collect()),
        other => other,
    };
    let target = call.sizes(&list, None)?;
    Ok(call.add("Expand", &[&x, &target], &[]))
}

pub fn permute(call: &mut Call) -> Result<String> {
    let (x, dims) = (call.x()?, call.ints("dims")?);
    let rank = dims.len() as i64;
    let perm = dims.iter().map(|dim| if *dim < 0 { dim + rank } else { *dim }).collect();
    Ok(call.add("Transpose", &[&x], &[("perm", Ints(perm))]))
}

pub fn transpose(call: &mut Call) -> Result<String> {
    let (x, rank) = (call.x()?, call.shape()?.len());
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    match call.arg("dim0") {
        Some(_) => perm.swap(call.dim("dim0", rank)?, call.dim("dim1", rank)?),
        None => perm.reverse(),
    }
    Ok(call.add("Transpose", &[&x], &[("perm", Ints(perm))]))
}

pub fn unsqueeze(call: &mut Call) -> Result<String> {
    let (x, rank) = (call.x()?, call.shape()?.len());
    let axis = call.dim("dim", rank + 1)? as i64;
    let axis = call.list(&[axis]);
    Ok(call.add("Unsqueeze", &[&x, &axis], &[]))
}

pub fn squeeze(call: &mut Call) -> Result<String> {
    let (x, shape) = (call.x()?, call.shape()?);
    let dim = call.dim("dim", shape.len())?;
    if call.is_free(dim) {
        return Err(call.refuse("whether it does anything depends on the size of the input"));
    }
    if shape.get(dim) != Some(&1) {
        return Ok(x);
    }
    let axis = call.list(&[dim as i64]);
    Ok(call.add("Squeeze", &[&x, &axis], &[]))
}

pub fn cat(call: &mut Call) -> Result<String> {
    let Some(FlatValue::List(tensors)) = call.arg("tensors").cloned() else {
        return Err(call.refuse("it joins no list of tensors"));
    };
    let parts = tensors.iter().map(|tensor| call.value(tensor)).collect::<Result<Vec<_>>>()?;
    let axis = call.int("dim")?;
    Ok(call.concat(&parts, axis))
}

pub fn chunk(call: &mut Call) -> Result<Vec<String>> {
    let (shape, count) = (call.shape()?, call.int("chunks")?.max(1));
    let dim = call.dim("dim", shape.len())?;
    let extent = shape.get(dim).copied().unwrap_or_default();
    if dim == 0 || !call.is_free(dim) {
        return parts(call, dim, (extent + count - 1) / count);
    }
    // Parts of the extent by their count, rounded up.
    let (x, axis) = (call.x()?, call.list(&[dim as i64]));
    let [count, above] = [count, count - 1].map(|number| call.list(&[number]));
    let extent = call.extents(&x, dim, dim + 1);
    let sum = call.add("Add", &[&extent, &above], &[]);
    let size = call.add("Div", &[&sum, &count], &[]);
    let mut parts = Vec::new();
    for index in 0..call.node.outputs.len() as i64 {
        let bounds = [index, index + 1].map(|number| call.list(&[number]));
        let bounds = bounds.map(|number| call.add("Mul", &[&size, &number], &[]));
        parts.push(call.add("Slice", &[&x, &bounds[0], &bounds[1], &axis], &[]));
    }
    Ok(parts)
}

pub fn split(call: &mut Call) -> Result<Vec<String>> {
    let (shape, size) = (call.shape()?, call.int("split_size")?);
    let dim = call.dim("dim", shape.len())?;
    parts(call, dim, size)
}

/// Parts of `size`, the last of what is left.
fn parts(call: &mut Call, dim: usize, size: i64) -> Result<Vec<String>> {
    let (x, extent) = (call.x()?, call.shape()?.get(dim).copied().unwrap_or_default());
    if call.is_free(dim) {
        return Err(call.refuse("how many parts there are depends on the size of the input"));
    }
    let starts = (0..extent).step_by(usize::try_from(size).unwrap_or(1).max(1));
    Ok(starts.map(|start| call.sliced(&x, [start, extent.min(start + size), dim as i64, 1])).collect())
}

pub fn slice(call: &mut Call) -> Result<String> {
    let (x, rank, step) = (call.x()?, call.shape()?.len(), call.int("step")?);
    let dim = call.dim("dim", rank)? as i64;
    let bound = |name: &str, whole: i64| call.arg(name).cloned().unwrap_or(FlatValue::Int(whole));
    let bounds = [bound("start", 0), bound("end", END)];
    if let [FlatValue::Int(start), FlatValue::Int(end)] = bounds {
        let is_whole = (start, end, step) == (0, END, 1);
        return Ok(if is_whole { x } else { call.sliced(&x, [start, end, dim, step]) });
    }
    let [start, end] = bounds;
    let (start, end) = (call.sizes(&start, None)?, call.sizes(&end, None)?);
    let (dim, step) = (call.list(&[dim]), call.list(&[step]));
    Ok(call.add("Slice", &[&x, &start, &end, &dim, &step], &[]))
}

pub fn narrow(call: &mut Call) -> Result<String> {
    let (x, rank) = (call.x()?, call.shape()?.len());
    let (start, length) = (call.int("start")?, call.int("length")?);
    let dim = call.dim("dim", rank)? as i64;
    if start < 0 {
        return Err(call.refuse("a start from the end"));
    }
    Ok(call.sliced(&x, [start, start + length, dim, 1]))
}

pub fn select(call: &mut Call) -> Result<String> {
    let (x, rank, index) = (call.x()?, call.shape()?.len(), call.int("index")?);
    let dim = call.dim("dim", rank)? as i64;
    let end = if index == -1 { END } else { index + 1 };
    let one = call.sliced(&x, [index, end, dim, 1]);
    let axis = call.list(&[dim]);
    Ok(call.add("Squeeze", &[&one, &axis], &[]))
}

pub fn pad(call: &mut Call) -> Result<String> {
    let (x, rank) = (call.x()?, call.shape()?.len());
    let name = if call.arg("pad").is_some() { "pad" } else { "padding" };
    let pad = call.ints(name)?;
    let mode = match call.node.op.as_str() {
        "reflection_pad2d" => "reflect".to_owned(),
        "replication_pad2d" => "replicate".to_owned(),
        _ => call.text("mode").unwrap_or_else(|| "constant".into()),
    };
    // (axis, before, after), the last axis first, as PyTorch lists them.
    let sides: Vec<_> =
        pad.chunks_exact(2).zip((0..rank).rev()).map(|(pair, axis)| (axis, pair[0], pair[1])).collect();
    if mode == "circular" {
        return circular(call, x, &sides);
    }
    let mut pads = vec![0; 2 * rank];
    for &(axis, before, after) in &sides {
        (pads[axis], pads[rank + axis]) = (before, after);
    }
    let pads = call.list(&pads);
    let onnx: Attribute = Text(match mode.as_str() {
        "constant" => "constant",
        "reflect" => "reflect",
        "replicate" => "edge",
        _ => return Err(call.refuse(&format!("the mode `{mode}`"))),
    });
    let value = call.arg("value").map(|_| call.float("value")).transpose()?.unwrap_or_default();
    let value = (mode == "constant" && value != 0.0).then(|| call.scalar(value));
    let inputs: Vec<&str> = [&x, &pads].into_iter().chain(&value).map(String::as_str).collect();
    Ok(call.add("Pad", &inputs, &[("mode", onnx)]))
}

/// The other end of each axis before and after it; the mode `wrap` came with opset 19.
fn circular(call: &mut Call, mut x: String, sides: &[(usize, i64, i64)]) -> Result<String> {
    for &(axis, before, after) in sides.iter().rev() {
        if before < 0 || after < 0 {
            return Err(call.refuse("a negative circular padding"));
        }
        let axis = axis as i64;
        let mut parts = Vec::new();
        if before > 0 {
            parts.push(call.sliced(&x, [-before, END, axis, 1]));
        }
        parts.push(x.clone());
        if after > 0 {
            parts.push(call.sliced(&x, [0, after, axis, 1]));
        }
        x = if parts.len() > 1 { call.concat(&parts, axis) } else { x };
    }
    Ok(x)
}
