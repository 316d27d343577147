//! Convolutions and linear maps.

use anyhow::Result;

use super::{Call, Int, Ints};

pub fn convolution(call: &mut Call) -> Result<String> {
    let (x, weight) = (call.x()?, call.required("weight")?);
    let kernel = kernel(call)?;
    let (stride, dilation) = (call.pair("stride")?, call.pair("dilation")?);
    let pads = match call.text("padding").as_deref() {
        None => {
            let [rows, columns] = call.pair("padding")?;
            vec![rows, columns, rows, columns]
        }
        Some("valid") => vec![0; 4],
        // As PyTorch has it: the odd one goes below and to the right.
        Some(_) => {
            let total = [0, 1].map(|side| dilation[side] * (kernel[side] - 1));
            [total.map(|total| total / 2), total.map(|total| total - total / 2)].concat()
        }
    };
    let attributes = [
        ("kernel_shape", Ints(kernel.to_vec())),
        ("strides", Ints(stride.to_vec())),
        ("pads", Ints(pads)),
        ("dilations", Ints(dilation.to_vec())),
        ("group", Int(call.int("groups")?)),
    ];
    let bias = call.tensor("bias")?;
    let inputs: Vec<&str> = [&x, &weight].into_iter().chain(&bias).map(String::as_str).collect();
    Ok(call.main("Conv", &inputs, &attributes))
}

pub fn transposed(call: &mut Call) -> Result<String> {
    let (x, weight) = (call.x()?, call.required("weight")?);
    let [rows, columns] = call.pair("padding")?;
    let attributes = [
        ("kernel_shape", Ints(kernel(call)?.to_vec())),
        ("strides", Ints(call.pair("stride")?.to_vec())),
        ("pads", Ints(vec![rows, columns, rows, columns])),
        ("dilations", Ints(call.pair("dilation")?.to_vec())),
        ("output_padding", Ints(call.pair("output_padding")?.to_vec())),
        ("group", Int(call.int("groups")?)),
    ];
    let bias = call.tensor("bias")?;
    let inputs: Vec<&str> = [&x, &weight].into_iter().chain(&bias).map(String::as_str).collect();
    Ok(call.main("ConvTranspose", &inputs, &attributes))
}

fn kernel(call: &Call) -> Result<[i64; 2]> {
    let weight = call.arg("weight").ok_or_else(|| call.refuse("it has no weight"))?;
    match call.shape_of(weight)?[..] {
        [_, _, height, width] => Ok([height, width]),
        _ => Err(call.refuse("its weight has no four dimensions")),
    }
}

/// `Gemm` with the weight as it is; of more than two dimensions `MatMul`, which wants it transposed.
pub fn linear(call: &mut Call) -> Result<String> {
    let (x, weight, rank) = (call.x()?, call.required("weight")?, call.shape()?.len());
    let bias = call.tensor("bias")?;
    if rank == 2 {
        let inputs: Vec<&str> = [&x, &weight].into_iter().chain(&bias).map(String::as_str).collect();
        return Ok(call.main("Gemm", &inputs, &[("transB", Int(1))]));
    }
    let transposed = call.add("Transpose", &[&weight], &[("perm", Ints(vec![1, 0]))]);
    let product = call.main("MatMul", &[&x, &transposed], &[]);
    Ok(match bias {
        Some(bias) => call.add("Add", &[&product, &bias], &[]),
        None => product,
    })
}

pub fn matmul(call: &mut Call) -> Result<String> {
    let second = call.node.args.get(1).map(|arg| arg.value.clone());
    let (x, second) = (call.x()?, second.ok_or_else(|| call.refuse("it takes one tensor only"))?);
    let y = call.value(&second)?;
    Ok(call.add("MatMul", &[&x, &y], &[]))
}
