//! Arithmetic of every value by itself: activations, sums, products; and reductions.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use anyhow::Result;
use tch::Kind;

use super::{Call, Float, Int, Write};
use crate::pytorch::export::flat::FlatValue;

pub fn find(target: &str) -> Option<Write> {
    macro_rules! one {
        ($function:expr) => {
            |call: &mut Call| {
                let function: fn(&mut Call) -> Result<String> = $function;
                Ok(vec![function(call)?])
            }
        };
    }
    macro_rules! alike {
        ($($op:literal => $onnx:literal,)*) => {
            match target {
                $($op => return Some(one!(|call| {
                    let x = call.x()?;
                    Ok(call.add($onnx, &[&x], &[]))
                })),)*
                _ => {}
            }
        };
    }
    alike! {
        "relu" => "Relu",
        "selu" => "Selu",
        "sigmoid" => "Sigmoid",
        "tanh" => "Tanh",
        "mish" => "Mish",
        "hardswish" => "HardSwish",
        "round" => "Round",
        "exp" => "Exp",
        "log" => "Log",
        "sqrt" => "Sqrt",
        "abs" => "Abs",
        "neg" => "Neg",
        "erf" => "Erf",
        "reciprocal" => "Reciprocal",
    }
    Some(match target {
        "relu6" => one!(|call| clip(call, Some(0.0), Some(6.0))),
        "hardtanh" => one!(|call| clip(call, Some(call.float("min_val")?), Some(call.float("max_val")?))),
        "clamp" | "clamp_min" | "clamp_max" => one!(|call| {
            let bound = |name: &str| call.arg(name).map(|_| call.float(name)).transpose();
            clip(call, bound("min")?, bound("max")?)
        }),
        "leaky_relu" => one!(|call| {
            let (x, slope) = (call.x()?, call.float("negative_slope")?);
            Ok(call.add("LeakyRelu", &[&x], &[("alpha", Float(slope))]))
        }),
        "elu" => one!(|call| {
            if [call.float("scale")?, call.float("input_scale")?] != [1.0, 1.0] {
                return Err(call.refuse("scales other than 1"));
            }
            let (x, alpha) = (call.x()?, call.float("alpha")?);
            Ok(call.add("Elu", &[&x], &[("alpha", Float(alpha))]))
        }),
        "hardsigmoid" => one!(|call| {
            let x = call.x()?;
            Ok(call.add("HardSigmoid", &[&x], &[("alpha", Float(1.0 / 6.0)), ("beta", Float(0.5))]))
        }),
        "silu" => one!(|call| {
            let x = call.x()?;
            let gate = call.add("Sigmoid", &[&x], &[]);
            Ok(call.add("Mul", &[&x, &gate], &[]))
        }),
        "gelu" => one!(gelu),
        "softplus" => one!(softplus),
        "softmax.int" => one!(|call| over(call, "Softmax")),
        "log_softmax.int" => one!(|call| over(call, "LogSoftmax")),
        "prelu" => one!(prelu),
        "add.Tensor" | "add.Scalar" => one!(|call| binary(call, "Add")),
        "sub.Tensor" | "sub.Scalar" => one!(|call| binary(call, "Sub")),
        "mul.Tensor" | "mul.Scalar" => one!(|call| binary(call, "Mul")),
        "div.Tensor" | "div.Scalar" => one!(|call| binary(call, "Div")),
        "pow.Tensor_Scalar" => one!(|call| {
            let (x, exponent) = (call.x()?, call.float("exponent")?);
            let exponent = call.scalar(exponent);
            Ok(call.add("Pow", &[&x, &exponent], &[]))
        }),
        "maximum" => one!(|call| binary(call, "Max")),
        "minimum" => one!(|call| binary(call, "Min")),
        "mean.dim" => one!(|call| reduce(call, "ReduceMean")),
        "sum.dim_IntList" => one!(|call| reduce(call, "ReduceSum")),
        "amax" => one!(|call| reduce(call, "ReduceMax")),
        "amin" => one!(|call| reduce(call, "ReduceMin")),
        "to.dtype" | "to.prim_dtype" => one!(cast),
        _ => return None,
    })
}

pub fn identity(call: &mut Call) -> Result<String> {
    if call.flag("train") {
        return Err(call.refuse("it draws random numbers"));
    }
    call.x()
}

fn clip(call: &mut Call, min: Option<f64>, max: Option<f64>) -> Result<String> {
    let x = call.x()?;
    let [min, max] = [min, max].map(|bound| bound.map_or_else(String::new, |bound| call.scalar(bound)));
    let inputs: &[&str] = if max.is_empty() { &[&x, &min] } else { &[&x, &min, &max] };
    Ok(call.add("Clip", inputs, &[]))
}

/// By its definition: the operator `Gelu` came with opset 20.
fn gelu(call: &mut Call) -> Result<String> {
    let x = call.x()?;
    let inner = match call.text("approximate").as_deref() {
        Some("tanh") => {
            let [cubic, factor] = [0.044_715, (2.0 / PI).sqrt()].map(|number| call.scalar(number));
            let square = call.add("Mul", &[&x, &x], &[]);
            let cube = call.add("Mul", &[&square, &x], &[]);
            let cube = call.add("Mul", &[&cube, &cubic], &[]);
            let sum = call.add("Add", &[&x, &cube], &[]);
            let sum = call.add("Mul", &[&sum, &factor], &[]);
            call.add("Tanh", &[&sum], &[])
        }
        _ => {
            let factor = call.scalar(FRAC_1_SQRT_2);
            let scaled = call.add("Mul", &[&x, &factor], &[]);
            call.add("Erf", &[&scaled], &[])
        }
    };
    let [half, one] = [0.5, 1.0].map(|number| call.scalar(number));
    let x = call.add("Mul", &[&x, &half], &[]);
    let gate = call.add("Add", &[&inner, &one], &[]);
    Ok(call.add("Mul", &[&x, &gate], &[]))
}

/// Above its threshold PyTorch takes `x` itself, 2e-9 away where the threshold is 20.
fn softplus(call: &mut Call) -> Result<String> {
    let (x, beta, threshold) = (call.x()?, call.float("beta")?, call.float("threshold")?);
    if threshold < 20.0 {
        return Err(call.refuse("a threshold below 20"));
    }
    if beta == 1.0 {
        return Ok(call.add("Softplus", &[&x], &[]));
    }
    let beta = call.scalar(beta);
    let scaled = call.add("Mul", &[&x, &beta], &[]);
    let soft = call.add("Softplus", &[&scaled], &[]);
    Ok(call.add("Div", &[&soft, &beta], &[]))
}

fn over(call: &mut Call, op: &str) -> Result<String> {
    if call.arg("dtype").is_some() {
        return Err(call.refuse("a dtype of its own"));
    }
    let (x, axis) = (call.x()?, call.int("dim")?);
    Ok(call.add(op, &[&x], &[("axis", Int(axis))]))
}

fn prelu(call: &mut Call) -> Result<String> {
    let (x, weight, rank) = (call.x()?, call.required("weight")?, call.shape()?.len());
    let slopes = call.arg("weight").map(|weight| call.shape_of(weight)).transpose()?;
    let is_one = slopes.is_some_and(|slopes| slopes.iter().product::<i64>() == 1);
    let weight = if is_one { weight } else { call.over_channels(&weight, rank) };
    Ok(call.main("PRelu", &[&x, &weight], &[]))
}

/// `self op alpha other`.
fn binary(call: &mut Call, op: &str) -> Result<String> {
    let x = call.x()?;
    let other = call.arg("other").cloned().ok_or_else(|| call.refuse("it takes one tensor only"))?;
    let alpha = call.arg("alpha").map(|_| call.float("alpha")).transpose()?.unwrap_or(1.0);
    let other = match other.as_float() {
        Some(number) => call.scalar(alpha * number),
        None => {
            let other = call.value(&other)?;
            match alpha == 1.0 {
                true => other,
                false => {
                    let alpha = call.scalar(alpha);
                    call.add("Mul", &[&other, &alpha], &[])
                }
            }
        }
    };
    Ok(call.main(op, &[&x, &other], &[]))
}

fn reduce(call: &mut Call, op: &str) -> Result<String> {
    let (x, rank) = (call.x()?, call.shape()?.len());
    if call.arg("dtype").is_some() {
        return Err(call.refuse("a dtype of its own"));
    }
    let axes = match call.arg("dim") {
        Some(FlatValue::Int(axis)) => vec![*axis],
        Some(_) => call.ints("dim")?,
        None => (0..rank as i64).collect(),
    };
    let keepdims = ("keepdims", Int(call.flag("keepdim").into()));
    let axes = call.list(&axes);
    Ok(call.add(op, &[&x, &axes], &[keepdims]))
}

fn cast(call: &mut Call) -> Result<String> {
    let x = call.x()?;
    let kind = match call.arg("dtype") {
        Some(FlatValue::Dtype(kind)) => *kind,
        None => return Ok(x),
        Some(_) => return Err(call.refuse("its dtype is no constant")),
    };
    let kind = if kind == Kind::Half || kind == Kind::BFloat16 {
        return Err(call.refuse("a narrower dtype"));
    } else {
        kind
    };
    let to = call.element(kind)?;
    Ok(call.add("Cast", &[&x], &[("to", Int(to as i64))]))
}
