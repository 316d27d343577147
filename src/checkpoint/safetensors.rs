//! Writes safetensors files, tensor by tensor: the crate's own writer leaves a file readable by its owner only and forgets the order.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::Dtype as Packed;
use safetensors::tensor::{Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

use super::atomic;
use crate::exit::{Exit, OrExit};
use crate::libtorch::bytes;

/// Writes contiguous copies of `tensors` to `path`, atomically; `format: pt` is added to `metadata`. Any device. The order is
/// kept among tensors of one element size; larger elements come first, which aligns them all.
pub fn write(path: &Path, tensors: &[(String, Tensor)], metadata: &[(String, String)]) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.kind().elt_size_in_bytes()));
    let mut infos = Vec::with_capacity(order.len());
    let mut at = 0;
    for (name, tensor) in &order {
        let dtype = packed(tensor.kind()).or_exit(Exit::Checkpoint, || {
            format!("`{name}`: safetensors has no dtype for {:?}; write a .pt", tensor.kind())
        })?;
        let end = at + tensor.numel() * tensor.kind().elt_size_in_bytes();
        let shape = tensor.size().iter().map(|&d| d as usize).collect();
        infos.push((name.clone(), TensorInfo { dtype, shape, data_offsets: (at, end) }));
        at = end;
    }
    let mut metadata: HashMap<String, String> = metadata.iter().cloned().collect();
    metadata.insert("format".into(), "pt".into());
    let mut header = serde_json::to_vec(&Metadata::new(Some(metadata), infos).context("the header")?)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    atomic::write(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, tensor) in &order {
            let cpu = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
            bytes::with(&cpu, |bytes| file.write_all(bytes))??;
        }
        Ok(())
    })
}

fn packed(kind: Kind) -> Option<Packed> {
    Some(match kind {
        Kind::Bool => Packed::BOOL,
        Kind::Uint8 => Packed::U8,
        Kind::Int8 => Packed::I8,
        Kind::Int16 => Packed::I16,
        Kind::Int => Packed::I32,
        Kind::Int64 => Packed::I64,
        Kind::Half => Packed::F16,
        Kind::BFloat16 => Packed::BF16,
        Kind::Float => Packed::F32,
        Kind::Double => Packed::F64,
        Kind::ComplexFloat => Packed::C64,
        Kind::Float8e4m3fn => Packed::F8_E4M3,
        Kind::Float8e5m2 => Packed::F8_E5M2,
        Kind::Float8e4m3fnuz => Packed::F8_E4M3FNUZ,
        Kind::Float8e5m2fnuz => Packed::F8_E5M2FNUZ,
        _ => return None,
    })
}
